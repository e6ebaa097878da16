"""Alignment: preferences over pairs of answers."""
