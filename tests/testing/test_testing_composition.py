"""The laws of composition find what a chain must not do, and pass what a chain may."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jcl
from jcl import methods
from jcl.testing import composition, perceptron
from jcl.testing.bench import Bench
from jcl.testing.laws import Broken

KINDS = composition.kinds(perceptron())


@pytest.mark.quick
def test_every_kind_can_be_made_and_is_neutral_by_name() -> None:
    for kind in KINDS.values():
        assert isinstance(kind.make(**kind.arguments), jcl.Method)
        if kind.neutral is not None:
            assert isinstance(kind.make(**{**kind.arguments, **kind.neutral}), jcl.Method)


def broken(make: Any, kind: str) -> list[str]:
    said = []
    for _, law in composition.pair(Bench(make, perceptron()), KINDS[kind]):
        try:
            law()
        except Broken as error:
            said.append(str(error))
    return said


def test_a_forward_that_goes_by_the_time_breaks_frozen_models() -> None:
    def forward(state: Any, ctx: jcl.Ctx, apply: Any) -> Any:
        seconds = ctx.step.astype(jnp.float32)  # which a frozen model doesn't keep
        return lambda params, batch, tap=jcl.taps.identity: (
            (1 + seconds) * apply(params, batch, tap)
        )

    def make() -> jcl.Method:
        return jcl.Method("ageing", init=lambda ctx, p: (p, jnp.zeros(())), forward=forward)

    said = broken(make, "schedule")
    assert any("what a frozen model answers later: " in one for one in said)


def test_a_method_that_leans_on_another_s_absence_is_found() -> None:
    def grads(state: Any, ctx: jcl.Ctx, grads: Any) -> Any:
        return jax.tree.map(lambda g: g / len(ctx.states), grads)

    said = broken(lambda: jcl.Method("lonely", grads=grads), "schedule")
    assert len([one for one in said if "is what it is alone: " in one]) == 2


def test_a_built_in_method_keeps_them() -> None:
    assert broken(lambda: methods.ewc(strength=10.0), "writer") == []
