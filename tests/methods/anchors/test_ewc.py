"""EWC on a linear-Gaussian model, where sequential Bayesian inference has a closed form."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods, models

# With one-hot rows x = s_j e_j and unit noise, task t's likelihood is a Gaussian over θ: precision
# h_t = mean of x² per coordinate, centre m_t. The mean loss ½ (xθ - y)² is its negative logarithm.
H = np.array([[0.5, 0.3, 0.2], [0.1, 0.4, 0.6], [0.3, 0.5, 0.1]])
M = np.array([[0.4, -0.3, 0.1], [-0.2, 0.2, 0.3], [0.1, -0.1, -0.4]])
TASKS, STEPS = H.shape


def posterior(tasks: int) -> np.ndarray:
    """Mean of the posterior after so many tasks, from a flat prior."""
    return (H[:tasks] * M[:tasks]).sum(0) / H[:tasks].sum(0)


def task_data(t: int, optimum: np.ndarray) -> dict[str, np.ndarray]:
    """Two rows a coordinate, with likelihood N(m_t, 1/h_t) and, at `optimum`, residuals of mean
    square 1: so the empirical Fisher there, the mean of x² r², is the true one, the mean of x².
    """
    d = M.shape[1]
    scale = np.sqrt(d * H[t])  # each coordinate has a d-th of the rows
    offset = M[t] - optimum
    noise = np.sqrt(1 - (scale * offset) ** 2)
    x = np.repeat(np.diag(scale), 2, axis=0)
    signs = np.tile([1.0, -1.0], d)
    y = x @ M[t] + signs * np.repeat(noise, 2)
    return {"x": x.astype(np.float32), "y": y[:, None].astype(np.float32)}


def linear(params: Any, batch: Any) -> jax.Array:
    return batch["x"] @ params["w"][:, None]


def learn(method: jcl.Method, optima: list[np.ndarray], steps: int = 400) -> list[np.ndarray]:
    """Parameters after each task, trained to convergence on whole tasks."""
    program = jcl.make(method, linear, losses.squared_error, optax.sgd(0.5))
    tasks = [task_data(t, optimum) for t, optimum in enumerate(optima)]
    stream = jax.tree.map(
        lambda *x: jnp.broadcast_to(jnp.stack(x)[:, None], (len(x), steps, *x[0].shape)), *tasks
    )

    def evaluate(program: Any, state: Any) -> jax.Array:
        return state.params["w"]

    params = {"w": jnp.zeros(M.shape[1])}
    run = jax.jit(lambda s: jcl.run(program, params, jax.random.key(0), s, evaluate=evaluate))
    return list(np.asarray(run(stream)[1]["scores"])[1:])


def test_after_two_tasks_it_is_the_posterior_mean() -> None:
    optima = [posterior(1), posterior(2)]
    for method in (methods.ewc(strength=1.0), methods.online_ewc(strength=1.0, decay=1.0)):
        first, second = learn(method, optima)
        np.testing.assert_allclose(first, posterior(1), atol=2e-6)
        np.testing.assert_allclose(second, posterior(2), atol=2e-6)
    assert np.abs(posterior(2) - M[1]).min() > 0.02  # plain fine-tuning would end there


@pytest.mark.quick
def test_online_ewc_without_decay_is_the_posterior_mean_for_ever() -> None:
    """Precisions add up and the latest mode is the anchor: Bayes, as Huszár (1712.03847) has it."""
    optima = [posterior(t + 1) for t in range(TASKS)]
    for found, wanted in zip(
        learn(methods.online_ewc(strength=1.0, decay=1.0), optima), optima, strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_ewc_minimises_the_sum_of_its_own_anchors() -> None:
    """One penalty a task: argmin ½ h_t (θ - m_t)² + ½ λ Σ_{s<t} h_s (θ - θ_s)²."""
    strength, optima = 2.5, []
    for t in range(TASKS):
        pulls = strength * sum((H[s] * optima[s] for s in range(t)), np.zeros(M.shape[1]))
        optima.append((H[t] * M[t] + pulls) / (H[t] + strength * H[:t].sum(0)))
    found = learn(methods.ewc(strength=strength), optima)
    np.testing.assert_allclose(found, optima, atol=2e-6)
    # from the third task on that is not the posterior: the first is counted again in the second
    assert np.abs(optima[2] - posterior(3)).max() > 0.02


def test_online_ewc_decays_what_is_older() -> None:
    strength, decay, optima, total = 2.5, 0.6, [], np.zeros(M.shape[1])
    for t in range(TASKS):
        last = optima[-1] if t else np.zeros(M.shape[1])
        optima.append((H[t] * M[t] + strength * total * last) / (H[t] + strength * total))
        total = decay * total + H[t]
    found = learn(methods.online_ewc(strength=strength, decay=decay), optima)
    np.testing.assert_allclose(found, optima, atol=2e-6)


@pytest.mark.parametrize("factory", [methods.ewc, methods.online_ewc])
def test_state_does_not_grow_with_tasks_and_holds_exact_means(factory: Any) -> None:
    """ΣF and ΣFθ* / ΣF after three boundaries, from Fishers recomputed one row at a time."""
    program = jcl.make(factory(), models.mlp.apply, losses.cross_entropy(), optax.sgd(0.3))
    rng = np.random.default_rng(0)
    batches = {
        "x": jnp.asarray(rng.normal(size=(3, 2, 6, 4)), jnp.float32),
        "y": jnp.asarray(rng.integers(0, 3, (3, 2, 6)), jnp.int32),
    }
    params = models.mlp.init(jax.random.key(0), [4, 5, 3])
    state = program.init(params, jax.tree.map(lambda x: x[0, 0], batches), jax.random.key(1))

    @jax.jit
    def fisher(params: Any, rows: Any) -> Any:
        def nll(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
            return -jax.nn.log_softmax(models.mlp.apply(p, {"x": x[None]})[0])[y]

        slopes = jax.vmap(jax.grad(nll), (None, 0, 0))(params, rows["x"], rows["y"])
        return jax.tree.map(lambda g: jnp.mean(g**2, 0), slopes)

    online = factory is methods.online_ewc
    total = anchored = jax.tree.map(jnp.zeros_like, params)
    step, consolidate = jax.jit(program.step), jax.jit(program.consolidate)
    for t in range(3):
        rows = jax.tree.map(lambda x, t=t: x[t], batches)
        state, _ = step(state, jax.tree.map(lambda x: x[0], rows))
        new = fisher(state.params, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows))
        state = consolidate(state, rows)
        total = jcl.trees.axpy(0.9 if online else 1.0, total, new)
        anchored = (
            jax.tree.map(lambda f, p: f * p, total, state.params)
            if online
            else jax.tree.map(lambda a, f, p: a + f * p, anchored, new, state.params)
        )
    kept = state.methods[program.method.parts[0].name].past
    weighted = jax.tree.map(jnp.multiply, kept.curvature, kept.anchor)
    for found, wanted in ((kept.curvature, total), (weighted, anchored)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), found, wanted
        )
    assert jcl.trees.size(kept) == 2 * jcl.trees.size(params)


def test_parameters_rest_at_five_anchors_that_are_themselves() -> None:
    strength, rng = 1e6, np.random.default_rng(0)
    program = jcl.make(
        methods.ewc(strength),
        lambda params, batch: jnp.broadcast_to(params["w"], batch["y"].shape),
        losses.squared_error,
        optax.sgd(1.0),
    )
    w = jnp.asarray(rng.normal(size=200), jnp.float32)
    rest = {"x": jnp.zeros((4, 1)), "y": jnp.broadcast_to(w, (4, 200))}  # where the loss is flat
    state = program.init({"w": w}, rest, jax.random.key(0))
    consolidate = jax.jit(program.consolidate)
    for _ in range(5):
        y = w + jnp.asarray(rng.random((1, 4, 200)), jnp.float32)
        state = consolidate(state, {"x": jnp.zeros((1, 4, 1)), "y": y})
    state, _ = jax.jit(program.step)(state, rest)
    np.testing.assert_allclose(state.params["w"], w, rtol=0, atol=1e-5)
