"""Merges: weights are averaged with earlier ones."""
