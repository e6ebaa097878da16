"""`check_method` passes what keeps the laws, and names the law and the numbers of what doesn't."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jcl
from jcl.method import check
from jcl.testing import Broken, check_method
from jcl.testing.check import ALONE


def pull(strength: float = 1.0, **hooks: Any) -> jcl.Method:
    """A quadratic anchor at the last boundary; `hooks` are broken ones in the place of its own."""
    check(strength >= 0, "strength", strength, "at least 0")

    def grads(anchor: Any, ctx: jcl.Ctx, grads: Any) -> Any:
        active = jnp.where(ctx.stage > 0, strength, 0.0)
        return jax.tree.map(lambda g, p, a: g + active * (p - a), grads, ctx.params, anchor)

    method = jcl.Method(
        "pull",
        init=lambda ctx, params: (params, jcl.trees.copy(params)),
        grads=grads,
        consolidate=lambda anchor, ctx, params, batches: (params, params),
        reads=("parameters",),
    )
    return method._replace(**hooks)


def test_a_method_that_keeps_the_laws_passes() -> None:
    seen = check_method(
        pull,
        {"strength": 0.5},
        neutral={"strength": 0.0},
        refused=[{"strength": -1.0}],
        kinds=["replay", "writer"],
    )
    assert set(seen.held) >= {*ALONE, "neutral", "pull + wise_ft: hooks see the model"}
    assert seen.left_out == {}


ONLY_PLAIN = {name: "another test's" for name in ALONE}


def without(*kept: str) -> dict[str, str]:
    return {name: why for name, why in ONLY_PLAIN.items() if name not in kept}


def grows(state: Any, ctx: jcl.Ctx, params: Any, batches: Any) -> Any:
    return params, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)


def reads_rows(ctx: jcl.Ctx, params: Any) -> Any:
    return params, {"params": jcl.trees.copy(params), "rows": jnp.zeros((8, 16))}


def counts_padding(state: Any, ctx: jcl.Ctx, grads: Any) -> Any:
    return jax.tree.map(lambda g: g * (1 + 0.1 * ctx.batch["x"].mean()), grads)


def draws(strength: float = 1.0) -> jcl.Method:
    noise = np.random.default_rng().normal()
    return pull(grads=lambda state, ctx, g: jax.tree.map(lambda x: x + 1e-2 * noise, g))


def says_nothing(strength: float = 1.0) -> jcl.Method:
    if strength < 0:
        raise ValueError("no")
    return pull(strength)


@pytest.mark.parametrize(
    ("factory", "law", "says"),
    [
        (lambda: pull(report=lambda s, i: {"x": jnp.log(-1.0)}), "finite reports", "x is nan"),
        (
            lambda: pull(updates=lambda s, c, u: jax.tree.map(jnp.zeros_like, u)),
            "training moves",
            "moved them by 0 only",
        ),
        (lambda: pull(reads=("samples",)), "samples are said", "has 0 rows"),
        (lambda: pull(reads=("thoughts",)), "samples are said", "['thoughts'], but may have"),
        (lambda: pull(grads=counts_padding), "padding rows count nothing", "and not"),
        (draws, "equal arguments, equal runs", "may differ by no bit"),
    ],
)
def test_a_broken_law_is_named_with_its_numbers(factory: Any, law: str, says: str) -> None:
    with pytest.raises(Broken) as broken:
        check_method(factory, kinds=(), without=without(law))
    assert str(broken.value).startswith(f"{law}: ") and says in str(broken.value)
    assert "\n" not in str(broken.value)


def test_what_a_hook_raises_is_said_under_the_law(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Broken, match="one trace: pull raises ValueError: pull's consolidate"):
        check_method(
            lambda: pull(consolidate=lambda s, c, p, b: p), kinds=(), without=without("one trace")
        )


@pytest.mark.quick
def test_a_wrong_argument_must_be_refused_by_name() -> None:
    nothing = {"kinds": (), "without": ONLY_PLAIN}
    with pytest.raises(Broken, match=r"strength=-1\.0 is refused: it is taken"):
        check_method(lambda strength=1.0: pull(), refused=[{"strength": -1.0}], **nothing)
    with pytest.raises(Broken, match=r"'no' must name strength, -1\.0 and what it must be"):
        check_method(says_nothing, refused=[{"strength": -1.0}], **nothing)
    assert check_method(pull, refused=[{"strength": -1.0}], **nothing).held == (
        "refuses {'strength': -1.0}",
    )


@pytest.mark.quick
def test_what_is_asked_wrongly_is_refused() -> None:
    with pytest.raises(ValueError, match="kinds is 'replays', but must be one of"):
        check_method(pull, kinds=["replays"])
    with pytest.raises(ValueError, match="factory is 3, but must be a function that returns"):
        check_method(lambda: 3)
    with pytest.raises(ValueError, match="without is 'one trac', but must be the name of a law"):
        check_method(pull, kinds=(), without={**ONLY_PLAIN, "one trac": "mistyped"})


def test_strength_that_isnt_neutral_is_found() -> None:
    with pytest.raises(Broken, match=r"plain fine-tuning at strength=0\.5: dense_"):
        check_method(pull, neutral={"strength": 0.5}, kinds=(), without=ONLY_PLAIN)


def test_a_secret_writer_is_found_in_a_chain() -> None:
    """It moves parameters behind those that were before it, without saying that it writes."""

    def shrink(state: Any, ctx: jcl.Ctx, params: Any, batches: Any) -> Any:
        return jax.tree.map(lambda x: 0.5 * x, params), state

    with pytest.raises(Broken) as broken:
        check_method(lambda: pull(consolidate=shrink), kinds=(), without=without("writers say so"))
    assert "writers say so: consolidate moves the parameters" in str(broken.value)
