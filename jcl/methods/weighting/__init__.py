"""Weighting: some rows or tokens count more."""
