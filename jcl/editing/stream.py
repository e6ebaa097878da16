"""Writes a stream of edits, one after another or in batches, scores it on the way and resumes."""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcl import trees
from jcl.data.stream import Arrays
from jcl.editing.editor import Editor
from jcl.editing.measures import KINDS, Answers, Exam, answers, perplexity, scores
from jcl.editing.requests import pad
from jcl.editing.undo import Past, recorded
from jcl.method import Apply, Batch, Params, check
from jcl.models import decoder
from jcl.training import checkpoint
from jcl.training.folder import whole

Line = dict[str, Any]
"""A row of a stream's log, with what is measured at one point of it; see `run`."""


class Base(NamedTuple):
    """The unedited model's answers, which all editors of a stream can share."""

    answers: Answers
    perplexity: float


class Compiled(NamedTuple):
    """The compiled functions that a stream calls; see `compiled`."""

    editor: Editor
    write: Callable[..., Any]
    score: Callable[..., Any]
    traces: dict[str, int]
    """How often `write` and `score` were traced."""


def compiled(editor: Editor, apply: Apply, config: decoder.Config) -> Compiled:
    """The jitted write and score of an editor, which streams of the same shapes share.

    Args:
      editor: see `Editor`.
      apply: the model.
      config: the decoder's configuration, which gives the cache's shape.
    """
    traces = {"write": 0, "score": 0}
    record = recorded(editor)

    def call(tree: Any, rows: Batch) -> Any:
        return editor.forward(tree[1], apply)(tree[0], rows)

    def write(params: Params, state: Any, facts: Any) -> Any:
        traces["write"] += 1
        new, state, past = record(params, state, facts)
        # only changed leaves are returned, for jit would copy the others
        changed = jax.tree.map(lambda old, new: None if new is old else new, params, new)
        return changed, state, past

    def score(tree: Any, exam: Exam, pieces: jax.Array, text: Batch) -> Any:
        traces["score"] += 1
        return answers(call, tree, config, exam, pieces), perplexity(call, tree, text)

    return Compiled(editor, jax.jit(write), jax.jit(score), traces)


class Result(NamedTuple):
    """The results of a stream."""

    params: Params
    """The edited parameters."""
    state: Any
    """The editor's state."""
    lines: list[Line]
    """One line before the first edit and one for each scoring, the last after the last edit."""
    past: list[Past]
    """What `undo` needs to take back the latest writes of this call, the last one last."""
    base: Base
    """The unedited model's answers."""


def run(
    steps: Compiled,
    params: Params,
    facts: Arrays,
    exam: Exam,
    upstream: Batch,
    *,
    batch: int = 1,
    every: int = 10,
    folder: str | Path | None = None,
    keep: int = 0,
    base: Base | None = None,
    on_line: Callable[[Line], None] | None = None,
) -> Result:
    """Writes a stream of edits and scores the model along it.

    A line has these keys, None where no edit has such a question:
    - `edits`: how many edits are written.
    - `reliability`, `generality`, `locality`, `portability`, and each with `_forced`: the means of
      `measures.scores` over these edits.
    - `now`: the reliability of the edits since the line before; `retained`: that of the edits
      before those.
    - `perplexity`: that of upstream text.
    - `write_seconds` since the line before, and `score_seconds`.

    The first line, at 0 edits, scores the unedited model on all edits.

    With a folder the lines are written to `stream.jsonl`, and with each one a checkpoint of the
    leaves that the editor changes and of its state. Called again with the same arguments, it goes
    on from there, with the same numbers as if it had never stopped.

    Args:
      steps: from `compiled`.
      params: the unedited parameters.
      facts: E edits, from `encode`.
      exam: the questions about the same edits, from `measures.examine`.
      upstream: text whose perplexity is measured, `tokens` int32 [n, B, L], perhaps with `segments`
        and `mask`.
      batch: how many edits are written at once.
      every: how many edits lie between two lines, a multiple of `batch`.
      folder: the folder of the log and checkpoints; None writes none.
      keep: how many of the latest writes can be undone; each holds the leaves that it changed.
      base: that of an earlier stream of the same edits and model; None computes it.
      on_line: called with each line.

    Raises:
      ValueError: if an argument is out of range, facts and exam are of different edits, or the
        folder holds another stream.
    """
    count, asked = len(facts["weight"]), int(np.max(exam.edit)) + 1
    check(batch >= 1, "batch", batch, "at least 1")
    check(every >= 1 and every % batch == 0, "every", every, f"a multiple of {batch}, the batch")
    check(keep >= 0, "keep", keep, "at least 0")
    check(asked == count, "edits of the exam", asked, f"{count}")
    first, text = _facts(facts, 0, batch), jax.tree.map(jnp.asarray, upstream)
    state = steps.editor.init(params, first)

    def scored(edits: int) -> tuple[Answers, float]:
        questions = int(np.sum((exam.edit >= 0) & (exam.edit < edits)))
        pieces = jnp.int32(-(-questions // exam.edit.shape[1]))
        said, lost = steps.score((params, state), exam, pieces, text)
        return jax.tree.map(np.asarray, said), float(lost)

    if base is None:
        base = Base(*scored(count))
    owned = jax.tree.map(lambda x: True, jax.eval_shape(steps.write, params, state, first)[0])
    log = _Log(None if folder is None else Path(folder), steps.editor, facts, exam, batch, every)
    found = log.restore((_changed_leaves(params, owned), state))
    done = 0
    if found is not None:
        (new, state), done = found
        params = trees.merge(new, params)
    if not log.lines:
        log.write(_line(exam, base.answers, base, 0, 0, base.perplexity), on_line)

    past: deque[Past] = deque(maxlen=keep)
    spent = 0.0
    for at in range(done, count, batch):
        clock = time.perf_counter()
        new, state, before = steps.write(params, state, _facts(facts, at, batch))
        params = trees.merge(new, params)
        jax.block_until_ready((params, state))
        past.append(before)
        del new, before  # or they would be held until the next write
        spent += time.perf_counter() - clock
        now = min(at + batch, count)
        if now % every == 0 or now == count:
            clock = time.perf_counter()
            said, lost = scored(now)
            line = _line(exam, said, base, now, log.lines[-1]["edits"], lost)
            line |= {"write_seconds": spent, "score_seconds": time.perf_counter() - clock}
            spent = 0.0
            log.write(line, on_line)
            log.save(now, (_changed_leaves(params, owned), state))
    return Result(params, state, log.lines, list(past), base)


def _facts(facts: Arrays, start: int, batch: int) -> Any:
    """The edits of one write, filled up to `batch` with weight 0."""
    some = {k: x[start : start + batch] for k, x in facts.items()}
    return jax.tree.map(jnp.asarray, pad(some, batch))


def _changed_leaves(params: Params, owned: Any) -> Params:
    """The leaves that a write changes, with None for the others."""
    return jax.tree.map(
        lambda own, x: x if own else None, owned, params, is_leaf=lambda x: x is None
    )


def _line(exam: Exam, said: Answers, base: Base, edits: int, before: int, lost: float) -> Line:
    """A row of the log; the row at 0 edits scores all edits before any is written."""
    found = scores(exam, said, base.answers)
    line: Line = {"edits": edits}
    for name in (*KINDS, *(f"{k}_forced" for k in KINDS)):
        line[name] = _mean(found[name][: edits or None])
    line["now"] = _mean(found["reliability"][before:edits])
    line["retained"] = _mean(found["reliability"][:before])
    line["perplexity"] = lost
    return line


def _mean(values: np.ndarray) -> float | None:
    """The mean of the values that aren't NaN, None if there are none."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else None


class _Log:
    """A stream's folder: `stream.json` identifies the stream; `stream.jsonl` and `checkpoints`."""

    def __init__(
        self, folder: Path | None, editor: Editor, facts: Arrays, exam: Exam, batch: int, every: int
    ) -> None:
        self.lines: list[Line] = []
        self.folder = folder
        if folder is None:
            return
        digest = hashlib.sha256()
        for x in (*(facts[k] for k in sorted(facts)), *exam):
            digest.update(np.ascontiguousarray(x).tobytes())
        about = {
            "editor": editor.name, "edits": len(facts["weight"]), "batch": batch, "every": every,
            "sha256": digest.hexdigest(),
        }  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        card = folder / "stream.json"
        if card.exists():
            there = json.loads(card.read_text())
            for name, value in about.items():
                check(
                    there.get(name) == value, name, value,
                    f"{there.get(name)!r}, as in the stream that {card} is of",
                )  # fmt: skip
        with whole(card) as partial:
            partial.write_text(json.dumps(about, indent=1))

    def restore(self, like: Any) -> tuple[Any, int] | None:
        """The last checkpoint and how many edits it has; reads the lines up to there."""
        if self.folder is None:
            return None
        found = checkpoint.restore(self.folder / "checkpoints", like)
        done = 0 if found is None else found[1]
        path = self.folder / "stream.jsonl"
        if path.exists():  # a killed run's lines after its last checkpoint are logged again
            for text in path.read_text().splitlines():
                try:
                    line = json.loads(text)
                except ValueError:
                    break  # cut off in mid-line
                if line["edits"] <= done:
                    self.lines.append(line)
        with whole(path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        return found

    def save(self, edits: int, tree: Any) -> None:
        if self.folder is not None:
            checkpoint.save(self.folder / "checkpoints", edits, tree)

    def write(self, line: Line, on_line: Callable[[Line], None] | None) -> None:
        self.lines.append(line)
        if self.folder is not None:
            with (self.folder / "stream.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        if on_line is not None:
            on_line(line)
