"""The tiny lives of `tests/tiny/tiny_life.py`, for all tests here."""

from tiny_life import born, life, lived, stored

__all__ = ["born", "life", "lived", "stored"]
