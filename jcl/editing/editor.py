"""The contract of a knowledge editor: pure functions over parameters and a state of its own.

An editor writes a batch of facts, at once or one after another. Everything runs inside `jax.jit`
and is traced once for each shape, however long the stream of edits is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jcl.method import Apply, Batch, Params
from jcl.records import record

Facts = Batch
"""N edits in P contexts each, padded on the right to L tokens (see `editing.encode`). Its leaves:

- `tokens` int32 [N, P, L]: context, prompt and target; row 0 has no context;
- `segments` int32 [N, P, L]: 1 for a token, 0 for padding;
- `mask` float32 [N, P, L - 1]: 1 where the next token is the target's;
- `subject` int32 [N, P]: the place of the subject's last token;
- `essence` int32 [N, L], `essence_segments` [N, L], `essence_subject` [N]: the prompt
  `{subject} is a`, whose predicted next token some editors keep unchanged;
- `weight` float32 [N]: 0 where an edit only pads the batch.
"""


def _forward(state: Any, apply: Apply) -> Apply:
    return apply


@record
class Editor(NamedTuple):
    """A knowledge editor.

    Args:
      name: its usual name in the field.
      init: `(params, facts) -> state`, preallocated; `facts` is an example, read for shapes only.
      write: `(params, state, facts) -> (params, state)`, after which the model knows the facts.
      forward: `(state, apply) -> apply`, the edited model, for editors that don't change weights.
    """

    name: str
    init: Callable[[Params, Facts], Any]
    write: Callable[[Params, Any, Facts], tuple[Params, Any]]
    forward: Callable[[Any, Apply], Apply] = _forward
