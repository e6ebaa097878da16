"""What a listener hears of a run, and how it stops one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from tiny_halves import KEY, PARAMS, TASKS

import jcl
from jcl import data, losses, methods, models
from jcl.measures.evaluation import accuracy, evaluator
from jcl.training.events import Listener, learning_rate

STREAM = data.from_arrays(TASKS, TASKS, 8, steps=8)
SCORE = evaluator(STREAM.test, accuracy())
RATES = optax.inject_hyperparams(optax.sgd)(optax.linear_schedule(0.1, 0.0, 16))


def program(**options: Any) -> jcl.Program:
    return jcl.make(
        methods.er(capacity=8, rows=2), models.mlp.apply, losses.cross_entropy(), RATES, **options
    )


class Heard(list[dict[str, Any]]):
    """Keeps events, and may ask to stop at a step."""

    def __init__(self, until: int | None = None) -> None:
        self.until, self.closed = until, 0

    def __call__(self, event: dict[str, Any]) -> str | None:
        self.append(event)
        return "stop" if self.until is not None and event.get("step", 0) >= self.until else None

    def close(self) -> None:
        self.closed += 1


def test_events_have_the_scalars_the_rate_and_the_norm_of_the_gradient() -> None:
    heard = Heard()
    quiet = jcl.fit(program(), PARAMS, KEY, STREAM, chunk=1)
    told = jcl.fit(program(gradient_norm=True), PARAMS, KEY, STREAM, chunk=1, on_event=heard)
    steps = [event for event in heard if event["kind"] == "progress"]
    assert [event["step"] for event in steps] == list(range(1, 17)) and heard.closed == 1
    rates = [event["learning_rate"] for event in steps]
    np.testing.assert_allclose(rates, [0.1 * (1 - n / 16) for n in range(16)], rtol=1e-5)
    first = {k: v[0] for k, v in STREAM.chunk(0, 0, 1).items()}
    batch = STREAM.fetch(STREAM.source, first)

    def loss(params: Any) -> Any:
        logits = models.mlp.apply(params, batch)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    norm = optax.tree.norm(jax.grad(loss)(PARAMS))  # nothing is replayed in the first stage
    assert steps[0]["scalars"]["gradient_norm"] == pytest.approx(float(norm), rel=1e-5)
    assert set(steps[0]["scalars"]) == told.history[0].keys() - {"stage", "name", "step", "loss"}
    assert "gradient_norm" not in quiet.history[0]
    for a, b in zip(jax.tree.leaves(quiet.state), jax.tree.leaves(told.state), strict=True):
        if not jax.numpy.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.quick
def test_an_optimizer_without_its_rate_in_the_state_has_none() -> None:
    assert learning_rate(optax.adam(0.1).init(PARAMS)) is None
    assert learning_rate(RATES.init(PARAMS)) == pytest.approx(0.1)


@pytest.fixture(scope="module")
def whole() -> jcl.Result:
    return jcl.fit(program(), PARAMS, KEY, STREAM, evaluate=SCORE, chunk=4)


@pytest.mark.parametrize("until", [8, 12])
def test_a_listener_stops_a_run_which_then_goes_on_as_if_it_hadnt(
    whole: jcl.Result, tmp_path: Path, until: int
) -> None:
    options: Any = {"evaluate": SCORE, "chunk": 4}
    cut = jcl.fit(program(), PARAMS, KEY, STREAM, out=tmp_path, on_event=Heard(until), **options)
    assert cut.history[-1]["step"] == until and int(cut.state.step) == until
    assert cut.scores is not None and np.isnan(cut.scores[-1]).all()
    on = jcl.fit(program(), PARAMS, KEY, STREAM, out=tmp_path, resume=True, **options)
    np.testing.assert_array_equal(on.scores, whole.scores)
    assert on.history == whole.history
    for a, b in zip(jax.tree.leaves(on.state), jax.tree.leaves(whole.state), strict=True):
        assert (a == b).all()


@pytest.mark.quick
def test_what_a_listener_gives_back_besides_is_nothing() -> None:
    listener = Listener(lambda event: np.ones(3))
    listener({"kind": "progress"})
    assert listener.listens and not listener.asks_to_stop()
    listener.close()
    nobody = Listener(None)
    nobody({"kind": "progress"})
    assert not nobody.listens and not nobody.asks_to_stop()
