"""Merges: the weights are averaged with earlier weights."""
