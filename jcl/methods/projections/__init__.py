"""Projections: the update is kept out of directions that matter to earlier stages."""
