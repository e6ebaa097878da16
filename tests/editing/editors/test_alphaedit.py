"""AlphaEdit's promises: text's keys keep their values, and so do the edits before."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model as tiny

from jcl.editing import values
from jcl.editing.editors.alphaedit import AlphaEditState, alphaedit, null_space

LAYERS = (0, 1)
MOMENT = tiny.MOMENTS[np.asarray(LAYERS)]
THRESHOLD = float(np.median(np.linalg.eigvalsh(MOMENT)))


def editor(**options):
    given = {"threshold": THRESHOLD, "ridge": 1e-3, "steps": 4, "rate": 0.3, "clamp": 4.0}
    return alphaedit(tiny.APPLY, MOMENT, LAYERS, **given | options)


EDITOR = editor()
WRITE = jax.jit(EDITOR.write)
STATE = EDITOR.init(tiny.PARAMS, tiny.FACTS)
FIRST, AFTER = WRITE(tiny.PARAMS, STATE, tiny.some(0, 1))


def key(params, fact):
    found = values.at_subjects(tiny.APPLY, params, fact, {"blocks/down:in": LAYERS}, 2)
    return np.asarray(values.mean_key(found["blocks/down:in"])).swapaxes(0, 1)


@pytest.mark.quick
def test_the_projector():
    P = np.asarray(null_space(MOMENT, THRESHOLD), np.float64)
    np.testing.assert_allclose(P @ P, P, atol=1e-5)
    np.testing.assert_allclose(P, P.swapaxes(1, 2), atol=1e-6)
    for p, c in zip(P, np.asarray(MOMENT, np.float64), strict=True):
        assert round(np.trace(p)) == (np.linalg.eigvalsh(c) < THRESHOLD).sum()
        assert np.linalg.eigvalsh(p @ c @ p).max() < 1.001 * THRESHOLD


@pytest.mark.quick
def test_what_text_is_made_of_keeps_its_values():
    change = (tiny.kernel(FIRST) - tiny.kernel(tiny.PARAMS))[list(LAYERS)]
    size = np.abs(change).max(axis=(1, 2))
    assert (size > 1e-3).all()
    for p, delta in zip(np.asarray(STATE.projector), change, strict=True):
        kept = np.eye(tiny.HIDDEN) - p  # any key outside the null space
        assert np.abs(kept @ delta).max() < 1e-4 * np.abs(delta).max()


def test_the_keys_that_were_written_are_kept():
    found = key(FIRST, tiny.some(0, 1)) @ np.asarray(STATE.projector)
    np.testing.assert_allclose(
        AFTER.past, found.swapaxes(1, 2) @ found, rtol=1e-3, atol=1e-3 * np.abs(found).max() ** 2
    )


def test_edits_before_keep_their_values_if_they_are_remembered():
    """How much of a second write the first edits' keys see, with and without the state."""
    ridge = editor(ridge=1.0)
    write, keys = jax.jit(ridge.write), key(FIRST, tiny.some(0, 1))

    def felt(state):
        change = tiny.kernel(write(FIRST, state, tiny.some(2, 3))[0]) - tiny.kernel(FIRST)
        return np.linalg.norm(keys[0] @ change[LAYERS[0]])

    strong = AFTER._replace(past=1e4 * AFTER.past)
    assert felt(strong) < 0.05 * felt(STATE)


def test_one_layer_solves_the_authors_system():
    made = alphaedit(
        tiny.APPLY, MOMENT[1:], (1,), threshold=THRESHOLD, ridge=0.5, steps=4, rate=0.3, clamp=4.0
    )
    past = jnp.asarray(np.random.default_rng(0).normal(size=(24, 3)), jnp.float32)
    empty = made.init(tiny.PARAMS, tiny.FACTS)
    P = np.asarray(empty.projector[0], np.float64)
    K_p = np.asarray(past, np.float64)
    state = AlphaEditState(empty.projector, jnp.asarray(P @ K_p @ K_p.T @ P, jnp.float32)[None])
    params, _ = jax.jit(made.write)(tiny.PARAMS, state, tiny.FACTS)
    change = (tiny.kernel(params) - tiny.kernel(tiny.PARAMS))[1]

    search = values.Search(4, 0.3, 0.5, 0.0625, 4.0, 0.05)
    find = jax.vmap(lambda fact: values.find(
        tiny.APPLY, tiny.PARAMS, fact, "blocks:out", 1, search
    )[0])  # fmt: skip
    R = np.asarray(jax.jit(find)(tiny.FACTS), np.float64)
    K = key(tiny.PARAMS, tiny.FACTS)[1].T.astype(np.float64)  # columns are facts, as in the paper
    left = P @ (K @ K.T + K_p @ K_p.T) + 0.5 * np.eye(24)
    wanted = np.linalg.solve(left, P @ K @ R)
    np.testing.assert_allclose(change, wanted, atol=2e-3 * np.abs(wanted).max())


@pytest.mark.quick
@pytest.mark.parametrize(("options", "said"), [
    ({"threshold": 0.0}, "threshold is 0.0, but must be above 0"),
    ({"ridge": 0.0}, "ridge is 0.0, but must be above 0"),
    ({"together": 0}, "together is 0, but must be at least 1"),
])  # fmt: skip
def test_what_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        editor(**options)


@pytest.mark.quick
def test_the_defaults_are_the_authors_for_gpt_j():
    """hparams/AlphaEdit/EleutherAI_gpt-j-6B.json of jianghoucheng/AlphaEdit."""
    theirs = {
        "layers": (3, 4, 5, 6, 7, 8), "clamp": 0.75, "steps": 25, "rate": 0.5, "decay": 0.5,
        "kl": 0.0625, "threshold": 0.02, "ridge": 10.0,
    }  # fmt: skip
    ours = {k: p.default for k, p in inspect.signature(alphaedit).parameters.items()}
    assert {k: ours[k] for k in theirs} == theirs
