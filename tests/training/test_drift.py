"""The Page-Hinkley test against a plain loop, and programs that consolidate themselves."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import data, drift, losses, methods


def loop(values, threshold, tolerance, warm_up):
    """The test as the survey writes it, and how long ago m was least."""
    since, seen = [], []
    for value in values:
        seen.append(value)
        means = np.cumsum(seen) / np.arange(1, len(seen) + 1)
        m = np.concatenate([[0.0], np.cumsum(np.array(seen) - means - tolerance)])
        found = m[-1] - m.min() > threshold and len(seen) > warm_up
        since.append(len(seen) - int(m.argmin()) if found else 0)
        if found:
            seen = []
    return np.array(since)


def jumps(seed=0, size=200, tasks=4):
    """A loss that decays within each task and jumps at its end, with noise."""
    rng = np.random.default_rng(seed)
    decay = 0.3 + 1.5 * np.exp(-np.arange(size) / 25)
    return (np.tile(decay, tasks) + rng.normal(0, 0.1, size * tasks)).astype(np.float32)


@pytest.mark.parametrize("given", [(5.0, 0.05, 30), (2.0, 0.0, 5), (10.0, 0.02, 100)])
def test_it_is_the_published_test(given):
    values = jumps()
    detector = drift.page_hinkley(*given)
    _, found = jax.lax.scan(detector.update, detector.init(), jnp.asarray(values))
    np.testing.assert_array_equal(found, loop(values.astype(np.float64), *given))
    assert found.any()


@pytest.mark.parametrize("seed", range(5))
def test_every_jump_is_found_soon_and_nothing_else(seed):
    detector = drift.page_hinkley(threshold=5.0, tolerance=0.1, warm_up=30)
    _, found = jax.lax.scan(detector.update, detector.init(), jnp.asarray(jumps(seed)))
    at = np.flatnonzero(found)
    assert len(at) == 3
    delay = at - np.array([200, 400, 600])
    assert (delay >= 0).all() and (delay < 15).all()
    begun = at - np.asarray(found)[at] + 1
    assert (abs(begun - [200, 400, 600]) <= 1).all()


def test_learning_and_noise_are_no_drift():
    values = jnp.asarray(np.random.default_rng(0).normal(1.0, 0.1, 5000), jnp.float32)
    detector = drift.page_hinkley()
    assert not jax.lax.scan(detector.update, detector.init(), values)[1].any()
    falling = jnp.linspace(5, 0, 1000)
    assert not jax.lax.scan(detector.update, detector.init(), falling)[1].any()


@pytest.mark.quick
def test_thresholds_may_be_traced():
    def count(threshold):
        detector = drift.page_hinkley(threshold)
        return jax.lax.scan(detector.update, detector.init(), jnp.asarray(jumps()))[1].sum()

    counts = jax.jit(jax.vmap(count))(jnp.array([5.0, 1e6]))
    assert counts[0] >= 3 and counts[1] == 0


def apply(params, batch):
    return batch["x"] @ params["w"]


def stream(tasks=4, steps=150):
    """Regressions whose targets jump from task to task, without boundaries."""
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(tasks):
        x = rng.normal(size=(steps * 16, 3)).astype(np.float32)
        parts.append({"x": x, "y": x @ rng.normal(0, 2, (3, 1)).astype(np.float32)})
    scenario = data.online(data.scenario(parts, parts))
    return data.from_scenario(scenario, batch=16, epochs=1)


def test_a_watched_program_consolidates_where_it_must():
    s = stream()
    program = jcl.make(methods.ewc(strength=0.1), apply, losses.squared_error, optax.sgd(0.1))
    watched = drift.watch_drift(program, drift.page_hinkley(threshold=3.0), recent=20)
    params = {"w": jnp.zeros((3, 1))}
    fetch = partial(s.fetch, s.source)
    state, aux = jax.jit(
        lambda rows: jcl.run(watched, params, jax.random.key(0), rows, fetch=fetch)
    )(data.stack(s))
    at = np.flatnonzero(np.asarray(aux["steps"]["drift/found"])[0])
    assert len(at) == 3
    assert ((at - [150, 300, 450]) >= 0).all() and ((at - [150, 300, 450]) < 10).all()
    assert (
        int(state.stage) == 4 and int(state.methods["drift"].found) == 3
    )  # and the stage's own end

    # by hand: the same steps, and at each drift the last 20 batches but those from after it
    first = fetch(jax.tree.map(lambda r: r[0], s.chunk(0, 0, 1)))
    by_hand = program.init(params, first, jax.random.key(0))
    step, consolidate = jax.jit(lambda s, r: program.step(s, fetch(r))), program.consolidate
    rows = s.chunk(0, 0, s.steps[0])
    for i in range(s.steps[0]):
        by_hand, _ = step(by_hand, jax.tree.map(lambda r, i=i: r[i], rows))
        if i in at:
            boundary = i // 150 * 150
            last = jax.vmap(fetch)(jax.tree.map(lambda r, a=i - 19, b=boundary: r[a:b], rows))
            by_hand = consolidate(by_hand, last)
    np.testing.assert_allclose(state.params["w"], by_hand.params["w"], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_without_a_drift_it_changes_nothing():
    s = stream(tasks=1)
    params = {"w": jnp.zeros((3, 1))}
    program = jcl.make(methods.er(20, 4, start=0), apply, losses.squared_error, optax.sgd(0.1))
    fetch = partial(s.fetch, s.source)
    states = [
        jax.jit(lambda rows, p=p: jcl.run(p, params, jax.random.key(0), rows, fetch=fetch)[0])(
            data.stack(s)
        )
        for p in (program, drift.watch_drift(program, drift.page_hinkley()))
    ]
    np.testing.assert_array_equal(states[0].params["w"], states[1].params["w"])
    assert int(states[1].methods["drift"].found) == 0
    assert jax.tree.structure(states[0].methods["er"]) == jax.tree.structure(
        states[1].methods["er"]
    )


@pytest.mark.quick
def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="threshold is 0, but must be above 0"):
        drift.page_hinkley(threshold=0)
    program = jcl.make(methods.naive(), apply, losses.squared_error, optax.sgd(0.1))
    with pytest.raises(ValueError, match="recent is 0"):
        drift.watch_drift(program, drift.page_hinkley(), recent=0)
