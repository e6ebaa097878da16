"""Weighting: some rows or tokens count more than others in the loss."""
