"""EProj: who shares a projector, whose never moves, and how it is found again."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods, trees
from jcl.models import decoder, multimodal, vision

TASKS, STEPS, ROWS = 3, 4, 4
CONFIG = multimodal.Config(
    vision.Config(image=4, patch=2, layers=1, width=12, heads=2, hidden=16),
    decoder.Config(vocabulary=16, layers=1, width=16, heads=2, kv_heads=1, hidden=24),
)
APPLY = multimodal.apply_fn(CONFIG)
TOWER = vision.apply_fn(CONFIG.vision)
PARAMS = multimodal.init(jax.random.key(0), CONFIG)


def stream() -> dict[str, jax.Array]:
    """Task 0 and 2 look and ask alike; task 1 does neither."""
    draw = np.random.default_rng(0)
    shape = (TASKS, STEPS, ROWS)
    kind = np.array([0, 1, 0])[:, None, None]
    pattern = draw.normal(size=(2, 4, 4, 1))
    image = 3 * pattern[kind] + 0.1 * draw.normal(size=(*shape, 4, 4, 1))
    tokens = draw.integers(0, 16, (*shape, 5))
    tokens[..., :3] = np.where(kind[..., None] == 0, [1, 2, 3], [9, 8, 7])
    mask = np.broadcast_to(np.array([0, 0, 1, 1], np.float32), (*shape, 4))
    task = np.broadcast_to(np.arange(TASKS)[:, None, None], shape)
    made = {"image": image.astype(np.float32), "tokens": tokens, "mask": mask, "task": task}
    return {
        k: jnp.asarray(v if v.dtype.kind == "f" else v.astype(np.int32)) for k, v in made.items()
    }


STREAM = stream()
FIRST = {k: v[:, 0] for k, v in STREAM.items()}


def program(**arguments: Any) -> jcl.Program:
    made = methods.eproj(**({"slots": 3} | arguments))
    return jcl.make(
        made, APPLY, losses.next_token, optax.adamw(1e-2, weight_decay=0.1),
        trainable=multimodal.projector_and_adapters,
    )  # fmt: skip


def stages(given: jcl.Program) -> list[jcl.State]:
    states = [given.init(PARAMS, {k: v[0] for k, v in FIRST.items()}, jax.random.key(1))]

    @jax.jit
    def stage(state: jcl.State, batches: Any) -> jcl.State:
        state, _ = jax.lax.scan(given.step, state, batches)
        return given.consolidate(state, batches)

    for task in range(TASKS):
        states.append(stage(states[-1], {k: v[task] for k, v in STREAM.items()}))
    return states


def features(batch: Any) -> np.ndarray:
    """By hand: the mean patch, and the mean embedding of the first three tokens."""
    image = np.asarray(TOWER(PARAMS["vision"], batch)).mean(axis=1)
    text = np.asarray(PARAMS["embed"]["table"])[np.asarray(batch["tokens"])[:, :3]].sum(axis=1)
    both = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)]
    return np.concatenate(both, axis=1) / np.sqrt(2)


def slot(params: Any, which: int) -> Any:
    return jax.tree.map(lambda x: np.asarray(x[which]), params["projector"])


@pytest.fixture(scope="module")
def apart() -> list[jcl.State]:
    return stages(program(threshold=1.0))


def test_keys_are_the_sums_of_features_of_length_one(apart: list[jcl.State]) -> None:
    keys = apart[-1].methods["eproj"].keys
    for task in range(TASKS):
        each = [features({k: v[task, i] for k, v in STREAM.items()}) for i in range(STEPS)]
        np.testing.assert_allclose(np.linalg.norm(each[0], axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(keys[task], np.concatenate(each).sum(axis=0), rtol=1e-4)


def test_the_key_is_where_the_pull_loss_is_least(apart: list[jcl.State]) -> None:
    """Σ 1 - cos(f, k) has no gradient there."""
    key = apart[1].methods["eproj"].keys[0]
    every = jnp.concatenate(
        [features({k: v[0, i] for k, v in STREAM.items()}) for i in range(STEPS)]
    )

    def pull(k: jax.Array) -> jax.Array:
        return jnp.sum(1 - every @ k / jnp.linalg.norm(k))

    assert jnp.linalg.norm(jax.grad(pull)(key)) < 1e-4
    assert jnp.linalg.norm(jax.grad(pull)(key + jnp.eye(len(key))[0])) > 1e-3


@pytest.mark.quick
def test_what_only_fills_a_batch_is_in_no_key() -> None:
    """A filler in the place of an image, a row of padding, and one of which no token counts."""
    rows = {k: v[0] for k, v in FIRST.items()}
    asked = {**rows, "has_image": jnp.array([1, 1, 0, 0]), "weight": jnp.array([1.0, 1, 1, 0])}
    asked["mask"] = rows["mask"].at[1].set(0.0)
    given = program()
    keys = []
    for filler in (7.0, -3.0):
        batch = {**asked, "image": rows["image"].at[2:].set(filler)}
        state, _ = jax.jit(given.step)(given.init(PARAMS, batch, jax.random.key(1)), batch)
        keys.append(state.methods["eproj"].keys[0])
    both = features(rows)
    width = CONFIG.vision.width
    alone = both[2].copy()  # of the row without an image its question alone
    alone[:width] = 0
    wanted = both[0] + alone / np.linalg.norm(alone)
    np.testing.assert_allclose(keys[0], wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(keys[0], keys[1])


@pytest.mark.quick
def test_each_stage_moves_its_own_projector_and_nothing_else(apart: list[jcl.State]) -> None:
    for task in range(TASKS):
        before, after = apart[task], apart[task + 1]
        for which in range(3):
            pairs = zip(
                jax.tree.leaves(slot(before.params, which)),
                jax.tree.leaves(slot(after.params, which)),
                strict=True,
            )
            moved = [bool((a != b).any()) for a, b in pairs]
            assert all(moved) if which == task else not any(moved)
        for path, leaf in jax.tree_util.tree_leaves_with_path(after.params):
            name = trees.path_name(path)
            if not name.startswith("projector/"):
                same = dict(jax.tree_util.tree_leaves_with_path(PARAMS))
                np.testing.assert_array_equal(leaf, same[path])
    start = jax.tree.leaves(PARAMS["projector"])
    for which in range(3):
        for a, b in zip(jax.tree.leaves(slot(apart[0].params, which)), start, strict=True):
            np.testing.assert_array_equal(a, b)


def test_similar_tasks_share(apart: list[jcl.State]) -> None:
    shared = stages(program(threshold=0.9))
    assert [int(s.methods["eproj"].slot) for s in shared[1:]] == [0, 1, 0]
    assert shared[-1].methods["eproj"].last.tolist() == [0, 1, 0]
    assert [int(s.methods["eproj"].slot) for s in apart[1:]] == [0, 1, 2]
    full = stages(program(threshold=1.0, slots=2))  # no room: the most similar one goes on
    assert [int(s.methods["eproj"].slot) for s in full[1:]] == [0, 1, 0]


@pytest.mark.parametrize("predict", ["key", "task"])
def test_a_row_is_read_through_the_projector_of_its_kind(predict: Any) -> None:
    given = program(threshold=0.9, predict=predict)
    state = stages(given)[-1]
    mixed = {k: jnp.concatenate([v[0], v[1]]) for k, v in FIRST.items()}
    if predict == "key":
        mixed["task"] = 1 - mixed["task"]  # which it doesn't read
    found = jax.jit(given.predict)(state, mixed)
    for which, rows in ((0, slice(0, ROWS)), (1, slice(ROWS, None))):
        own = {**PARAMS, "projector": slot(state.params, which)}
        wanted = APPLY(own, {k: v[rows] for k, v in mixed.items()})
        np.testing.assert_allclose(found[rows], wanted, atol=1e-5)
        other = APPLY({**PARAMS, "projector": slot(state.params, 1 - which)}, mixed)[rows]
        assert np.abs(other - wanted).max() > 1e-3


def test_before_training_it_is_the_model() -> None:
    given = program()
    state = given.init(PARAMS, {k: v[0] for k, v in FIRST.items()}, jax.random.key(1))
    asked = {k: v[1] for k, v in FIRST.items()}
    wanted = APPLY(PARAMS, asked)
    np.testing.assert_allclose(given.predict(state, asked), wanted, atol=1e-5)
    text = {k: v for k, v in asked.items() if k != "image"}
    np.testing.assert_allclose(given.predict(state, text), APPLY(PARAMS, text), atol=1e-5)


def test_what_has_no_projector_is_refused() -> None:
    language = {k: v for k, v in PARAMS.items() if k not in ("vision", "projector")}
    made = jcl.make(
        methods.eproj(slots=2), decoder.apply_fn(CONFIG.language), losses.next_token, optax.sgd(0.1)
    )
    batch = {k: v[0] for k, v in FIRST.items() if k != "image"}
    with pytest.raises(ValueError, match=r"learning parameters is .*with a projector among them"):
        made.init(language, batch, jax.random.key(0))
    frozen = jcl.make(
        methods.eproj(slots=2), APPLY, losses.next_token, optax.sgd(0.1),
        trainable=lambda path: path.startswith("embed/"),
    )  # fmt: skip
    with pytest.raises(ValueError, match="with a projector among them"):
        frozen.init(PARAMS, {k: v[0] for k, v in FIRST.items()}, jax.random.key(0))


def test_a_projector_with_adapters_cant_be_each_rows_own() -> None:
    layer = {"kernel": jnp.zeros((2, 3, 4)), "bias": jnp.zeros((2, 4)), "lora": {}}
    with pytest.raises(ValueError, match=r"projector/first of each row's own is .*'lora'"):
        multimodal.project({"first": layer}, jnp.zeros((2, 5, 3)))


@pytest.mark.quick
@pytest.mark.parametrize(
    "other", [methods.gpm, methods.soft_mask, methods.migu], ids=lambda make: make.__name__
)
def test_who_knows_one_thing_of_each_layer_doesn_t_work_on_a_bank(other: Any) -> None:
    made = jcl.make(methods.eproj(slots=2) + other(), APPLY, losses.next_token, optax.sgd(0.1))
    sentence = "eproj keeps several layers at projector/first, .* so eproj and "
    with pytest.raises(ValueError, match=sentence + other.__name__):
        jax.eval_shape(made.init, PARAMS, jax.tree.map(lambda x: x[0], FIRST), jax.random.key(0))
