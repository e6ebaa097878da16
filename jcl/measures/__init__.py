"""Measures of what a model can do, and of what it costs."""
