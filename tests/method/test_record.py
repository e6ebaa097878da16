"""The record: a method that says nothing, what it may say, and how an argument is refused."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import pytest

from jcl import methods
from jcl.method import PHASES, READS, Method, check, defines

pytestmark = pytest.mark.quick


def test_a_method_that_says_only_its_name_hands_everything_on() -> None:
    plain, state, thing = Method("plain"), object(), object()
    assert plain.init(None, thing) == (thing, ())
    for phase in ("batch", "forward", "loss", "grads", "updates"):
        assert getattr(plain, phase)(state, None, thing) is thing
    assert plain.observe(state, None, thing) is state
    assert plain.consolidate(state, None, thing, {}) == (thing, state)
    assert plain.report(state, None) == {} and plain.skips(state, None) is False
    assert not any(defines(plain, phase) for phase in PHASES)


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_is_a_hook_that_can_be_defined(phase: str) -> None:
    default = Method._field_defaults[phase]
    other = Method("other")._replace(**{phase: lambda *a: default(*a)})
    assert [p for p in PHASES if defines(other, p)] == [phase]
    # state and ctx come first, but where there is none yet, and where there is nothing to read
    first = {"init": ["ctx"], "report": ["state", "info"]}.get(phase, ["state", "ctx"])
    assert list(inspect.signature(default).parameters)[: len(first)] == first


def test_a_method_reads_what_can_be_read() -> None:
    assert set(methods.er(capacity=3).reads) == {"samples"} < set(READS)
    assert methods.naive().reads == ()


def test_a_refusal_names_the_argument_its_value_and_what_would_be_right() -> None:
    check(True, "rank", 3, "at least 1")
    with pytest.raises(ValueError) as refused:
        check(False, "rank", "3", "at least 1")
    assert str(refused.value) == "rank is '3', but must be at least 1"


def test_a_traced_value_can_not_be_looked_at_and_passes() -> None:
    def checked(x: jax.Array) -> jax.Array:
        check(x > 0, "x", x, "above 0")
        return x

    assert float(jax.jit(checked)(jnp.float32(-3))) == -3
    with pytest.raises(ValueError, match=r"x is Array\(-3.*but must be above 0"):
        checked(jnp.float32(-3))
