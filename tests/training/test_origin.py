"""Nothing goes on with a run that it wasn't begun with, from Python too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods, models

PARAMS = models.mlp.init(jax.random.key(0), [4, 5, 3])
RNG = np.random.default_rng(0)
STREAM = {
    "x": RNG.normal(size=(2, 4, 6, 4)).astype(np.float32),
    "y": RNG.integers(0, 3, (2, 4, 6)).astype(np.int32),
    "task": np.broadcast_to(np.arange(2, dtype=np.int32)[:, None, None], (2, 4, 6)),
}


def fit(out: Path, **changes: Any) -> jcl.Result:
    given = {"strength": 100.0, "alpha": 0.5, "rate": 0.1, "key": 0, "stream": STREAM, **changes}
    chain = methods.wise_ft(given["alpha"]) + methods.ewc(strength=given["strength"])
    made = jcl.make(chain, models.mlp.apply, losses.cross_entropy(), optax.sgd(given["rate"]))
    return jcl.fit(
        made, PARAMS, jax.random.key(given["key"]), given["stream"], out=out,
        resume=given.get("resume", False), chunk=given.get("chunk", 100),
    )  # fmt: skip


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    fit(out)
    return out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"strength": 10.0}, "has the number 100, where this has 10;"),
        ({"alpha": 0.25}, "has the number 0.5, where this has 0.25, 0.75;"),
        ({"rate": 0.2}, "has the number -0.1, where this has -0.2;"),
        ({"key": 7}, r"a run with key \[0, 0\], and not \[0, 7\]"),
        ({"stream": {**STREAM, "x": STREAM["x"] + 1}}, "a run on other data of the same stages"),
        ({"stream": jax.tree.map(lambda x: x[:, :3], STREAM)}, "a run with stages .*4, 4.*3, 3"),
        ({"stream": {**STREAM, "weight": np.ones((2, 4, 6), np.float32)}}, "on other data"),
    ],
    ids=lambda x: str(x)[:20],
)  # fmt: skip
def test_what_differs_is_named_and_nothing_is_written(begun: Path, change: Any, says: str) -> None:
    before = {p: p.read_bytes() for p in begun.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=says):
        fit(begun, resume=True, **change)
    after = {p: p.read_bytes() for p in begun.rglob("*") if p.is_file()}
    assert after == before


def test_what_may_differ_may(begun: Path) -> None:
    first = fit(begun, resume=True, chunk=2)
    again = fit(begun, resume=True)
    for a, b in zip(jax.tree.leaves(first.state), jax.tree.leaves(again.state), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(a, b)


def test_an_older_folder_says_nothing_and_goes_on(begun: Path, tmp_path: Path) -> None:
    out = tmp_path / "older"
    fit(out)
    (out / "begun.json").unlink()
    fit(out, resume=True)


def test_arrays_in_a_loss_are_compared(tmp_path: Path) -> None:
    out = tmp_path / "run"

    def program(shift: np.ndarray) -> jcl.Program:
        def shifted(params: Any, batch: Any) -> Any:
            return models.mlp.apply(params, batch) + jnp.asarray(shift)

        return jcl.make(methods.naive(), shifted, losses.cross_entropy(), optax.sgd(0.1))

    shift = np.arange(3, dtype=np.float32)
    jcl.fit(program(shift), PARAMS, jax.random.key(0), STREAM, out=out)
    with pytest.raises(ValueError, match="holds other arrays"):
        jcl.fit(program(shift[::-1]), PARAMS, jax.random.key(0), STREAM, out=out, resume=True)


@pytest.mark.quick
def test_large_arrays_are_told_apart_by_rows_spread_over_them() -> None:
    from jcl.training.origin import _sum

    large = np.zeros((300_000, 3), np.float32)
    other = large.copy()
    other[::4] += 1
    assert _sum(large) == _sum(large.copy()) != _sum(other)
    assert _sum(large) != _sum(large[:-1]) and _sum(large) != _sum(large.astype(np.float64))
