"""What trackers write, read back by their own libraries' readers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

import jcl
from jcl import data, losses, methods, models, trackers
from jcl.measures.evaluation import accuracy, evaluator

pytestmark = pytest.mark.quick
EVENTS: list[dict[str, Any]] = [
    {"kind": "scores", "stage": 0, "name": "before", "step": 0, "tasks": ("one", "two"),
     "scores": np.array([[0.5, 1, 2], [1, 0, 2], [np.nan] * 3])},
    {"kind": "progress", "step": 3, "loss": 0.5, "examples_per_second": 9.0,
     "scalars": {"ewc/fisher": 2.0}, "learning_rate": 0.1},
    {"kind": "diverged", "member": 1, "step": 3},
    {"kind": "evaluation", "step": 4, "best": True, "tasks": ("one", "two"),
     "scores": np.array([0.25, 0.75])},
]  # fmt: skip
WRITTEN = [
    (0, {"score/one": 0.75, "score/two": 0.5, "score/column 2": 2.0}),
    (3, {"loss": 0.5, "examples per second": 9.0, "ewc/fisher": 2.0, "learning rate": 0.1}),
    (4, {"score/one": 0.25, "score/two": 0.75}),
]


def test_numbers_go_by_name_and_step() -> None:
    found: list[tuple[int, dict[str, float]]] = []
    tracker = trackers.Tracker(lambda n, step: found.append((step, n)), lambda: None)
    for event in EVENTS:
        tracker(event)
    assert found == WRITTEN
    named = trackers.Tracker(lambda n, step: found.append((step, n)), lambda: None, ("a", "b"))
    named(EVENTS[-1])
    assert found[-1] == (4, {"score/a": 0.25, "score/b": 0.75})


def test_event_files_are_read_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    tracker = trackers.tensorboard(tmp_path)
    for event in EVENTS:
        tracker(event)
    tracker.close()
    (path,) = tmp_path.iterdir()
    raw, at, found = path.read_bytes(), 0, {}
    while at < len(raw):  # a record is its length, a sum of that, the bytes, and a sum of them
        size = int.from_bytes(raw[at : at + 8], "little")
        event = Event.FromString(raw[at + 12 : at + 12 + size])
        at += 16 + size
        for value in event.summary.value:
            found[int(event.step), value.tag.replace("_", " ")] = value.simple_value
    wanted = {(s, k.replace("_", " ")): v for s, numbers in WRITTEN for k, v in numbers.items()}
    assert found == pytest.approx(wanted)


def test_weights_and_biases_has_the_run_offline(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    tracker = trackers.wandb("jcl-tests", tmp_path, offline=True, config={"method": "er()"})
    for event in EVENTS:
        tracker(event)
    tracker.close()
    wandb.teardown()  # else the file is whole once the process ends
    (path,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    raw, at, found = path.read_bytes(), 7, []
    while at < len(raw):  # after a header, records as in LevelDB's log: a sum, a length, a type
        size = int.from_bytes(raw[at + 4 : at + 6], "little")
        record = Record.FromString(raw[at + 7 : at + 7 + size])
        at += 7 + size
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
            step = int(items.pop("_step"))
            numbers = {k: float(v) for k, v in items.items() if not k.startswith("_")}
            found.append((step, numbers))
    assert found == WRITTEN


def test_without_the_library_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, package in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=rf"needs {package}, .*'jcl-kit\[{name}\]'"):
            getattr(trackers, name)(str(tmp_path))


def test_fit_tells_several_and_closes_them() -> None:
    tasks = [{"x": np.eye(4, dtype=np.float32), "y": np.arange(4) % 2}]
    stream = data.from_arrays(tasks, tasks, 2, steps=2, names=("one",))
    program = jcl.make(methods.naive(), models.mlp.apply, losses.cross_entropy(), optax.sgd(0.1))
    found: list[Any] = []
    tracker = trackers.Tracker(
        lambda n, step: found.append((step, sorted(n))), lambda: found.append("closed")
    )
    events: list[dict[str, Any]] = []
    jcl.fit(
        program, models.mlp.init(jax.random.key(0), [4, 2]), jax.random.key(1), stream,
        evaluate=evaluator(stream.test, accuracy()), on_event=[events.append, tracker],
    )  # fmt: skip
    speed = ["examples per second", "loss"]
    assert found == [(0, ["score/one"]), (2, speed), (2, ["score/one"]), "closed"]
    assert [event["kind"] for event in events] == ["scores", "progress", "scores"]
