"""GRACE's codebook: its rule of growing and splitting, its capacity, and what it leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import APPLY, CONFIG, EDITS, FACTS, LENGTH, PARAMS, some

from jcl import models
from jcl.editing.editors.grace import grace, remove_edit
from jcl.taps import read

LAYER, SITE = 1, "blocks/down"
EDITOR = grace(APPLY, LAYER, radius=1e-3, capacity=4, steps=60, rate=0.5)
WRITE = jax.jit(EDITOR.write)
BATCH = {"tokens": FACTS["tokens"][:, 0], "segments": FACTS["segments"][:, 0]}
LAST = np.asarray(jnp.argmax(FACTS["mask"][:, 0] > 0, axis=-1))


def start():
    return EDITOR.init(PARAMS, FACTS)


def answers(state, batch):
    return np.asarray(jax.jit(EDITOR.forward(state, APPLY))(PARAMS, batch))


def queries(batch=BATCH, places=LAST):
    """The layer's input at each prompt's last token."""
    pick = lambda h: h[np.arange(len(places)), places]  # noqa: E731
    return np.asarray(read(APPLY, PARAMS, batch, {f"{SITE}:in": (LAYER, pick)})[0][f"{SITE}:in"])


@pytest.fixture(scope="module")
def written():
    return WRITE(PARAMS, start(), FACTS)[1]


def test_keys_are_the_inputs_at_the_last_token_of_the_prompt(written):
    np.testing.assert_allclose(written.keys, queries(), rtol=1e-5)
    np.testing.assert_array_equal(written.radii, np.float32(1e-3))
    np.testing.assert_array_equal(written.edit, [0, 1, 2, 3])
    assert int(written.written) == 4 and int(written.refused) == 0
    labels = [bytes(row[row >= 0].astype(np.uint8)) for row in np.asarray(written.labels)]
    assert labels == [f" {e.target}".encode() for e in EDITS]


def one_byte(prompts, targets):
    """Edits whose target is the byte right after the prompt, which a tiny model can learn."""
    tokens, mask = np.zeros((len(prompts), 1, LENGTH)), np.zeros((len(prompts), 1, LENGTH - 1))
    segments = np.zeros(tokens.shape)
    for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        text = f"{prompt}{target}".encode()
        tokens[row, 0, : len(text)], segments[row, 0, : len(text)] = list(text), 1
        mask[row, 0, len(text) - 2] = 1
    facts = {"tokens": tokens, "segments": segments, "mask": mask}
    facts = {k: jnp.asarray(v, jnp.float32 if k == "mask" else jnp.int32) for k, v in facts.items()}
    return {**facts, "weight": jnp.ones(len(prompts))}


def said(state, prompts):
    """The byte that greedy decoding with a cache writes after each prompt."""
    call = lambda tree, batch: EDITOR.forward(tree[1], APPLY)(tree[0], batch)  # noqa: E731
    ids = [list(p.encode()) for p in prompts]
    return [bytes(r) for r in models.generate(call, (PARAMS, state), CONFIG, ids, steps=1)]


def test_targets_are_written_by_greedy_decoding():
    prompts = [e.prompt for e in EDITS]
    facts = one_byte(prompts, "xyzw")
    before = said(EDITOR.init(PARAMS, facts), prompts)
    assert not set(before) & {b"x", b"y", b"z", b"w"}
    assert said(WRITE(PARAMS, EDITOR.init(PARAMS, facts), facts)[1], prompts) == [
        b"x", b"y", b"z", b"w"
    ]  # fmt: skip


def test_a_batch_of_edits_with_one_key_learns_the_last():
    facts = one_byte(["Rome is"] * 4, "xyzw")
    facts["weight"] = jnp.asarray([1.0, 1.0, 0.0, 0.0])
    state = WRITE(PARAMS, EDITOR.init(PARAMS, facts), facts)[1]
    assert int(jnp.sum(state.used)) == 1
    assert said(state, ["Rome is"]) == [b"y"]


@pytest.mark.quick
def test_inputs_outside_every_radius_are_answered_bit_for_bit_as_before(written):
    text = np.random.default_rng(1).integers(0, 256, (8, LENGTH))
    other = {"tokens": jnp.asarray(text, jnp.int32)}
    base = np.asarray(jax.jit(APPLY)(PARAMS, other))
    np.testing.assert_array_equal(answers(written, other), base)
    here, plain = answers(written, BATCH), np.asarray(jax.jit(APPLY)(PARAMS, BATCH))
    for row, last in enumerate(LAST):  # before the prompt's end nothing has changed either
        np.testing.assert_array_equal(here[row, :last], plain[row, :last])
        assert np.abs(here[row, last] - plain[row, last]).max() > 0.1


def entered(keys, labels, radius=1.0, capacity=4, asked=None):
    """The rule alone, on queries and answers in a model that hands its input to the layer."""
    keys = jnp.asarray(keys, jnp.float32)

    def apply(params, batch, tap):
        x = tap("layer:in", 0, keys[batch["tokens"][:, :1]])
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))
        return tap("layer:out", 0, x @ params["layer"])

    editor = grace(apply, 0, site="layer", radius=radius, capacity=capacity, steps=1)
    count = len(labels)
    facts = {
        "tokens": jnp.stack([jnp.arange(count), jnp.asarray(labels)], axis=1)[:, None],
        "segments": jnp.ones((count, 1, 2), jnp.int32),
        "mask": jnp.ones((count, 1, 1)),
        "weight": jnp.ones(count) if asked is None else jnp.asarray(asked, jnp.float32),
    }
    params = {"layer": jnp.eye(keys.shape[1], 9)}
    return jax.jit(editor.write)(params, editor.init(params, facts), facts)[1]


def test_far_from_every_key_an_edit_has_an_entry_of_its_own():
    state = entered([[0, 0], [2.01, 0]], [5, 5])  # beyond 1 + 1, whatever the answer
    np.testing.assert_array_equal(state.radii[:2], [1, 1])
    np.testing.assert_array_equal(state.used, [True, True, False, False])


def test_near_a_key_with_the_same_answer_its_radius_grows():
    state = entered([[0, 0], [1.5, 0], [0.5, 0]], [5, 5, 5])
    np.testing.assert_array_equal(state.used, [True, False, False, False])
    np.testing.assert_allclose(state.radii[0], 1.5)  # to the farthest, and not back
    np.testing.assert_array_equal(state.keys[0], [0, 0])
    assert int(state.written) == 3


def test_near_a_key_with_another_answer_both_radii_become_half_the_distance():
    state = entered([[0, 0], [1.5, 0]], [5, 6])
    np.testing.assert_allclose(state.radii[:2], [0.75 - 1e-5, 0.75])
    state = entered([[0, 0], [1.5, 0], [0.3, 0]], [5, 6, 7])  # the nearest is the first
    np.testing.assert_allclose(state.radii[:3], [0.15 - 1e-5, 0.75, 0.15], rtol=1e-5)


def test_a_key_asked_again_has_its_answer_replaced():
    state = entered([[3, 4], [3, 4]], [5, 6])
    np.testing.assert_array_equal(state.used, [True, False, False, False])
    assert int(state.labels[0, 0]) == 6 and float(state.radii[0]) == 1


def test_a_full_codebook_refuses_new_entries_and_keeps_the_earlier():
    state = entered([[0, 0], [9, 0], [18, 0], [9.5, 0], [0.5, 0]], [5, 6, 7, 6, 8], capacity=2)
    np.testing.assert_array_equal(state.keys, [[0, 0], [9, 0]])
    np.testing.assert_array_equal(state.radii, [1, 1])  # no split for an edit that isn't made
    np.testing.assert_array_equal(state.labels[:, 0], [5, 6])
    assert (int(state.written), int(state.refused)) == (5, 2)  # the fourth had its entry


def test_edits_of_weight_0_leave_nothing():
    state = entered([[0, 0], [0, 0.5]], [5, 6], asked=[1, 0])
    np.testing.assert_array_equal(state.used, [True, False, False, False])
    assert float(state.radii[0]) == 1 and int(state.written) == 1


def test_one_at_a_time_and_at_once_make_the_same_codebook(written):
    state = start()
    for i in range(4):
        state = WRITE(PARAMS, state, some(i))[1]
    np.testing.assert_allclose(state.keys, written.keys, rtol=1e-5, atol=1e-6)
    for name in ("radii", "labels", "used", "edit"):
        np.testing.assert_array_equal(getattr(state, name), getattr(written, name))
    np.testing.assert_allclose(state.values, written.values, atol=0.02)


def test_removed_edits_are_as_if_never_made(written):
    state = remove_edit(written, 2)
    base, there = np.asarray(jax.jit(APPLY)(PARAMS, BATCH)), answers(written, BATCH)
    found = answers(state, BATCH)
    np.testing.assert_array_equal(found[2], base[2])
    for row in (0, 1, 3):
        np.testing.assert_array_equal(found[row], there[row])
    again = WRITE(PARAMS, state, some(2))[1]  # in the place that is free again
    np.testing.assert_array_equal(again.used, True)
    assert int(again.edit[2]) == 4 and int(again.refused) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": -1}, "layer is -1, but must be at least 0"),
        ({"radius": 0.0}, "radius is 0.0, but must be above 0"),
        ({"capacity": 0}, "capacity is 0, but must be at least 1"),
        ({"steps": 0}, "steps is 0, but must be at least 1"),
        ({"rate": 0.0}, "rate is 0.0, but must be above 0"),
        ({"stop": -1.0}, "stop is -1.0, but must be at least 0"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        grace(APPLY, **{"layer": 0, **arguments})


def test_an_unknown_site_is_refused_by_name():
    editor = grace(APPLY, 0, site="blocks/sideways")
    with pytest.raises(ValueError, match="site is 'blocks/sideways', but must be one of"):
        editor.init(PARAMS, FACTS)
