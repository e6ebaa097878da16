"""RWalk against the paper's recursions in numpy, and against online EWC, its special case."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods, models

RATE, MIX, DAMPING, STRENGTH, PATH = 0.05, 0.7, 0.02, 1.5, 0.8
STAGES, STEPS, ROWS = 3, 7, 6


def linear(params: Any, batch: Any) -> jax.Array:
    return batch["x"] @ params["w"] + params["b"]


def stream() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STAGES, STEPS, ROWS, 4))
    teacher = 2 * rng.normal(size=(STAGES, 1, 4, 2))
    y = x @ teacher + 0.3 * rng.normal(size=(STAGES, STEPS, ROWS, 2))
    return {"x": x.astype(np.float32), "y": y.astype(np.float32)}


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(tree["w"], float).ravel(), np.asarray(tree["b"], float)])


def per_example(theta: np.ndarray, batch: Any) -> np.ndarray:
    """Gradients of ½ ‖xW + b - y‖², [rows, parameters], in float64."""
    w, b = theta[:8].reshape(4, 2), theta[8:]
    x = batch["x"].astype(float)
    error = x @ w + b - batch["y"]
    return np.concatenate([np.einsum("bi,bo->bio", x, error).reshape(len(x), -1), error], axis=1)


def unit(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (values.max() - values.min())


def by_hand(theta: np.ndarray, data: Any, interval: int) -> list[dict[str, np.ndarray]]:
    """What each boundary leaves behind."""
    fisher = omega = anchor = scores = np.zeros_like(theta)
    after = []
    for stage in range(STAGES):
        gained = np.zeros_like(theta)
        mark, path, since = theta, np.zeros_like(theta), 0
        batches = jax.tree.map(lambda v, s=stage: v[s], data)

        for i in range(STEPS):
            batch = jax.tree.map(lambda v, i=i: v[i], batches)
            task = per_example(theta, batch).mean(0)
            step = -RATE * (task + STRENGTH * omega * (theta - anchor))
            path, theta, since = path - task * step, theta + step, since + 1
            cut = i == STEPS - 1
            if since < interval and not cut:
                continue
            seen = batch if since == interval else jax.tree.map(np.concatenate, batches)
            gained = gained + np.maximum(path / (fisher * (theta - mark) ** 2 + DAMPING), 0)
            fisher = (1 - MIX) * fisher + MIX * (per_example(theta, seen) ** 2).mean(0)
            mark, path, since = theta, np.zeros_like(theta), 0

        scores = (scores + gained) / 2 if stage else gained
        omega, anchor = unit(fisher) + PATH * unit(scores), theta
        after.append({"params": theta, "fisher": fisher, "scores": scores, "importance": omega})
    return after


def build(method: jcl.Method) -> jcl.Program:
    return jcl.make(method, linear, losses.squared_error, optax.sgd(RATE))


def ours(method: jcl.Method, data: Any) -> list[Any]:
    """The state at first and after every boundary."""
    program = build(method)
    params = {"w": 0.1 * jax.random.normal(jax.random.key(0), (4, 2)), "b": jnp.zeros(2)}
    example = jax.tree.map(lambda v: v[0, 0], data)
    states = [program.init(params, example, jax.random.key(1))]
    advance = jax.jit(lambda s, chunk: jcl.advance(program, s, chunk)[0])
    consolidate = jax.jit(program.consolidate)
    for stage in range(STAGES):
        chunk = jax.tree.map(lambda v, s=stage: v[s], data)
        states.append(consolidate(advance(states[-1], chunk), chunk))
    return states


@pytest.mark.parametrize("interval", [1, 3, 7, 100])
def test_every_boundary_is_the_papers(interval: int) -> None:
    method = methods.rwalk(STRENGTH, interval, MIX, PATH, DAMPING)
    data = stream()
    states = ours(method, data)
    for state, wanted in zip(
        states[1:], by_hand(flat(states[0].params), data, interval), strict=True
    ):
        kept = state.methods["rwalk"]
        np.testing.assert_allclose(flat(state.params), wanted["params"], rtol=1e-4, atol=1e-5)
        found = {**kept._asdict(), **kept.walk._asdict()}
        for name in ("fisher", "scores", "importance"):
            np.testing.assert_allclose(
                flat(found[name]), wanted[name], rtol=5e-4, atol=1e-5, err_msg=name
            )
        assert flat(kept.importance).max() > 0.9


@pytest.mark.quick
def test_without_the_path_term_it_is_online_ewc() -> None:
    """One Fisher a stage: F = α (F_t + (1-α) F_{t-1} + …), so Ω is online EWC's over its range."""
    data = stream()
    data["x"][..., 0] = 0  # a parameter of Fisher 0, so that the range begins there
    states = ours(methods.rwalk(0.0, STEPS + 1, MIX, path=0.0), data)
    others = ours(methods.online_ewc(0.0, decay=1 - MIX), data)
    for state, other in zip(states[1:], others[1:], strict=True):
        fisher = flat(other.methods["online_ewc"].fisher)
        found = flat(state.methods["rwalk"].importance)
        np.testing.assert_allclose(found, fisher / fisher.max(), rtol=1e-5)

    # and the next step is the same, once λ has taken up the scale
    strength = 3.0
    walk = build(methods.rwalk(strength, STEPS + 1, MIX, path=0.0))
    online = build(methods.online_ewc(strength / fisher.max(), decay=1 - MIX))
    batch = jax.tree.map(lambda v: v[0, 0], data)

    def step(program: Any, state: Any) -> np.ndarray:
        away = jax.tree.map(lambda p: p + 0.5, state.params)
        return flat(jax.jit(program.step)(state._replace(params=away), batch)[0].params)

    found = step(walk, states[-1])
    np.testing.assert_allclose(found, step(online, others[-1]), rtol=1e-5)
    unpenalised = others[-1]._replace(methods={})
    assert np.abs(found - step(build(methods.naive()), unpenalised)).max() > 1e-2


def test_fisher_does_not_depend_on_how_rows_are_batched() -> None:
    """A step over 24 rows has the Fisher of those rows one by one, not that of their mean."""
    params = models.mlp.init(jax.random.key(0), [4, 5, 3])
    batch = {
        "x": jax.random.normal(jax.random.key(1), (24, 4)),
        "y": jax.random.randint(jax.random.key(2), (24,), 0, 3),
    }
    program = jcl.make(
        methods.rwalk(interval=1, mix=1.0), models.mlp.apply, losses.cross_entropy(), optax.sgd(0.0)
    )
    state = program.init(params, batch, jax.random.key(3))
    whole, _ = jax.jit(program.step)(state, batch)

    @jax.jit
    def one(row: Any) -> Any:
        return (
            program.step(state, jax.tree.map(lambda v: v[None], row))[0]
            .methods["rwalk"]
            .walk.fisher
        )

    rows = jax.lax.map(one, batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b.mean(0), rtol=2e-5, atol=1e-8),
        whole.methods["rwalk"].walk.fisher,
        rows,
    )
