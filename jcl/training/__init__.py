"""How a program is driven: the loop, its feed, its checkpoints."""
