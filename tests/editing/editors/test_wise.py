"""WISE's side memories: what goes through them, what they may change, and how shards merge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import APPLY, CONFIG, FACTS, HIDDEN, PARAMS, WIDTH, some

from jcl import losses, models
from jcl.editing.editors.wise import ties, wise
from jcl.taps import read

LAYER, SITE = 1, "blocks/down"
RNG = np.random.default_rng(0)
UNRELATED = {
    "tokens": jnp.asarray(RNG.integers(0, 256, (3, 9)), jnp.int32),
    "segments": jnp.asarray(np.arange(9) < np.array([[9], [5], [7]]), jnp.int32),
}
TEXT = {
    "tokens": jnp.asarray(RNG.integers(0, 256, (6, 12)), jnp.int32),
    "segments": jnp.asarray(np.arange(12) < np.array([[12], [8], [3], [12], [9], [5]]), jnp.int32),
}


def editor(**options):
    given = {"steps": 25, "rate": 0.3, "each": 1, "margins": (0.5, 2.0, 1.0), **options}
    return wise(APPLY, UNRELATED, LAYER, **given)


def state_of(deltas, floors, **options):
    """Memories made by hand."""
    made = editor(**options)
    state = made.init(PARAMS, FACTS)
    return made, state._replace(deltas=jnp.asarray(deltas), floors=jnp.asarray(floors))


def inputs(batch):
    """What the layer is given, [B, L, in]."""
    found, _ = read(APPLY, PARAMS, batch, {f"{SITE}:in": (LAYER, lambda h: h)})
    return np.asarray(found[f"{SITE}:in"])


def moved(batch, delta):
    """Mean of ‖k Δ‖ over a row's tokens, in NumPy."""
    size = np.linalg.norm(inputs(batch) @ delta, axis=-1)
    real = np.asarray(batch["segments"])
    return (size * real).sum(-1) / real.sum(-1)


def through(delta, batch):
    """The model with Δ in the kernel."""
    kernel = PARAMS["blocks"]["down"]["kernel"].at[LAYER].add(delta)
    blocks = {**PARAMS["blocks"], "down": {"kernel": kernel}}
    return np.asarray(APPLY({**PARAMS, "blocks": blocks}, batch))


def real_rows(x, batch=TEXT):
    return [row[np.asarray(s) > 0] for row, s in zip(np.asarray(x), batch["segments"], strict=True)]


DELTAS = RNG.normal(size=(3, HIDDEN, WIDTH)).astype(np.float32) * 0.3


def test_a_text_goes_where_it_moves_most_above_the_floor_and_else_is_left_alone():
    mean = np.stack([moved(TEXT, d) for d in DELTAS])
    # the first memory is empty; the floors of the others are such that rows fall on all sides
    ratio = 0.5
    floors = np.array([np.inf, *np.median(mean[1:], axis=1) / ratio], np.float32)
    made, state = state_of(DELTAS, floors, ratio=ratio)
    over = mean > ratio * floors[:, None]
    wanted = np.where(over.any(0), np.where(over, mean, -1).argmax(0), -1)
    assert set(wanted) == {-1, 1, 2}
    found = real_rows(jax.jit(made.forward(state, APPLY))(PARAMS, TEXT))
    plain = real_rows(jax.jit(APPLY)(PARAMS, TEXT))
    for row, memory in enumerate(wanted):
        if memory < 0:
            np.testing.assert_array_equal(found[row], plain[row])  # bit for bit
        else:
            side = real_rows(through(DELTAS[memory], TEXT))[row]
            np.testing.assert_allclose(found[row], side, rtol=2e-4, atol=2e-4)


def test_an_empty_memory_changes_no_bit():
    made = editor()
    state = made.init(PARAMS, FACTS)
    np.testing.assert_array_equal(
        jax.jit(made.forward(state, APPLY))(PARAMS, TEXT), jax.jit(APPLY)(PARAMS, TEXT)
    )


def test_documents_of_a_row_are_routed_each_by_itself():
    one, two = TEXT["tokens"][:1, :6], TEXT["tokens"][1:2, :6]
    packed = {
        "tokens": jnp.concatenate([one, two], axis=1),
        "segments": jnp.repeat(jnp.array([[1, 2]]), 6, axis=1),
    }
    alone = {"tokens": jnp.concatenate([one, two]), "segments": jnp.ones((2, 6), jnp.int32)}
    low, high = sorted(moved(alone, DELTAS[0]))
    made, state = state_of(DELTAS, np.array([(low + high) / 2, np.inf, np.inf]), ratio=1.0)
    apply = made.forward(state, APPLY)
    found, wanted = apply(PARAMS, packed), apply(PARAMS, alone)
    np.testing.assert_allclose(found[0], wanted.reshape(12, -1), rtol=1e-4, atol=1e-4)
    changed = [
        np.abs(x - y).max() > 1e-3 for x, y in zip(wanted, APPLY(PARAMS, alone), strict=True)
    ]
    assert sorted(changed) == [False, True]


def test_what_is_generated_goes_where_its_prompt_went():
    prompts = [row.astype(int).tolist() for row in real_rows(TEXT["tokens"])]
    mean = moved(TEXT, DELTAS[0])
    made, state = state_of(DELTAS, np.array([np.median(mean), np.inf, np.inf]), ratio=1.0)
    call = lambda tree, batch: made.forward(tree, APPLY)(PARAMS, batch)  # noqa: E731
    found = models.generate(call, state, CONFIG, prompts, steps=5)
    for prompt, row, far in zip(prompts, found, mean > np.median(mean), strict=True):
        # the same without a cache, token by token, in the model of the memory that was taken
        kernel = PARAMS["blocks"]["down"]["kernel"].at[LAYER].add(far * DELTAS[0])
        blocks = {**PARAMS["blocks"], "down": {"kernel": kernel}}
        side = {**PARAMS, "blocks": blocks}
        assert row == models.generate(APPLY, side, CONFIG, [prompt], steps=5)[0]
        # and in one pass over prompt and answer, where the question is marked
        whole = jnp.asarray([prompt + row], jnp.int32)
        question = (jnp.arange(whole.shape[1]) < len(prompt)).astype(jnp.int32)[None]
        logits = call(state, {"tokens": whole, "question": question})
        assert np.argmax(logits[0, len(prompt) - 1 : -1], axis=-1).tolist() == row


def test_the_first_step_is_down_the_slope_of_the_kernel_on_the_shards_own_entries():
    # from Δ = 0 the margins have no slope yet, and one step shows the mask
    made = editor(steps=1, rate=0.1, share=0.3)
    write = jax.jit(made.write)
    delta = write(PARAMS, made.init(PARAMS, FACTS), some(0, 2))[1].deltas[1]

    def nll(kernel):
        blocks = {**PARAMS["blocks"], "down": {"kernel": kernel}}
        total = 0.0
        for i in (0, 2):
            tokens, mask = FACTS["tokens"][i], FACTS["mask"][i]
            logits = APPLY({**PARAMS, "blocks": blocks}, {"tokens": tokens})
            lost = losses.next_token_nll(logits, tokens)
            total += jnp.mean(jnp.sum(lost * mask, -1) / jnp.sum(mask, -1)) / 2
        return total

    slope = jax.jit(jax.grad(nll))(PARAMS["blocks"]["down"]["kernel"])[LAYER]
    own = np.asarray(delta) != 0
    assert 0.2 < own.mean() < 0.4
    np.testing.assert_allclose(delta[own], -0.1 * slope[own], rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def one_by_one():
    """The states after each of four edits: two shards of one edit each, two memories."""
    made = editor(memories=2, share=0.4)
    write, states = jax.jit(made.write), [made.init(PARAMS, FACTS)]
    for i in range(4):
        params, state = write(PARAMS, states[-1], some(i))
        assert params["blocks"]["down"]["kernel"].shape == (3, HIDDEN, WIDTH)
        states.append(state)
    return states


def test_an_edit_moves_its_prompts_farther_than_unrelated_texts(one_by_one):
    state = one_by_one[1]
    asked = FACTS["mask"][0] > 0
    last = np.argmax(asked, axis=-1)
    rows = {
        "tokens": FACTS["tokens"][0],
        "segments": jnp.asarray(np.arange(FACTS["tokens"].shape[-1]) <= last[:, None], jnp.int32),
    }
    near, far = moved(rows, np.asarray(state.deltas[2])), moved(UNRELATED, state.deltas[2])
    np.testing.assert_allclose(state.floors[2], near.mean(), rtol=1e-3)
    assert near.mean() > far.mean()
    assert np.abs(state.deltas).max() <= 1.0


def test_each_shard_changes_its_own_entries_and_leaves_the_others_alone(one_by_one):
    first, second = one_by_one[1], one_by_one[2]
    assert (int(first.shard), int(first.held)) == (1, 0)
    np.testing.assert_array_equal(first.deltas[3], 0)
    assert (int(second.shard), int(second.merged)) == (0, 1)  # full, and merged at once
    np.testing.assert_array_equal(second.deltas[1:], 0)
    np.testing.assert_array_equal(second.floors[1:], np.inf)
    assert float(second.floors[0]) <= float(first.floors[2])


def numpy_ties(deltas, weights, density):
    kept = []
    for delta in deltas:
        count = int(density * delta.size)  # as `magnitude` of its merge/utils.py has it
        least = np.sort(np.abs(delta).ravel())[::-1][count - 1]
        kept.append(np.where(np.abs(delta) >= least, delta, 0))
    weighted = np.stack([w * k for w, k in zip(weights, kept, strict=True)])
    sign = np.where(weighted.sum(0) >= 0, 1, -1)
    agree = np.sign(weighted) == sign
    total = (np.asarray(weights)[:, None, None] * agree).sum(0)
    return (weighted * agree).sum(0) / np.where(total == 0, 1, total)


@pytest.mark.parametrize("weights", [(0.5, 0.5, 0.0), (0.2, 0.2, 0.6)])
def test_merging_is_that_of_numpy(weights):
    found = ties(jnp.asarray(DELTAS), jnp.asarray(weights), 0.53)
    np.testing.assert_allclose(found, numpy_ties(DELTAS, weights, 0.53), rtol=1e-5, atol=1e-7)


def test_when_all_memories_are_taken_the_last_is_merged_with_what_comes():
    found = {}
    for memories in (1, 2):
        made = editor(memories=memories, shards=1, density=1.0, share=0.4, steps=5)
        write, state = jax.jit(made.write), made.init(PARAMS, FACTS)
        for i in (0, 1):
            state = write(PARAMS, state, some(i))[1]
        found[memories] = state
        assert int(state.merged) == 2
    apart, both = found[2].deltas[:2], found[1].deltas[0]
    np.testing.assert_allclose(both, numpy_ties(np.asarray(apart), (0.6, 0.4), 1.0), rtol=1e-5)
    assert float(found[1].floors[0]) == float(jnp.min(found[2].floors[:2]))


def test_edits_of_weight_0_change_nothing():
    made = editor()
    state = made.init(PARAMS, FACTS)
    facts = {**some(0), "weight": jnp.zeros(1)}
    after = jax.jit(made.write)(PARAMS, state, facts)[1]
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0, but must be at least 1"),
        ({"shards": 0}, "shards is 0, but must be at least 1"),
        ({"each": 0}, "each is 0, but must be at least 1"),
        ({"memories": 0}, "memories is 0, but must be at least 1"),
        ({"rate": 0.0}, "rate is 0.0, but must be above 0"),
        ({"bound": 0.0}, "bound is 0.0, but must be above 0"),
        ({"share": 0.0}, "share is 0.0, but must be above 0 and at most 1"),
        ({"density": 2.0}, "density is 2.0, but must be above 0 and at most 1"),
    ],
)
def test_bad_arguments_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        editor(**options)


@pytest.mark.quick
def test_an_unknown_site_is_refused_by_name():
    with pytest.raises(ValueError, match="site is 'blocks/sideways', but must be one of"):
        editor(site="blocks/sideways").init(PARAMS, FACTS)
