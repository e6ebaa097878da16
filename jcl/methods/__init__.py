"""Continual-learning methods, one a file; each factory returns a `jcl.Method`."""

from jcl.methods.er import er
from jcl.methods.ewc import ewc, online_ewc
from jcl.methods.naive import naive

__all__ = ["er", "ewc", "naive", "online_ewc"]
