"""Alignment: the model learns which of two answers is preferred."""
