"""Taking an edit back, bit for bit, with no more kept than what it changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jcl.editing.editor import Editor, Facts
from jcl.method import Params


class Past(NamedTuple):
    """What a write has changed, as it was; `None` where a leaf is still the same."""

    params: Params
    state: Any


def recorded(editor: Editor) -> Callable[[Params, Any, Facts], tuple[Params, Any, Past]]:
    """`write(params, state, facts) -> (params, state, past)`, from which `undo` goes back."""

    def write(params: Params, state: Any, facts: Facts) -> tuple[Params, Any, Past]:
        new_params, new_state = editor.write(params, state, facts)
        # what a write doesn't change, it hands on
        past = jax.tree.map(
            lambda old, new: None if new is old else old, (params, state), (new_params, new_state)
        )
        return new_params, new_state, Past(*past)

    return write


def undo(params: Params, state: Any, past: Past) -> tuple[Params, Any]:
    """Parameters and state before a write; of several writes the last is taken back first."""
    return jax.tree.map(
        lambda old, new: new if old is None else old,
        (past.params, past.state), (params, state), is_leaf=lambda x: x is None,
    )  # fmt: skip
