"""Continual learning of large language models as pure functions, in JAX."""

from jcl import checkpoint, importance, losses, memory, mesh, methods, models, taps, trees
from jcl.chain import chain, explain
from jcl.method import Ctx, Info, Method
from jcl.program import Program, State, advance, make, replicate, run

__version__ = "0.1.0"

__all__ = [
    "Ctx",
    "Info",
    "Method",
    "Program",
    "State",
    "advance",
    "chain",
    "explain",
    "importance",
    "losses",
    "make",
    "memory",
    "methods",
    "models",
    "replicate",
    "run",
    "taps",
    "trees",
]
