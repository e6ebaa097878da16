"""The contract of a knowledge editor: pure functions over parameters and a state of its own.

An editor writes a batch of facts at once, or one after another; everything runs inside `jax.jit`
and is traced once for a shape, however long the stream of edits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jcl.method import Apply, Batch, Params
from jcl.records import record

Facts = Batch
"""N edits of P contexts each, right-padded to L tokens (see `editing.encode`); leaves

- `tokens` int32 [N, P, L]: context, prompt and target; row 0 has the bare prompt;
- `segments` int32 [N, P, L]: 1 where a token is real, 0 where it pads;
- `mask` float32 [N, P, L - 1]: 1 where the token that follows is the target's;
- `subject` int32 [N, P]: place of the subject's last token;
- `essence` int32 [N, L], `essence_segments` [N, L], `essence_subject` [N]: `{subject} is a`, whose
  next token some editors hold still;
- `weight` float32 [N]: 0 where an edit only pads the batch.
"""


def _forward(state: Any, apply: Apply) -> Apply:
    return apply


@record
class Editor(NamedTuple):
    """A knowledge editor.

    Args:
      name: as the field calls it.
      init: `(params, facts) -> state`, preallocated; `facts` is an example, read for shapes only.
      write: `(params, state, facts) -> (params, state)`: after it the model answers anew.
      forward: `(state, apply) -> apply`: how the edited model predicts, where the weights are not
        what changed.
    """

    name: str
    init: Callable[[Params, Facts], Any]
    write: Callable[[Params, Any, Facts], tuple[Params, Any]]
    forward: Callable[[Any, Apply], Apply] = _forward
