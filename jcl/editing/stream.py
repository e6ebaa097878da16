"""A stream of edits: written one after another or in batches, scored along the way, resumable."""

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

from jcl import checkpoint, trees
from jcl.data.stream import Arrays
from jcl.editing.editor import Editor
from jcl.editing.measures import KINDS, Answers, Exam, answers, perplexity, scores
from jcl.editing.requests import pad
from jcl.editing.undo import Past, recorded
from jcl.method import Apply, Batch, Params, check
from jcl.models import decoder

Line = dict[str, Any]
"""What is measured at one point of a stream; see `run`."""


class Base(NamedTuple):
    """What the unedited model says, which editors of one stream can share."""

    answers: Answers
    perplexity: float


class Result(NamedTuple):
    """What a stream leaves behind."""

    params: Params
    state: Any
    lines: list[Line]
    """A line before the first edit, one for each scoring, the last after the last edit."""
    past: list[Past]
    """What `undo` takes the latest writes back with, the last one last."""
    base: Base
    traces: dict[str, int]
    """How often `write` and `score` were traced."""


def run(
    editor: Editor,
    apply: Apply,
    config: decoder.Config,
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

    A line has `edits`, how many are written; for all of these the means of what
    `measures.scores` gives: `reliability`, `generality`, `locality`, `portability` by decoding, and
    each with `_forced`; `now`, the reliability of the edits since the line before, and `retained`,
    that of all edits before those; `perplexity` of upstream text; `write_seconds` since the line
    before, and `score_seconds`. What no edit has is None. The first line, at 0 edits, is of the
    unedited model and of all edits.

    A write is one compiled function, and so is a scoring, however long the stream is.

    With a folder the lines are in `stream.jsonl`, and at each one a checkpoint is made of the
    leaves that the editor changes and of its state. Called again with the same arguments, it goes
    on from there, with the same numbers as if it had never stopped.

    Args:
      editor: see `Editor`.
      apply: the model.
      config: the decoder's.
      params: unedited.
      facts: E edits, from `encode`.
      exam: of the same edits, from `measures.examine`.
      upstream: text to keep, `tokens` [n, B, L] and maybe `segments` and `mask`.
      batch: edits written at once.
      every: edits between two lines, a multiple of `batch`.
      folder: where it can be resumed; None keeps nothing.
      keep: how many of the latest writes can be undone; each keeps what it has changed.
      base: of an earlier stream of the same edits.
      on_line: called with each line.

    Raises:
      ValueError: if an argument is out of range, facts and exam are of different edits, or the
        folder holds another stream.
    """
    count = len(facts["weight"])
    check(batch >= 1, "batch", batch, "at least 1")
    check(every >= 1 and every % batch == 0, "every", every, f"a multiple of {batch}, the batch")
    check(keep >= 0, "keep", keep, "at least 0")
    check(
        int(exam.edit.max()) + 1 == count, "edits of the exam", int(exam.edit.max()) + 1, f"{count}"
    )
    first = _facts(facts, 0, batch)
    state = editor.init(params, first)
    owned = _changed(editor, params, state, first)
    traces = {"write": 0, "score": 0}
    write_one = recorded(editor)

    def written(params: Params, state: Any, facts: Any) -> Any:
        traces["write"] += 1
        new, state, past = write_one(params, state, facts)
        return _some(new, owned), state, past

    def scored(tree: Any, pieces: jax.Array, text: Batch) -> tuple[Answers, jax.Array]:
        traces["score"] += 1

        def call(tree: Any, rows: Batch) -> Any:
            return editor.forward(tree[1], apply)(tree[0], rows)

        said = answers(call, tree, config, exam, pieces)
        return said, perplexity(call, tree, text)

    write, score = jax.jit(written), jax.jit(scored)
    text = jax.tree.map(jnp.asarray, upstream)

    def asked(tree: Any, edits: int) -> tuple[Answers, float]:
        rows = exam.edit.shape[1]
        questions = int(np.sum((exam.edit >= 0) & (exam.edit < edits)))
        said, lost = score(tree, jnp.int32(-(-questions // rows)), text)
        return jax.tree.map(np.asarray, said), float(lost)

    if base is None:
        base = Base(*asked((params, state), count))
    log = _Log(None if folder is None else Path(folder), editor, facts, exam, batch, every)
    found = log.restore((_some(params, owned), state))
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
        new, state, before = write(params, state, _facts(facts, at, batch))
        params = trees.merge(new, params)
        jax.block_until_ready(state)
        past.append(before)
        del before  # or what the write changed would be held even where none is kept
        spent += time.perf_counter() - clock
        now = min(at + batch, count)
        if now % every == 0 or now == count:
            clock = time.perf_counter()
            said, lost = asked((params, state), now)
            line = _line(exam, said, base, now, log.lines[-1]["edits"], lost)
            line |= {"write_seconds": spent, "score_seconds": time.perf_counter() - clock}
            spent = 0.0
            log.write(line, on_line)
            log.save(now, (_some(params, owned), state))
    return Result(params, state, log.lines, list(past), base, traces)


def _facts(facts: Arrays, start: int, batch: int) -> Any:
    """The edits of one write, filled up with some of weight 0."""
    some = {k: x[start : start + batch] for k, x in facts.items()}
    return jax.tree.map(jnp.asarray, pad(some, batch))


def _changed(editor: Editor, params: Params, state: Any, facts: Any) -> set[str]:
    """Paths of the leaves that a write doesn't just hand on."""
    found: set[str] = set()

    def write(params: Params, state: Any, facts: Any) -> int:
        new, _ = editor.write(params, state, facts)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(new), strict=True
        ):
            if a is not b:
                found.add(trees.path_name(path))
        return 0

    jax.eval_shape(write, params, state, facts)
    return found


def _some(params: Params, owned: set[str]) -> Params:
    return trees.partition(params, lambda path: path in owned)[0]


def _line(exam: Exam, said: Answers, base: Base, edits: int, before: int, lost: float) -> Line:
    """A line; at 0 edits it is of all of them."""
    found = scores(exam, said, base.answers)
    line: Line = {"edits": edits}
    for name in (*KINDS, *(f"{k}_forced" for k in KINDS)):
        line[name] = _mean(found[name][: edits or None])
    line["now"] = _mean(found["reliability"][before:edits])
    line["retained"] = _mean(found["reliability"][:before])
    line["perplexity"] = lost
    return line


def _mean(values: np.ndarray) -> float | None:
    """Over those that are there."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else None


class _Log:
    """A stream's folder: `stream.json`, what stream it is; `stream.jsonl`; `checkpoints`."""

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
        card.write_text(json.dumps(about, indent=1))

    def restore(self, like: Any) -> tuple[Any, int] | None:
        """The last checkpoint and how many edits are in it; the lines up to there."""
        if self.folder is None:
            return None
        found = checkpoint.restore(self.folder / "checkpoints", like)
        done = 0 if found is None else found[1]
        path = self.folder / "stream.jsonl"
        if path.exists():  # what a killed run logged after its last checkpoint comes again
            for text in path.read_text().splitlines():
                try:
                    line = json.loads(text)
                except ValueError:
                    break  # cut off in mid-line
                if line["edits"] <= done:
                    self.lines.append(line)
        path.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
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
