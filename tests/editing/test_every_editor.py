"""Every editor × every invariant. A new editor is one file, one row here, and its own checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model as tiny

from jcl.editing import Editor, recorded, undo
from jcl.editing.editors.alphaedit import alphaedit
from jcl.editing.editors.ft_l import ft_l
from jcl.editing.editors.grace import grace
from jcl.editing.editors.memit import memit
from jcl.editing.editors.rome import rome
from jcl.editing.editors.wise import wise


@dataclass(frozen=True)
class Row:
    """One editor under test."""

    name: str
    build: Callable[..., Editor]
    """Of the model's `apply`, and of the arguments."""
    arguments: dict[str, Any] = field(default_factory=dict)
    bad: tuple[dict[str, Any], ...] = ()
    """Arguments that must be refused, at once or by `init`."""

    def make(self, **changes: Any) -> Editor:
        return self.build(tiny.APPLY, **{**self.arguments, **changes})

    @cached_property
    def editor(self) -> Editor:
        return self.make()

    @cached_property
    def traced(self) -> list[int]:
        """One entry for each time that `write` was traced."""
        return []

    @cached_property
    def write(self) -> Callable[..., Any]:
        recording = recorded(self.editor)

        def counted(params: Any, state: Any, facts: Any) -> Any:
            self.traced.append(1)
            return recording(params, state, facts)

        return jax.jit(counted)

    @cached_property
    def start(self) -> tuple[Any, Any]:
        """Parameters and state before any edit."""
        return tiny.PARAMS, self.editor.init(tiny.PARAMS, tiny.some(0, 1))

    @cached_property
    def stream(self) -> list[tuple[Any, Any, Any]]:
        """What `write` gives for each of three batches of two."""
        out, (params, state) = [], self.start
        for places in ((0, 1), (2, 3), (1, 2)):
            params, state, past = self.write(params, state, tiny.some(*places))
            out.append((params, state, past))
        return out


UNRELATED = {"tokens": tiny.TEXT[0], "segments": jnp.ones((8, 32), jnp.int32)}
BOTH = {"layers": (0, 1), "moment": tiny.MOMENTS[:2], "steps": 4, "rate": 0.3}
TABLE = [
    Row(
        "ft_l",
        ft_l,
        {"layer": 1, "steps": 4, "rate": 1e-2, "bound": 0.01},
        bad=({"rate": -1.0}, {"layer": 3}, {"path": "blocks/low"}),
    ),
    Row(
        "rome",
        rome,
        {"layer": 1, "moment": tiny.MOMENTS[1:2], "steps": 4},
        bad=({"steps": 1}, {"layer": 3}, {"moment": tiny.MOMENTS}, {"path": "blocks/low"}),
    ),
    Row(
        "memit",
        memit,
        {**BOTH, "strength": 5.0},
        bad=({"strength": 0.0}, {"layers": (0,)}, {"path": "blocks/low"}),
    ),
    Row(
        "alphaedit",
        alphaedit,
        {**BOTH, "threshold": 0.5, "ridge": 0.1},
        bad=({"ridge": 0.0}, {"layers": (0,)}, {"path": "blocks/low"}),
    ),
    Row(
        "grace",
        grace,
        {"layer": 1, "radius": 1e-3, "capacity": 8, "steps": 4},
        bad=({"radius": 0.0}, {"capacity": 0}, {"site": "blocks/low"}),
    ),
    Row(
        "wise",
        wise,
        {"layer": 1, "unrelated": UNRELATED, "steps": 4, "rate": 0.3, "each": 2, "shards": 1},
        bad=({"share": 0.0}, {"each": 0}, {"site": "blocks/low"}),
    ),
]
each = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)


def same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def outputs(row: Row, params: Any, state: Any) -> np.ndarray:
    """The edited model's logits at the edits' bare prompts."""
    batch = {"tokens": tiny.FACTS["tokens"][:, 0], "segments": tiny.FACTS["segments"][:, 0]}
    return np.asarray(row.editor.forward(state, tiny.APPLY)(params, batch))


@each
def test_a_stream_is_traced_once(row):
    assert row.editor.name == row.name
    assert len(row.stream) == 3 and len(row.traced) == 1


@each
def test_an_edit_changes_what_is_said(row):
    before = outputs(row, *row.start)
    for params, state, _ in row.stream:
        after = outputs(row, params, state)
        assert np.isfinite(after).all()
        assert np.abs(after - before).max() > 1e-3
        before = after


@each
def test_shapes_and_dtypes_stay(row):
    def kinds(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

    for params, state, _ in row.stream:
        assert kinds((params, state)) == kinds(row.start)


@each
def test_weight_0_changes_nothing(row):
    _, (params, state) = row.stream, row.stream[0][:2]
    blank = {**tiny.some(2, 3), "weight": jnp.zeros(2)}
    after, later, _ = row.write(params, state, blank)
    same((after, later), (params, state))


@each
def test_a_padded_batch_is_written_as_the_unpadded(row):
    params, state = row.stream[0][:2]
    padded, later, _ = row.write(
        params, state, {**tiny.some(2, 0), "weight": jnp.asarray([1.0, 0.0])}
    )
    again, final = jax.jit(row.editor.write)(params, state, tiny.some(2))
    for a, b in zip(jax.tree.leaves((padded, later)), jax.tree.leaves((again, final)), strict=True):
        wide = np.abs(np.asarray(b, np.float32), where=np.isfinite(b), out=np.zeros(b.shape)).max()
        np.testing.assert_allclose(a, b, atol=2e-3 * wide)


@each
def test_undone_bit_for_bit(row):
    params, state, past = row.stream[2]
    back = undo(params, state, past)
    same(back, row.stream[1][:2])
    for _, _, past in (row.stream[1], row.stream[0]):
        back = undo(*back, past)
    same(back, row.start)


@each
def test_little_is_kept_for_the_way_back(row):
    kept = sum(x.nbytes for x in jax.tree.leaves(row.stream[0][2]))
    whole = sum(x.nbytes for x in jax.tree.leaves(row.start))
    assert kept < whole / 2


@pytest.mark.quick
@each
def test_bad_arguments_are_refused_in_a_sentence(row):
    for bad in row.bad:
        with pytest.raises(ValueError, match=r" is .*, but must be "):
            row.make(**bad).init(tiny.PARAMS, tiny.FACTS)
