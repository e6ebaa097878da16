"""Anchors: the parameters are pulled to where they were."""
