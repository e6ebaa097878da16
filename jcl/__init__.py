"""Continual learning of large language models as pure functions, in JAX."""

from jcl import (
    adapters,
    budget,
    checkpoint,
    data,
    drift,
    evaluation,
    flops,
    growth,
    importance,
    landscape,
    losses,
    memory,
    merging,
    mesh,
    methods,
    metrics,
    models,
    preference,
    probes,
    scoring,
    storage,
    taps,
    trees,
)
from jcl.chain import chain, explain
from jcl.evaluation import evaluator
from jcl.fit import Diverged, Result, fit
from jcl.method import Ctx, Info, Method
from jcl.program import Program, State, advance, make, run
from jcl.replicate import replicate

__version__ = "0.1.0"

__all__ = [
    "Ctx",
    "Diverged",
    "Info",
    "Method",
    "Program",
    "Result",
    "State",
    "adapters",
    "advance",
    "budget",
    "chain",
    "checkpoint",
    "data",
    "drift",
    "evaluation",
    "evaluator",
    "explain",
    "fit",
    "flops",
    "growth",
    "importance",
    "landscape",
    "losses",
    "make",
    "memory",
    "merging",
    "mesh",
    "methods",
    "metrics",
    "models",
    "preference",
    "probes",
    "replicate",
    "run",
    "scoring",
    "storage",
    "taps",
    "trees",
]
