"""Plasticity: what was learned doesn't keep from learning what is new."""
