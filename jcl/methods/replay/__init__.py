"""Replay: rows of earlier stages are trained on again."""
