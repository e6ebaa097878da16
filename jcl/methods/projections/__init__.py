"""Projections: the update stays out of earlier stages' directions."""
