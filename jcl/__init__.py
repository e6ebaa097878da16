"""Continual learning of large language models as pure functions, in JAX."""

from jcl import data, losses, memory, methods, models, moved, taps, trees
from jcl.chain import chain, explain
from jcl.measures import budget, evaluation, flops, landscape, metrics, probes, scoring
from jcl.measures.evaluation import evaluator
from jcl.mechanisms import adapters, growth, importance, merging, preference, subspaces
from jcl.method import Aux, Call, Ctx, Info, Method, Structure
from jcl.parallel import mesh, storage
from jcl.program import Program, State, advance, make, run
from jcl.replicate import replicate
from jcl.report import trackers
from jcl.report.progress import progress
from jcl.runs import results
from jcl.runs.cache import cache
from jcl.runs.fitted import fit
from jcl.runs.life import open, watch
from jcl.runs.load import load_run, load_state
from jcl.training import checkpoint, drift
from jcl.training.fit import Diverged, Result

__version__ = "0.2.0"

__all__ = [
    "Aux",
    "Call",
    "Ctx",
    "Diverged",
    "Info",
    "Method",
    "Program",
    "Result",
    "State",
    "Structure",
    "adapters",
    "advance",
    "budget",
    "cache",
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
    "load_run",
    "load_state",
    "losses",
    "make",
    "memory",
    "merging",
    "mesh",
    "methods",
    "metrics",
    "models",
    "open",
    "preference",
    "probes",
    "progress",
    "replicate",
    "results",
    "run",
    "scoring",
    "storage",
    "subspaces",
    "taps",
    "trackers",
    "trees",
    "watch",
]

moved.install()
