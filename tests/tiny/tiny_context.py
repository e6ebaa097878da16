"""A context for a hook that is called by itself, with no program around it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jcl.method import Call, Ctx, Structure


def context(**known: Any) -> Ctx:
    """The context whose fields are `known`; of the others a hook that is called may read none.

    With no program behind it, `anew` changes parameters, states and what has finished alone.
    """
    zero = jnp.int32(0)
    fields = {**dict.fromkeys(Ctx._fields), "batch": {}, "states": {}, "references": {}}
    fields |= {"stage": zero, "stage_step": zero, "step": zero, "finished": (), "jumps": False}
    fields |= {
        "renewed": Ctx._field_defaults["renewed"],
        "call": Call(training=True),
        "structure": Structure(),
    }

    def anew(params: Any, states: Any, finished: tuple[str, ...] = (), **more: Any) -> Ctx:
        return made._replace(params=params, states=states, finished=finished, **more)

    made = Ctx(**{**fields, "anew": anew, **known})
    return made
