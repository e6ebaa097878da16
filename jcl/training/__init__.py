"""Drives a program over a stream: the loop, its feed, its checkpoints, and drift detection."""
