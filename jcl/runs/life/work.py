"""What a life computes with: the model, its task, the program, and states in and out of folders."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jcl import models, trees
from jcl.data.stream import Arrays
from jcl.measures import probes
from jcl.method import Params, check
from jcl.models import decoder, encoder
from jcl.models.pretrained import HEAD
from jcl.parallel import mesh as meshes
from jcl.parallel import processes, signals
from jcl.program import Program, State, make
from jcl.runs import expression
from jcl.runs.life.rows import Row
from jcl.runs.life.settings import CHUNK, Settings
from jcl.runs.life.tasks import Exam, Task, example_of, score_rows, stage_of, task_of
from jcl.training import checkpoint, origin
from jcl.training.compiled import start
from jcl.training.feed import Feed

WIDTH = 32
"""How many rows are scored at once."""
WHOLE, SLIM = "state", "slim"
"""Folders of a stage's state: all of it; or all but the optimizer's."""


def load_model(settings: Settings) -> models.Model:
    """The model that a life begins with.

    Raises:
      ValueError: if it can't be loaded, or isn't of a kind that learns such rows.
    """
    mesh = mesh_of(settings)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        model = models.load(settings.model)
    kinds = (decoder.Config, encoder.Config) if settings.task == "classify" else (decoder.Config,)
    wanted = " or ".join(kind.__module__.rpartition(".")[2] for kind in kinds)
    name = type(model.config).__module__.rpartition(".")[2]
    check(isinstance(model.config, kinds), f"model for task {settings.task}", name, f"a {wanted}")
    return model


def mesh_of(settings: Settings) -> jax.sharding.Mesh | None:
    """The mesh that the settings name; several processes have one, whether they name it or not."""
    named = processes.axes_or_all(settings.mesh)
    return None if named is None else meshes.make(None, **meshes.parse(named))


class Work:
    """The program of a life, for a number of columns of the head, under one method."""

    def __init__(
        self, settings: Settings, model: models.Model, method: str, labels: Sequence[str],
        room: int = 0,
    ) -> None:  # fmt: skip
        """`room` is how many columns the head has, where rows have labels.

        Raises:
          ValueError: if the method can't be composed, or not with this model and task.
        """
        self.settings, self.model, self.method = settings, model, method
        self.labels, self.room = labels, room
        self.task: Task = task_of(settings.task, model.tokenizer, settings.length, labels)
        made = expression.build(expression.parse(method))
        learns = made.learns
        if learns is not None and room:  # a new head learns whatever a method says
            learns = partial(_learns_or_head, learns)
        self.learns: trees.Trainable = learns or trees.every_leaf
        self.program: Program = make(
            made, model.apply, self.task.loss, optax.adamw(settings.lr), trainable=learns,
            boundary=settings.optimizer, mesh=mesh_of(settings),
        )  # fmt: skip
        self.key = jax.random.key(settings.seed)
        self.scorer = self._read_by_all(score_rows(self.task, self.program))

    def _read_by_all(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """Compiles what is computed of a state, so that every process has all of it."""
        layout = self.program.layout
        if layout is None:
            return jax.jit(compute)
        everywhere = jax.sharding.NamedSharding(layout.mesh, jax.sharding.PartitionSpec())
        return jax.jit(compute, out_shardings=everywhere)

    def wider(self, room: int) -> Work:
        """The same with so many columns of the head."""
        return Work(self.settings, self.model, self.method, self.labels, room)

    @cached_property
    def params(self) -> Params:
        """Where a life begins: the model's parameters, and a head where rows have labels."""
        if not self.room:
            return self.model.params
        wide = self.model.config.width
        # each column has a key of its own, so that a wider head begins with the same columns
        keys = jax.vmap(partial(jax.random.fold_in, self.key))(jnp.arange(self.room))
        kernel = 0.02 * jax.vmap(lambda key: jax.random.normal(key, (wide,)))(keys).T
        head = {"kernel": kernel}
        if isinstance(self.model.config, encoder.Config):  # as transformers has such models
            head["bias"] = jnp.zeros(self.room)
        return {**self.model.params, HEAD: head}

    @cached_property
    def fingerprint(self) -> str:
        """A sum over elements of the model's weights, which tells another model."""
        return origin.sum_of(self.model.params)

    @cached_property
    def ask(self) -> Callable[[State], dict[str, float]]:
        """`(state) -> shares of right answers`, by the probes that the settings name.

        Raises:
          ValueError: if one isn't known, or isn't on this machine.
        """
        names, model = self.settings.probe, self.model
        if not names:
            return lambda state: {}
        asked = [probes.read(name, limit=self.settings.items) for name in names]
        length = min(512, model.config.context)
        found = probes.evaluator(probes.encode(asked, model.tokenizer, length, rows=4))
        answer = self._read_by_all(partial(found, self.program))
        return lambda state: dict(zip(names, np.asarray(answer(state)).tolist(), strict=True))

    def first(self, example: Arrays, params: Params = None) -> State:
        """The state before any training.

        Args:
          example: a batch, read for shapes and dtypes only.
          params: where training starts; None is where the life began.
        """
        return self._start(example, params).make()

    def _start(self, example: Arrays, params: Params = None) -> Any:
        rows = {k: v for k, v in example.items() if k not in ("weight", "task")}
        stream = stage_of("example", 0, rows, len(example["weight"]), CHUNK, 0)
        feed = Feed(stream, self.program.layout, 1)
        params = self.params if params is None else params
        return start(self.program, params, self.key, feed, None, self.model.collections)

    def save(self, folder: Path, state: State, whole: bool = True, replace: bool = False) -> None:
        """Writes a state, without the leaves that don't learn, which are the model's own.

        Args:
          folder: the stage's.
          state: the state after it.
          whole: whether the optimizer's is written too.
          replace: whether it takes the place of one that is there, of which nothing is left.

        Raises:
          OSError: if it can't be written; what was there before is untouched.
        """
        kept = state._replace(params=trees.partition(state.params, self.learns)[0])
        kept = kept if whole else kept._replace(optimizer=())
        place = folder / (WHOLE if whole else SLIM)
        processes.from_leader(lambda: checkpoint.tidy(place))  # of a save that was cut short
        step = processes.from_leader(lambda: checkpoint.newest(place)) + 1 if replace else 0
        checkpoint.save(place, step, {"state": kept})
        if replace:
            processes.from_leader(lambda: checkpoint.drop_older(place))

    def load(self, folder: Path, example: Arrays) -> tuple[State, bool]:
        """A stage's state, and whether it is whole; else its optimizer begins anew.

        Raises:
          ValueError: if there is none that is whole, or it is of another program.
        """
        begun = self._start(example)
        made = begun.make()
        frozen = trees.partition(made.params, self.learns)[1]
        like = begun.like._replace(params=trees.partition(begun.like.params, self.learns)[0])
        for name, form in ((WHOLE, like), (SLIM, like._replace(optimizer=()))):
            found = checkpoint.restore(folder / name, {"state": form})
            signals.stop()
            if found is not None:
                state = found[0]["state"]
                state = state._replace(params=trees.merge(state.params, frozen))
                if name == SLIM:
                    state = state._replace(optimizer=made.optimizer)
                return state, name == WHOLE
        raise ValueError(f"{folder} has no whole state, but must have one; is a file damaged?")

    def score(self, state: State, exam: Exam, task: int) -> np.ndarray:
        """What each item of a test adds to its score, and its weight: float64 [items, 2].

        Args:
          state: the model's.
          exam: the test.
          task: of the test's rows.
        """
        count = len(exam.item)
        pad = -count % WIDTH
        index = np.minimum(np.arange(count + pad), count - 1)
        found = np.zeros((exam.item.max() + 1, 2))
        weight = np.ones(count + pad, np.float32)
        weight[count:] = 0
        tasks = np.full(count + pad, task, np.int32)
        rows = {k: x[index] for k, x in exam.arrays.items()} | {"weight": weight, "task": tasks}
        for at in range(0, count + pad, WIDTH):
            part = {k: x[at : at + WIDTH] for k, x in rows.items()}
            sums, weights = (np.asarray(x, np.float64) for x in self.scorer(state, part))
            here = exam.item[index[at : at + WIDTH]]
            np.add.at(found, here, np.stack([sums, weights], axis=1))
        return found

    def exam(self, rows: Sequence[Row]) -> Exam:
        """A test of at most `test_rows` rows."""
        return self.task.exam(rows[: self.settings.test_rows])


def _learns_or_head(learns: trees.Trainable, path: str) -> bool:
    return learns(path) or path.startswith(f"{HEAD}/")


def example(task: Task, rows: Sequence[Row], batch: int) -> Arrays:
    """A batch of zeros with the shapes of a task's."""
    return example_of(task.train(rows[:1]), batch)


def mean_of(items: Any) -> float:
    """A test's score, from `Work.score` or the lists that were kept of it."""
    found = np.asarray(items, np.float64)
    return float(found[:, 0].sum() / found[:, 1].sum())


def shapes_of(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Shapes and dtypes as JSON."""
    return {name: [list(x.shape), str(x.dtype)] for name, x in arrays.items()}


def zeros_of(shapes: Mapping[str, Any]) -> Arrays:
    """Zeros of the shapes that `shapes_of` gave."""
    return {name: np.zeros(shape, kind) for name, (shape, kind) in shapes.items()}
