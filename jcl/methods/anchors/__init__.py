"""Anchors: the parameters are pulled back to where they were."""
