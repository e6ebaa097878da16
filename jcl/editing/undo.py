"""Takes an edit back exactly, by keeping only the leaves that it changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jcl.editing.editor import Editor, Facts
from jcl.method import Params


class Past(NamedTuple):
    """The leaves that a write changed, as they were before; `None` for unchanged ones."""

    params: Params
    state: Any


def recorded(editor: Editor) -> Callable[[Params, Any, Facts], tuple[Params, Any, Past]]:
    """An editor's `write` that also returns what `undo` needs.

    It is `write(params, state, facts) -> (params, state, past)`.
    """

    def write(params: Params, state: Any, facts: Facts) -> tuple[Params, Any, Past]:
        new_params, new_state = editor.write(params, state, facts)
        # a write returns the very arrays that it doesn't change
        past = jax.tree.map(
            lambda old, new: None if new is old else old, (params, state), (new_params, new_state)
        )
        return new_params, new_state, Past(*past)

    return write


def undo(params: Params, state: Any, past: Past) -> tuple[Params, Any]:
    """The parameters and state before a write; of several writes, undo the last one first."""
    return jax.tree.map(
        lambda old, new: new if old is None else old,
        (past.params, past.state), (params, state), is_leaf=lambda x: x is None,
    )  # fmt: skip
