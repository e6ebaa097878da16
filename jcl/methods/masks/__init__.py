"""Masks: only some parameters move."""
