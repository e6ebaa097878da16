"""The contract: a method is a record of pure functions around one optimizer step.

Every hook but the name has a default that changes nothing, so a method writes down only what it
does. All hooks run inside `jax.jit`: they take and return pytrees of arrays and never branch in
Python on a traced value.
"""

from jcl.method.given import (
    Apply,
    Aux,
    Batch,
    Call,
    Ctx,
    Info,
    KeepsRows,
    Limits,
    LossFn,
    Objective,
    Params,
    Reference,
    Structure,
    Tap,
    as_call,
    identity,
    with_structure,
)
from jcl.method.hooks import (
    Begin,
    Consolidate,
    Forward,
    Grads,
    Init,
    Loss,
    Observe,
    Report,
    Rows,
    Skips,
    Updates,
)
from jcl.method.record import PHASES, READS, REFERENCES, Method, check, defines

__all__ = [
    "PHASES",
    "READS",
    "REFERENCES",
    "Apply",
    "Aux",
    "Batch",
    "Begin",
    "Call",
    "Consolidate",
    "Ctx",
    "Forward",
    "Grads",
    "Info",
    "Init",
    "KeepsRows",
    "Limits",
    "Loss",
    "LossFn",
    "Method",
    "Objective",
    "Observe",
    "Params",
    "Reference",
    "Report",
    "Rows",
    "Skips",
    "Structure",
    "Tap",
    "Updates",
    "as_call",
    "check",
    "defines",
    "identity",
    "with_structure",
]
