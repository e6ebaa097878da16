"""Each kind of rows is learned and scored, and a stage draws every row once an epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny_text
from tiny_life import SMALL

from jcl.runs.life.life import Life
from jcl.runs.life.rows import Row
from jcl.runs.life.states import start_of_stage
from jcl.runs.life.tasks import longest, stage_of, task_of
from jcl.runs.life.work import zeros_of

ANSWERS = [{"prompt": f"the cat {i}", "answer": " sat on the mat"} for i in range(24)]
CHATS = [
    {"messages": [{"role": "user", "content": f"the cat {i}"},
                  {"role": "assistant", "content": "the dog sat"}]} for i in range(24)
]  # fmt: skip
LABELLED = [{"text": f"{'cat' if i % 2 else 'dog'} {i}", "label": "ab"[i % 2]} for i in range(40)]
PAIRS = [{"prompt": f"cat {i}", "preferred": " mat", "rejected": " sat"} for i in range(24)]


@pytest.mark.parametrize(
    ("task", "rows", "more"),
    [("chat", ANSWERS, {}), ("chat", CHATS, {}), ("classify", LABELLED, {"steps": 40}),
     ("prefer", PAIRS, {"method": "er(capacity=8, rows=2) + dpo()"})],
    ids=["pairs of prompt and answer", "chats", "classify", "prefer"],
)  # fmt: skip
def test_each_kind_is_learned(
    born: Callable[..., Life], task: str, rows: list[Row], more: dict[str, Any]
) -> None:
    given = {"method": "er(capacity=8, rows=2)", **SMALL, "length": 24, **more}
    life = born(rows, **given)
    assert life.settings.task == task
    done = life.stage("jan", rows)
    better = done.scores["jan"] - done.before
    assert better > 0.2 if task in ("classify", "prefer") else better < -0.5, (
        done.before,
        done.scores,
    )


def test_a_head_has_room_for_later_labels_and_grows_beyond(born: Callable[..., Life]) -> None:
    life = born(LABELLED, method="ewc(strength=1.) + er(capacity=8, rows=2)", room=3, **SMALL)
    life.stage("jan", LABELLED)
    later = [{"text": f"mat {i}", "label": "c"} for i in range(20)]
    assert life.stage("feb", later).accepted and life.book.labels == ["a", "b", "c"]
    narrow, stage = life.work(), life.book.lineage()[-1]
    old = life.state
    batch = zeros_of(stage.facts["example"])
    wide = life.works.of(narrow.method, "abcd", 16)
    grown = start_of_stage(life.book, life.work, wide, wide.first(batch), batch)
    before, after = (w.program.predict(s, batch) for w, s in ((narrow, old), (wide, grown)))
    assert before.shape[-1] == 3 and after.shape[-1] == 16
    np.testing.assert_array_equal(after[..., :3], before)  # the function is kept
    fisher = np.asarray(grown.methods["ewc"].fisher["classifier"]["kernel"])
    assert fisher[:, :3].any() and not fisher[:, 3:].any()
    assert np.asarray(grown.params["classifier"]["kernel"])[:, 3:].all()
    said: list[str] = []
    more = [{"text": f"on {i}", "label": "d"} for i in range(20)]
    done = life.stage("march", more, say=said.append)
    assert done.accepted and said[-1] == "room: 16 classes from here on, where the head had 3"
    assert life.state.params["classifier"]["kernel"].shape[-1] == 16
    life.rollback("feb")
    assert life.state.params["classifier"]["kernel"].shape[-1] == 3
    assert life.stage("april", more[:10]).accepted  # its label is known, and the head grows again


@pytest.mark.quick
def test_a_stage_draws_each_row_once_an_epoch() -> None:
    rows = {"x": np.arange(10, dtype=np.int32)}
    stream = stage_of("a", 3, rows, 4, 5, seed=1)
    drawn = np.concatenate([stream.chunk(0, i, i + 1)["x"].ravel() for i in range(5)])
    assert sorted(drawn[:10]) == list(range(10)) and sorted(drawn[10:]) == list(range(10))
    np.testing.assert_array_equal(stream.chunk(0, 0, 5)["x"].ravel(), drawn)
    part = stream.chunk(0, 1, 3, rows=slice(1, 3))
    np.testing.assert_array_equal(part["x"], drawn.reshape(5, 4)[1:3, 1:3])
    edge = stream.boundary(0)
    assert edge["weight"].sum() == 10 and set(edge["x"][edge["weight"] > 0]) == set(range(10))
    assert not np.array_equal(
        stage_of("b", 4, rows, 4, 5, 1).chunk(0, 0, 1)["x"].ravel(), drawn[:4]
    )


@pytest.mark.quick
def test_lengths_are_counted_in_tokens() -> None:
    tokenizer = tiny_text.byte_level()
    sizes = [len(tokenizer(f"the cat {i} sat on the mat")["input_ids"]) + 1 for i in range(24)]
    assert longest("chat", ANSWERS, tokenizer, 1.0) == max(sizes)
    assert longest("classify", [{"text": "", "label": "a"}], tokenizer) >= 1
    assert longest("prefer", PAIRS, None, 1.0) == len("cat 23 mat")
    task = task_of("text", tokenizer, 8, ())
    assert task.train([{"text": "the cat sat"}])["tokens"].dtype == np.int32
