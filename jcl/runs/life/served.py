"""A life as the parts of a run that `jcl export` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from jcl.data import Stream
from jcl.data.stream import Arrays
from jcl.program import State
from jcl.runs.experiment import Experiment, Setup
from jcl.runs.life.book import load_rows
from jcl.runs.life.life import Life
from jcl.runs.life.tasks import stage_of


def parts(folder: Path) -> tuple[Experiment, Setup, State, list[int]]:
    """An experiment, a setup and the current state of a life, and which task each test is.

    Its stream has a batch of each stage that led to the state and of which rows are left.

    Raises:
      ValueError: if it is no life, or one that has learned nothing.
    """
    life = Life(folder)
    state, settings = life.state, life.settings
    work = life.work()
    line = life.book.lineage()
    streams = []
    for task, stage in enumerate(line):
        rows = load_rows(life.book.place(stage.number) / "train.jsonl")
        if rows:
            arrays = work.task.train(rows)
            streams.append(stage_of(stage.name, task, arrays, settings.batch, 1, 0))

    def chunk(stage: int, start: int, stop: int) -> Arrays:
        return streams[stage].chunk(0, start, stop)

    def fetch(source: Any, rows: Arrays) -> Any:
        return {name: jnp.asarray(x) for name, x in rows.items()}

    names = tuple(one.names[0] for one in streams)
    numbered, steps = tuple(range(len(names))), (1,) * len(names)
    stream = Stream(
        names, numbered, steps, chunk, lambda stage: chunk(stage, 0, 1), (), fetch, names, ()
    )
    built = Experiment(
        name=folder.name,
        scenario="a life",
        stream=lambda seed: stream,
        init=lambda key: work.params,
        apply=life.base.apply,
        loss=work.task.loss,
        optimizer=optax.adamw,
        evaluate=lambda program, state: jnp.asarray(np.nan),
        learning_rate=settings.lr,
        boundary=settings.optimizer,
        trainable=work.learns,
        model=life.base,
    )
    setup = Setup(work.program, work.params, work.key, stream)
    return built, setup, state, list(range(len(line)))
