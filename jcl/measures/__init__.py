"""What a model can do, and what it costs."""
