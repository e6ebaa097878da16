"""Replay: earlier rows are learned again."""
