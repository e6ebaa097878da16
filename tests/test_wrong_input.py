"""Wrong or odd inputs, and what must be said of each: one sentence, before anything is computed.

A row is a call and a pattern of its error's message. Nothing is trained: programs are tiny, and
what only a trace can know is traced by shapes alone.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import data, losses, memory, methods, models, probes
from jcl.cli import main
from jcl.data.corpora import Labelled
from jcl.data.questions import Item, Probe
from jcl.measures import metrics
from jcl.measures.evaluation import accuracy, bits_per_byte, by_label, evaluator, nll
from jcl.models import decoder, encoder

KEY = jax.random.key(0)
CLASSES = np.arange(6) % 3
X = np.zeros((6, 4), np.float32)
PARAMS = models.mlp.init(KEY, [4, 3])
ADAM = optax.adam(1e-3)


def rows(y: Any = CLASSES, x: Any = X, **more: Any) -> dict[str, Any]:
    return {"x": x, "y": y, **more}


def stream(y: Any = CLASSES, test: Any = CLASSES, **more: Any) -> data.Stream:
    return data.from_arrays([rows(y, **more)], [rows(test, **more)], batch=3, steps=1)


def program(
    method: Any = None, apply: Any = models.mlp.apply, loss: Any = None, tx: Any = ADAM, **more: Any
) -> jcl.Program:
    method = methods.naive() if method is None else method
    return jcl.make(method, apply, loss or losses.cross_entropy(), tx, **more)


def fit(given: Any = None, made: Any = None, params: Any = PARAMS, **more: Any) -> Any:
    return jcl.fit(made or program(), params, KEY, stream() if given is None else given, **more)


def step(batch: Any = None, params: Any = PARAMS, **made: Any) -> Any:
    """Traces a first state and a step, of which nothing is computed."""
    some = program(**made)
    batch = {k: jnp.asarray(v) for k, v in (batch or rows()).items()}

    def both(params: Any, batch: Any) -> Any:
        return some.step(some.init(params, batch, KEY), batch)

    return jax.eval_shape(both, params, batch)


def score(measure: Any, test: Any, apply: Any = models.mlp.apply, params: Any = PARAMS) -> Any:
    """Traces an evaluation."""
    some = program(apply=apply)
    tests = data.pack([{**test, "task": np.zeros(len(test["y"]), np.int32)}])
    example = {k: jnp.asarray(v) for k, v in rows().items()}
    judge = evaluator(tests, measure)
    return jax.eval_shape(lambda p: judge(some, some.init(p, example, KEY)), params)


def own(outputs: Callable[[Any], Any]) -> Any:
    """A model whose outputs are made of the perceptron's."""
    return lambda params, batch: outputs(models.mlp.apply(params, batch))


SMALL = decoder.Config(vocabulary=64, layers=1, width=8, heads=1, kv_heads=1, hidden=8)
LEARNED = decoder.Config(
    vocabulary=256, layers=1, width=8, heads=1, kv_heads=1, hidden=8, rope=None, context=8
)
READER = encoder.Config(vocabulary=64, layers=1, width=8, heads=1, hidden=8, context=8)


def read(config: Any, tokens: Any, **more: Any) -> Any:
    """A model's outputs for tokens."""
    kind = decoder if isinstance(config, decoder.Config) else encoder
    return kind.apply_fn(config)(kind.init(KEY, config), {"tokens": jnp.asarray(tokens), **more})


def fit_text(given: data.Stream, config: Any = SMALL, **more: Any) -> Any:
    some = jcl.make(methods.naive(), decoder.apply_fn(config), losses.fused_next_token(), ADAM)
    return jcl.fit(some, decoder.init(KEY, config), KEY, given, **more)


def texts(train: str, test: str = "!" * 12, length: int = 12, **more: Any) -> data.Stream:
    given = {"a": ([train], [test])}
    return data.from_text(given, length=length, batch=1, steps=1, cache=False, **more)


def byte_stream(text: bytes) -> data.Stream:
    return data.from_bytes({"a": (text, text)}, length=12, batch=1, steps=1)


def pairs(*answers: str) -> data.Stream:
    from jcl.data.preferences import Pair

    made = [Pair("!!", *answers)]
    return data.from_pairs({"a": (made, made)}, length=8, batch=1, steps=1)


def leaves(**shapes: Any) -> dict[str, np.ndarray]:
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def judged(test: data.Stream, config: Any = SMALL) -> Any:
    """A stream that fits, evaluated on another's tests that don't."""
    judge = evaluator(test.test, bits_per_byte(), losses.with_targets)
    return fit_text(texts("!" * 12), config, evaluate=judge)


class Loader:
    """A torch loader is iterated over and has no arrays."""

    def __iter__(self) -> Any:
        return iter([X])


Y = r"^y of the (stream|test) is from {} to {}, but must be from 0 to 2, for the number of outputs"
TABLE: dict[str, tuple[Callable[[], Any], str]] = {
    # labels
    "labels beyond the head": (lambda: fit(stream(CLASSES + 10)), Y.format(10, 12)),
    "one label beyond the head": (
        lambda: fit(stream(np.array([0, 1, 2, 3, 0, 1]))),
        Y.format(0, 3),
    ),
    "labels of the test beyond the head": (
        lambda: fit(evaluate=evaluator(stream(test=CLASSES + 1).test, accuracy())),
        Y.format(1, 3),
    ),
    "labels of the test beyond the head, by nll": (
        lambda: score(nll(), rows(CLASSES + 1)),
        Y.format(1, 3),
    ),
    "labels below 0": (lambda: stream(CLASSES - 1), r"^y of task 'task 0' goes from -1 to 1"),
    "labels in leaves": (
        lambda: fit({"x": X.reshape(1, 2, 3, 4), "y": CLASSES.reshape(1, 2, 3) * 2}),
        Y.format(0, 4),
    ),
    "labels after a reordering": (
        lambda: fit(data.reorder(stream(CLASSES + 1), [0])),
        Y.format(1, 3),
    ),
    "a column of labels": (
        lambda: step(rows(CLASSES[:, None])),
        r"^y is int32 \[6, 1\], but must be integers \[6\] for cross_entropy",
    ),
    "a column of labels in a test": (
        lambda: score(accuracy(), rows(CLASSES[:, None])),
        r"^y is int32 \[6, 1\], but must be integers \[6\] for accuracy",
    ),
    "one-hot labels": (
        lambda: step(rows(np.eye(3, dtype=np.float32)[CLASSES])),
        r"^y is float32 \[6, 3\], .*; of one-hot labels take the argmax",
    ),
    "floats as labels": (
        lambda: step(rows(CLASSES.astype(np.float32))),
        r"^y is float32 \[6\], but must be integers \[6\]",
    ),
    "texts as labels": (
        lambda: stream(np.array(list("abcabc"))),
        r"^y of task 'task 0' is <U1 \[6\], but must be numbers; of texts .*return_inverse",
    ),
    "objects as labels": (
        lambda: stream(np.array([0, 1, None, 0, 1, 2])),
        r"^y of task 'task 0' is object \[6\], but must be numbers",
    ),
    "bytes as rows": (
        lambda: stream(x=np.array([b"ab"] * 6)),
        r"^x of task 'task 0' is \|S2 \[6\], but must be numbers$",
    ),
    "dates as rows": (
        lambda: stream(x=np.zeros(6, "datetime64[s]")),
        r"^x of task 'task 0' is datetime64\[s\] \[6\], but must be numbers",
    ),
    "rows of unequal length": (
        lambda: stream(x=[[1.0], [1.0, 2.0]] * 3),
        r"^x of task 'task 0' can't be an array",
    ),
    "labels that 32 bits can't hold": (
        lambda: stream(CLASSES + 2**40),
        r"^y of task 'task 0' is \(1099511627776, .*within int32",
    ),
    "no labels": (
        lambda: step({"x": X}),
        r"^the batch's columns are .*, but must include y for cross_entropy",
    ),
    "more labels than rows": (
        lambda: stream(np.arange(7) % 3),
        r"^the arrays of task 'task 0' have \{'x': 6, 'y': 7\} rows",
    ),
    "no rows": (lambda: stream(CLASSES[:0], x=X[:0]), r"^task 'task 0' has 0 rows"),
    "a row that is NaN": (
        lambda: stream(x=np.where(np.arange(6)[:, None] == 2, np.nan, X)),
        r"^x of task 'task 0' is NaN or infinite in 1 of its rows, first in row 2",
    ),
    "an array as a task": (
        lambda: data.from_arrays([X], [X], batch=3, steps=1),
        r"^task 'task 0' is a ndarray, but must be a dict of arrays such as x and y",
    ),
    "an empty task": (
        lambda: data.from_arrays([{}], [{}], batch=3, steps=1),
        r"^task 'task 0' is empty, but must be a dict of arrays",
    ),
    "a number as a task": (
        lambda: data.from_arrays([3], [3], batch=3, steps=1),
        r"^task 'task 0' is a int, but must be a dict of arrays",
    ),
    "more tests than tasks": (
        lambda: data.from_arrays([rows()], [rows()] * 2, batch=3, steps=1),
        r"^number of test sets is 2, but must be 1",
    ),
    "a batch larger than a task": (
        lambda: data.from_arrays([rows()], [rows()], batch=7, steps=1),
        r"^batch is 7, but must be at most 6, the rows of 'task 0'",
    ),
    "targets of another size": (
        lambda: step(rows(), loss=losses.squared_error),
        r"^y is int32 \[6\], but must have as many numbers .*float32 \[6, 3\], for squared_error",
    ),
    # outputs
    "outputs of one axis": (
        lambda: step(apply=own(lambda z: z[:, 0])),
        r"^the model's outputs are float32 \[6\], but must be logits \[6, classes\] for cross_entr",
    ),
    "outputs of three axes": (
        lambda: step(apply=own(lambda z: z[:, None])),
        r"^the model's outputs are float32 \[6, 1, 3\], but must be logits \[6, classes\]",
    ),
    "outputs of other rows": (
        lambda: step(apply=own(lambda z: z[:3])),
        r"^the model's outputs are float32 \[3, 3\], but must be logits \[6, classes\]",
    ),
    "a tuple as outputs": (
        lambda: step(apply=own(lambda z: (z, z))),
        r"^the model's outputs are a tuple, but must be logits \[6, classes\]",
    ),
    "a dict as outputs": (
        lambda: step(apply=own(lambda z: {"logits": z})),
        r"^the model's outputs are a dict, but must be logits \[6, classes\]",
    ),
    "nothing as outputs": (
        lambda: step(apply=own(lambda z: None)),
        r"^the model's outputs are a NoneType, but must be logits",
    ),
    "a tuple as outputs, in fit": (
        lambda: fit(made=program(apply=own(lambda z: (z, z)))),
        r"^the model's outputs are a tuple, but must be logits",
    ),
    "a tuple as outputs, in a regression": (
        lambda: step(apply=own(lambda z: (z, z)), loss=losses.squared_error),
        r"^y is int32 \[6\], but .*which are a tuple, for squared_error",
    ),
    "a tuple as outputs, in a test": (
        lambda: score(accuracy(), rows(), own(lambda z: (z, z))),
        r"^the model's outputs are a tuple, but must be logits \[6, classes\] for accuracy",
    ),
    "outputs of three axes in a test": (
        lambda: score(nll(), rows(), own(lambda z: z[:, None])),
        r"^the model's outputs are float32 \[6, 1, 3\], but must be .* for nll",
    ),
    "logits of no tokens": (
        lambda: step({"x": X, "tokens": np.zeros((6, 5), int)}, loss=losses.next_token),
        r"^the model's outputs are float32 \[6, 3\], but must be logits \[6, 5, 'vocabulary'\]",
    ),
    "logits where scores are asked for": (
        lambda: step({"x": X, "tokens": np.zeros((6, 5), int)}, loss=losses.fused_next_token()),
        r"^the model's outputs are float32 \[6, 3\], but must be losses.TokenScores",
    ),
    "a loss that is a vector": (
        lambda: step(loss=lambda apply, params, batch: apply(params, batch)[:, 0]),
        r"^loss is <lambda>, which gives float32 \[6\], but must be one that gives a scalar",
    ),
    "a loss that is a vector, with outputs": (
        lambda: step(loss=lambda apply, params, batch: (batch["weight"], apply(params, batch))),
        r"^loss is <lambda>, which gives float32 \[6\], but must be one that gives a scalar",
    ),
    "a report that is a vector": (
        lambda: step(
            method=jcl.Method("mine", report=lambda state, info: {"all": info.batch["weight"]})
        ),
        r"^shape of 'mine/all' is \(6,\), but must be \(\), a scalar",
    ),
    # what make is given
    "an optimizer that isn't called": (
        lambda: program(tx=optax.adam),
        r"^tx is 'adam', but must be an optax transformation such as optax.adam\(1e-3\), called",
    ),
    "a rate as an optimizer": (lambda: program(tx=1e-3), r"^tx is 'float', but must be an optax"),
    "a line search": (lambda: step(tx=optax.lbfgs()), r"^tx asks for .*, as a line search does"),
    "a method that isn't called": (
        lambda: program(methods.naive),
        r"^method is <function naive.*, but must be a jcl.Method",
    ),
    "methods in a list": (
        lambda: program([methods.naive()]),
        r"^method is \[.*, but must be a jcl.Method",
    ),
    "parameters as a model": (
        lambda: program(apply=PARAMS),
        r"^apply is 'dict', but must be \(params, batch\) -> outputs",
    ),
    "a loss by name": (
        lambda: program(loss="cross_entropy"),
        r"^loss is 'str', but must be \(apply, params, batch\) -> scalar",
    ),
    "a boundary that is no word of ours": (
        lambda: program(boundary="restart"),
        r"^boundary is 'restart', but must be 'keep', 'reset' or 'reset_moments'",
    ),
    "no microbatch": (
        lambda: program(microbatches=0),
        r"^microbatches is 0, but must be at least 1",
    ),
    "collections that are no word of ours": (
        lambda: program(collections="drop"),
        r"^collections is 'drop', but must be 'recompute', 'keep' or 'average'",
    ),
    "integers that learn": (
        lambda: step(params={**PARAMS, "count": jnp.zeros(3, jnp.int32)}),
        r"^params at 'count' is int32, but what learns must be floating",
    ),
    "nothing that learns": (
        lambda: step(trainable=lambda path: path.startswith("layers")),
        r"^trainable is <function .*, but must be true of a leaf among \['dense_0/bias', ",
    ),
    "pairs that don't learn": (
        lambda: step(
            method=methods.lora(rank=2, targets="dense_0"), trainable=lambda path: "bias" in path
        ),
        r"^trainable is <function .*, but must be true of a leaf among \['dense_0/lora/a', 'dense_0"
        r"/lora/b'\], which lora adds to learn and which would do nothing frozen",
    ),
    # streams
    "a scenario as a stream": (
        lambda: fit(data.scenario([rows()], [rows()])),
        r"^stream is a Scenario, but must be a jcl.data.Stream.*; from_scenario makes one",
    ),
    "a loader as a stream": (
        lambda: fit(Loader()),
        r"^stream is a Loader, but must be a jcl.data.Stream.*; from_arrays makes one",
    ),
    "a list of batches as a stream": (
        lambda: fit([rows()]),
        r"^stream is a list, but must be a jcl.data.Stream, or a dict of arrays",
    ),
    "a number as a stream": (lambda: fit(3), r"^stream is a int, but must be a jcl.data.Stream"),
    "rows that aren't in stages": (
        lambda: fit(rows()),
        r"^shape of stream\['x'\] is \(6, 4\), but must be \[stages, steps, rows, ...\]",
    ),
    "batch sizes that differ": (
        lambda: fit(leaves(x=(1, 2, 3, 4), y=(1, 2, 4))),
        r"^stages, steps and rows of stream\['y'\] is \(1, 2, 4\), but must be \(1, 2, 3\)",
    ),
    "more stages of labels": (
        lambda: fit(leaves(x=(1, 2, 3, 4), y=(2, 2, 3))),
        r"^stages, steps and rows of stream\['y'\] is \(2, 2, 3\), but must be \(1, 2, 3\)",
    ),
    "an order that is no permutation": (
        lambda: data.reorder(stream(), [1]),
        r"^order is \(1,\), but must be a permutation of 0 to 0",
    ),
    "no chunk": (lambda: fit(chunk=0), r"^chunk is 0, but must be at least 1"),
    # groups
    "groups below the labels": (
        lambda: fit(
            made=program(methods.er(capacity=4, rows=1, policy="class", groups=2, start=0))
        ),
        r"^y of the stream is from 0 to 2, but must be from 0 to 1, for the groups of er is 2",
    ),
    "groups below the labels, herding": (
        lambda: fit(
            made=program(methods.er(capacity=4, rows=1, policy="herding", groups=1, start=0))
        ),
        r"^y of the stream .* for the groups of er is 1",
    ),
    "groups below the labels, agem": (
        lambda: fit(made=program(methods.agem(capacity=4, rows=1, policy="class", groups=2))),
        r"^y of the stream .* for the groups of agem is 2",
    ),
    "groups below the labels, der": (
        lambda: fit(
            made=program(
                methods.naive() + methods.der(capacity=4, rows=1, policy="class", groups=2)
            )
        ),
        r"^y of the stream .* for the groups of der is 2",
    ),
    "groups below the tasks": (
        lambda: fit(
            data.from_arrays([rows()] * 3, [rows()] * 3, batch=3, steps=1),
            program(methods.er(capacity=4, rows=1, policy="task", groups=2)),
        ),
        r"^task of the stream is from 0 to 2, but must be from 0 to 1, for the groups of er is 2",
    ),
    "no groups": (
        lambda: memory.policy("class", 4),
        r"^groups is None, but must be how many groups policy 'class' balances",
    ),
    "tasks beyond the table of classes": (
        lambda: fit(
            data.from_arrays([rows()] * 2, [rows()] * 2, batch=3, steps=1),
            program(loss=losses.cross_entropy(np.ones((1, 3), bool), "task")),
        ),
        r"^task of the stream is from 0 to 1, but must be from 0 to 0, for the number of tasks",
    ),
    # tokens
    "bytes beyond the vocabulary": (
        lambda: fit_text(texts("hello world")),
        r"^tokens of the stream is from 0 to 119, .* for the vocabulary of the model is 64",
    ),
    "bytes beyond the vocabulary, in windows": (
        lambda: fit_text(byte_stream(b"hello world!")),
        r"^tokens of the stream is from 32 to 119, .* for the vocabulary of the model is 64",
    ),
    "bytes beyond the vocabulary, in a test": (
        lambda: judged(texts("!" * 12, "hello world")),
        r"^tokens of the test is from 0 to 119, .* for the vocabulary of the model is 64",
    ),
    "bytes beyond the vocabulary, from_text": (
        lambda: texts("hello world", vocabulary=64),
        r"^domain 'a': token id is 119, but must be below 64",
    ),
    "bytes beyond the vocabulary, in a test of from_text": (
        lambda: texts("!" * 12, "hello world", vocabulary=64),
        r"^domain 'a \(test\)': token id is 119, but must be below 64",
    ),
    "a pair's answer beyond the vocabulary": (
        lambda: fit_text(pairs("!", "a")),
        r"^rejected_tokens of the stream is from 0 to 97, .* vocabulary",
    ),
    "ids beyond the vocabulary": (
        lambda: read(SMALL, [[1, 64]]),
        r"^token ids is \(1, 64\), but must be from 0 to 63, as the vocabulary is 64",
    ),
    "ids below 0": (lambda: read(SMALL, [[-100, 3]]), r"^token ids is \(-100, 3\)"),
    "ids beyond an encoder's vocabulary": (
        lambda: read(READER, [[1, 64]]),
        r"^token ids is \(1, 64\), but must be from 0 to 63",
    ),
    "a prompt beyond the vocabulary": (
        lambda: models.generate(decoder.apply_fn(SMALL), None, SMALL, [[3, 64]]),
        r"^token id in prompt 0 is 64, but must be below 64",
    ),
    "rows longer than learned positions": (
        lambda: read(LEARNED, np.zeros((1, 9), int)),
        r"^length is 9, but must be at most 8, the context",
    ),
    "rows longer than an encoder's positions": (
        lambda: read(READER, np.zeros((1, 9), int)),
        r"^length is 9, but must be at most 8, the context",
    ),
    "documents longer than learned positions": (
        lambda: fit_text(texts("!" * 12), LEARNED),
        r"^positions of the stream is from 0 to 11, .* for the context of the model is 8",
    ),
    "documents longer than learned positions, in windows": (
        lambda: fit_text(byte_stream(b"!" * 12), LEARNED),
        r"^positions of the stream is from 0 to 11, .* for the context of the model is 8",
    ),
    "documents of a test longer than learned positions": (
        lambda: fit_text(
            texts("!" * 8, length=8),
            LEARNED,
            evaluate=evaluator(texts("!" * 12).test, bits_per_byte(), losses.with_targets),
        ),
        r"^positions of the test is from 0 to 11, .* for the context of the model is 8",
    ),
    "a prompt longer than learned positions": (
        lambda: models.generate(decoder.apply_fn(LEARNED), None, LEARNED, [[3] * 8], steps=2),
        r"^prompt and steps is 10, but must be at most 8",
    ),
    # probes and labelled texts
    "a probe's answer beyond its choices": (
        lambda: probes.encode([Probe("p", (Item("a b", (" c", " d"), 2),))]),
        r"^answer of 'a b' is 2, but must be from 0 to 1, one of its choices",
    ),
    "a probe's answer below its choices": (
        lambda: probes.encode([Probe("p", (Item("a b", (" c", " d"), -1),))]),
        r"^answer of 'a b' is -1, but must be from 0 to 1",
    ),
    "a label that isn't named": (
        lambda: data.encode_labelled([Labelled("a", "spam")], ["ham"], length=4),
        r"^label of row 0 is 'spam', but must be one of \['ham'\]",
    ),
    "a label that is named twice": (
        lambda: data.encode_labelled([Labelled("a", "ham")], ["ham", "ham"], length=4),
        r"^labels is \['ham', 'ham'\], but must be the classes, once each",
    ),
    "sizes of other tasks": (
        lambda: metrics.micro_average([[0, 0], [1, 1]], [1, 2, 3]),
        r"^sizes is \[1.0, 2.0, 3.0\], but must be 2 numbers from 0 on, one a task",
    ),
    "sizes of 0": (
        lambda: metrics.micro_average([[0, 0], [1, 1]], [0, 0]),
        r"^sizes is \[0.0, 0.0\], but must be 2 numbers",
    ),
    # numbers of streams, methods and models
    "epochs and steps": (
        lambda: data.from_arrays([rows()], [rows()], batch=3, steps=1, epochs=1),
        r"^epochs and steps is \(1, 1\), but must be one of the two",
    ),
    "no epoch": (
        lambda: data.from_arrays([rows()], [rows()], batch=3, epochs=0),
        r"^epochs is 0, but must be at least 1",
    ),
    "a seed below 0": (
        lambda: data.from_arrays([rows()], [rows()], batch=3, steps=1, seed=-1),
        r"^seed is -1, but must be from 0 to 2\*\*32 - 1",
    ),
    "tasks that don't divide the classes": (
        lambda: data.split(rows(), rows(), tasks=2),
        r"^tasks is 2, but must be a divisor of 3, the number of classes",
    ),
    "one class": (
        lambda: data.split(rows(CLASSES * 0), rows(CLASSES * 0)),
        r"^number of classes in train is 1, but must be at least 2",
    ),
    "labels of the test that training lacks": (
        lambda: data.split(rows(), rows(CLASSES + 1), tasks=3),
        r"^labels of test is \[3\], but must be among those of train",
    ),
    "images that aren't square": (
        lambda: data.rotated(rows(x=X[:, :3]), rows(x=X[:, :3])),
        r"^pixels of x is 3, but must be a square number",
    ),
    "no angle": (
        lambda: data.rotated(rows(), rows(), ()),
        r"^number of angles is 0, but must be at least 1",
    ),
    "a share above 1": (
        lambda: data.blurry(data.split(rows(), rows(), tasks=3), 1.5),
        r"^share is 1.5, but must be from 0 to 1",
    ),
    "no cycle": (
        lambda: data.recurring(data.split(rows(), rows(), tasks=3), 0),
        r"^cycles is 0, but must be at least 1",
    ),
    "rows of one token": (lambda: texts("!!", length=1), r"length is 1, but must be at least 2"),
    "blank documents": (lambda: texts("  "), r"documents is empty or all blank"),
    "a text as the documents": (
        lambda: data.from_text({"a": ("hello", "hello")}, length=8, batch=1, steps=1, cache=False),
        r"documents is str, but must be many",
    ),
    "a number as a document": (
        lambda: texts(3),
        r"document 0 is int, but must be a text, a \(prompt, answer\) or a list of messages",
    ),
    "a mask that the vocabulary lacks": (
        lambda: data.masked(byte_stream(b"hello world!"), mask=256, vocabulary=256),
        r"^mask is 256, but must be an id from 0 to 255",
    ),
    "more masks and others than there are": (
        lambda: data.masked(byte_stream(b"hello world!"), mask=1, vocabulary=2, replaced=0.3),
        r"^hidden \+ replaced is 1.1, but must be at most 1",
    ),
    "a mask on numbers": (
        lambda: data.masked(stream(), mask=1, vocabulary=2),
        r"^columns of the stream is \['task', 'weight', 'x', 'y'\], but must be of text, with tok",
    ),
    "a phrase of nothing": (
        lambda: data.phrases([[1], []]),
        r"^ids is \[\[1\], \[\]\], but must be phrases of at least one token",
    ),
    "too few sentinels": (
        lambda: data.spans(byte_stream(b"hello world!"), sentinels=[300], end=1, share=0.5),
        r"^number of sentinels is 1, but must be at least 2 ids, as many as a row of 12 tokens has",
    ),
    "marks that are alike": (
        lambda: data.fill_in_the_middle([], "<", "<", ">"),
        r"^marks is \('<', '<', '>'\), but must be three different texts, none empty",
    ),
    "a mark in a document": (
        lambda: list(data.fill_in_the_middle(["a < b"], "<", "|", ">")),
        r"^document is 'a < b', but must be without \['<'\], which mark its parts",
    ),
    "a pair to fill in": (
        lambda: list(data.fill_in_the_middle([("a", "b")], "<", "|", ">")),
        r"^document is 'tuple', but must be a str to cut in three",
    ),
    "rows without masks": (
        lambda: step({"tokens": np.ones((2, 4), int)}, loss=losses.masked_token),
        r"^the batch's columns are .*, but must include mask and targets for masked_token",
    ),
    "a start by inputs of which nothing is known": (
        lambda: methods.svd_lora(start="null"),
        r"^moments is 'None', but must be of the layers' inputs, where start is 'null'",
    ),
    "a start of an unknown kind": (
        lambda: methods.svd_lora(start="largest"),
        r"^start is 'largest', but must be one of \['principal', 'minor', 'previewed', 'preserved'",
    ),
    "dpo where nothing asks for rewards": (
        lambda: step(method=methods.dpo()),
        r"^loss is CrossEntropy, which asks for no rewards, but must be preference.ranking\(\) or",
    ),
    "copr of rows that are no pairs": (
        lambda: step(method=methods.copr(stages=2)),
        r"^the batch's columns are .*, but must include tokens, rejected_tokens, .*: pairs of",
    ),
    "a ranking of rows that are no pairs": (
        lambda: step(loss=jcl.preference.ranking()),
        r"^the batch's columns are .*, but must include tokens, rejected_tokens, .*: pairs of",
    ),
    "fewer bytes than a window": (
        lambda: byte_stream(b"hello"),
        r"^number of bytes of domain 'a' is 5, but must be at least 12, length",
    ),
    "text as bytes": (
        lambda: byte_stream("hello world!"),
        r"^domain 'a' is <U12 \(\), but must be bytes or a uint8 array of one axis",
    ),
    "a tokenizer by name": (
        lambda: texts("hello", tokenizer="gpt2"),
        r"tokenizer is str, but must be a fast tokenizer of transformers",
    ),
    "a mask without classes": (
        lambda: losses.cross_entropy(mask="seen"),
        r"^mask is 'seen' and classes is None, but must be bool \[tasks, C\]",
    ),
    "a mask that there is none of": (
        lambda: accuracy(mask="none"),
        r"^mask is 'none', but must be 'all', 'seen' or 'task'",
    ),
    "smoothing of 1": (
        lambda: losses.fused_next_token(1.0),
        r"^smoothing is 1.0, but must be at least 0 and below 1",
    ),
    "one width": (lambda: models.mlp.init(KEY, [4]), r"^sizes is \[4\], but must be at least"),
    "a width of 0": (lambda: models.mlp.init(KEY, [4, 0]), r"^sizes is \[4, 0\], but must be wid"),
    "heads that don't divide the width": (
        lambda: decoder.Config(width=10, heads=4),
        r"^width is 10, but must be a multiple of 8, twice the heads",
    ),
    "two methods of a name": (
        lambda: jcl.chain(methods.ewc(strength=1.0), methods.ewc(strength=2.0)),
        r"^two methods are named 'ewc'; rename one",
    ),
    "a memory without room": (
        lambda: methods.er(capacity=0, rows=1),
        r"^capacity is 0, but must be at least 1",
    ),
    "a policy that there is none of": (
        lambda: methods.er(capacity=4, rows=1, policy="best"),
        r"^policy is 'best', but must be one of reservoir, ",
    ),
    "scores of one axis": (lambda: metrics.average([1.0, 2.0]), r"^R's shape is \(2,\)"),
    "members of another number": (
        lambda: fit(data.members([stream()] * 2)),
        r"^the stream has 2 members, but must have the program's None",
    ),
    "a best that nothing finds": (
        lambda: fit(keep="best"), r"^keep is 'best', but must be 'last' without evaluate_every",
    ),
    "a keep that is none": (
        lambda: fit(keep="first"), r"^keep is 'first', but must be 'last' or 'best'",
    ),
    "patience without evaluations": (
        lambda: fit(patience=2), r"^patience is 2, but must be None without evaluate_every",
    ),
    "evaluations of nothing": (
        lambda: fit(evaluate_every=2), r"^evaluate_every is 2, but there is no evaluate to be",
    ),
    "evaluations without a step": (
        lambda: fit(evaluate_every=0), r"^evaluate_every is 0, but must be at least 1, or None",
    ),
    "no patience at all": (
        lambda: fit(evaluate_every=1, patience=0), r"^patience is 0, but must be at least 1, or",
    ),
    "all rows held out": (
        lambda: data.hold_out(data.scenario([rows()], [rows()]), 1.0),
        r"^share is 1.0, but must be above 0 and below 1",
    ),
    "a pattern that no run matches": (
        lambda: jcl.results.load("nowhere/*"), r"^where is 'nowhere/\*', but must match a folder",
    ),
    "the results of no folder": (
        lambda: jcl.results.load("nowhere"), r"^nowhere has no summary.json, so it is no finished",
    ),
}  # fmt: skip


@pytest.mark.quick
@pytest.mark.parametrize("name", TABLE)
def test_wrong_input_is_refused_by_one_sentence(name: str) -> None:
    call, pattern = TABLE[name]
    with pytest.raises(ValueError, match=pattern) as caught:
        call()
    assert "\n" not in str(caught.value)


FILES: dict[str, tuple[str, bytes, Callable[[Path], Any], str]] = {
    "a CSV as prose": (
        "a.csv", b"text,label\ngood,1\n", data.read_text, r"no plain text.*read_csv\(text=",
    ),
    "a table with tabs as prose": ("a.tsv", b"a\tb\n", data.read_text, r"no plain text.*read_csv"),
    "JSONL as prose": ("a.jsonl", b'{"a": 1}\n', data.read_text, r"no plain text.*read_jsonl"),
    "parquet as prose": ("a.parquet", b"PAR1", data.read_text, r"no plain text.*read_dataset"),
    "a column that isn't there": (
        "a.csv", b"text,label\ngood,1\n", lambda p: list(data.read_csv(p, "review")),
        r"^column of .*a.csv is 'review', but must be one of \['text', 'label'\]",
    ),
    "a label's column that isn't there": (
        "a.csv", b"text,label\ngood,1\n", lambda p: data.read_csv(p, "text", "stars"),
        r"^column of .*a.csv is 'stars', but must be one of \['text', 'label'\]",
    ),
    "a line of more columns": (
        "a.csv", b"text,label\ngood, really,1\n", lambda p: data.read_csv(p, "text", "label"),
        r"^number of columns of line 2 of .*a.csv is 3, but must be 2",
    ),
    "a CSV that isn't UTF-8": (
        "a.csv", b"text\ncaf\xe9\n", lambda p: list(data.read_csv(p, "text")), r"not UTF-8",
    ),
    "an empty CSV": (
        "a.csv", b"", lambda p: list(data.read_csv(p, "text")), r"'text', but must be one of \[\]",
    ),
    "two texts with a label": (
        "a.csv", b"q,a,label\n", lambda p: data.read_csv(p, ("q", "a"), "label"),
        r"^text is \('q', 'a'\), but must be one column where label is given",
    ),
    "an image that is none": (
        "cat/a.png", b"no image", lambda p: data.read_images(p.parents[1], 4),
        r"a.png can't be read as an image",
    ),
    "a class without images": (
        "cat/a.txt", b"no image", lambda p: data.read_images(p.parents[1], 4),
        r"^number of images in .*cat is 0, but must be at least 1",
    ),
    "a class that isn't named": (
        "cat/a.png", b"no image", lambda p: data.read_images(p.parents[1], 4, ["dog"]),
        r"^classes of .* is \['cat'\], but must be among \['dog'\]",
    ),
    "a folder without classes": (
        "a.png", b"no image", lambda p: data.read_images(p.parent, 4),
        r"but must be one with a folder of images for each class",
    ),
    "a folder that isn't there": (
        "a.png", b"no image", lambda p: data.read_images(p.parent / "no", 4),
        r"^folder is .*no', but must be a folder that is there",
    ),
}  # fmt: skip


@pytest.mark.quick
@pytest.mark.parametrize("name", FILES)
def test_a_wrong_file_is_refused_by_one_sentence(name: str, tmp_path: Path) -> None:
    file, content, call, pattern = FILES[name]
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=pattern) as caught:
        call(path)
    assert "\n" not in str(caught.value)


OWN = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Config:
    size: int = 1

METHODS = ("naive()",)
"""
MINE = "def pull(rate): return 3\ndef boom(): raise KeyError('x')\nLIMIT = 3\nclass Kind: pass\n"
BEGUN = {
    "experiment": "digits", "file": "digits", "config": {"lr": 1e-3}, "methods": ["naive()"],
    "seeds": 1, "sweep": [],
}  # fmt: skip
SUMMARY = {
    "method": "naive()", "measure": "accuracy", "higher_is_better": True, "seeds": 1,
    "stages": ["a"], "stage_tasks": [0], "tasks": ["a"],
}  # fmt: skip
SCORES = "seed,row,after,task,score\n0,0,before,a,0.5\n0,1,a,a,0.9\n"
THERE = {
    "file": "x",
    "full/file": "x",
    "syntax.py": "def build(:\n",
    "raises.py": "x = 1\nraise RuntimeError('no')\n",
    "exits.py": "import sys; sys.exit(3)\n",
    "no_config.py": "x = 1\n",
    "no_build.py": OWN,
    "plain_config.py": "class Config: pass\nMETHODS = ('naive()',)\ndef build(config): return 3\n",
    "no_methods.py": OWN + "METHODS = ()\ndef build(config): return 3\n",
    "a_method.py": OWN + "METHODS = 'naive()'\ndef build(config): return 3\n",
    "no_experiment.py": OWN + "def build(config): return 3\n",
    "build_raises.py": OWN + "def build(config): return {}['name']\n",
    "build_of_nothing.py": OWN + "def build(): return 3\n",
    "no_nodes.py": OWN + "def nodes(config): return []\n",
    "nodes_of_numbers.py": OWN + "def nodes(config): return [3]\n",
    "mine.py": MINE,
    "begun/config.json": json.dumps(BEGUN),
    "begun_with_files/config.json": json.dumps({**BEGUN, "files": {"/gone.py": "0"}}),
    "begun_of_old/config.json": json.dumps({**BEGUN, "config": {"depth": 3}}),
    "begun_cut/config.json": '{"experiment',
    "begun_list/config.json": "[1]",
    "model/config.json": '{"model_type": "llama"}',
    "model_list/config.json": "[1]",
    "model_cut/config.json": '{"model_type',
    "model_unknown/config.json": '{"model_type": "xyz"}',
    "done_cut/summary.json": '{"method',
    "done_list/summary.json": "[1]",
    "done_number/summary.json": "3",
    "done_of_none/summary.json": '{"runs": {}}',
    "done_of_a_number/summary.json": '{"runs": 3}',
    "done_without_scores/summary.json": json.dumps(SUMMARY),
    "done/summary.json": json.dumps(SUMMARY),
    "done/scores.csv": SCORES,
    "done_in_part/summary.json": json.dumps(SUMMARY),
    "done_in_part/scores.csv": SCORES[:46],
    "done_in_bits/summary.json": json.dumps({**SUMMARY, "measure": "bits per byte"}),
    "done_in_bits/scores.csv": SCORES,
    "done_by_many/summary.json": json.dumps(SUMMARY),
    "done_by_many/scores.csv": SCORES,
}
"""What is there where the commands below run, by path."""
FACT = "'The capital of France is' Lyon --to new"
COMMANDS = {
    # the command, and what is run
    "no such command": ("runn digits", "no command is called 'runn'; did you mean run?"),
    "a flag first": ("run --seeds 3", "the experiment comes first, as in: jcl run digits"),
    "no such experiment": ("run digitz", "'digitz'; did you mean digits?"),
    "no such file": ("run own.py", "there is no file own.py"),
    "a folder to run": ("run full", "no experiment is called 'full'; there are adaptation, "),
    "a file that is no Python": ("run syntax.py", "syntax.py can't be run: SyntaxError: "),
    "a file that raises": ("run raises.py", "raises.py can't be run: line 2: RuntimeError: no"),
    "a file that exits": ("run exits.py", "exits.py can't be run: line 1: SystemExit: 3"),
    "a file without Config": ("run no_config.py", "has no Config, which an experiment must"),
    "a file without build": ("run no_build.py", "has no build, which an experiment must"),
    "a Config that is no dataclass": ("run plain_config.py", "but must be a dataclass, whose"),
    "METHODS that are none": ("run no_methods.py", "METHODS of no_methods.py is (), but must be"),
    "METHODS that are a text": ("run a_method.py", "METHODS of a_method.py is 'naive()', but"),
    "a build of something else": ("run no_experiment.py", "build of no_experiment.py returns is 3"),
    "a build that raises": ("run build_raises.py", "can't be run: line 9: KeyError: 'name'"),
    "a build of no config": ("run build_of_nothing.py", "TypeError: build() takes 0 positional"),
    "no nodes": ("run no_nodes.py", "number of nodes is 0, but must be at least 1"),
    "nodes that are none": ("run nodes_of_numbers.py", "is [3], but must be a list of jcl.runs"),
    # flags and settings
    "a flag that there is none of": ("run digits --seed 3", "--seed; did you mean --seeds"),
    "a word too many": ("run digits extra", "jcl run digits doesn't take 'extra'"),
    "a flag without its value": ("run digits --seeds", "Missing value for argument '--seeds'"),
    "no seeds": ("run digits --seeds 0", "seeds is 0, but must be at least 1"),
    "half a seed": ("run digits --seeds 1.5", "--seeds is '1.5', but must be a whole number"),
    "no checkpoints": ("run digits --checkpoint-every 0", "checkpoint-every is 0, but must be"),
    "a rate that is NaN": ("run digits --lr nan", "lr is nan, but must be a finite number"),
    "a rate that is infinite": ("run digits --lr inf", "lr is inf, but must be a finite number"),
    "a rate below 0": ("run digits --lr -1", "lr is -1.0, but must be at least 0"),
    "a rate that is a word": ("run digits --lr fast", "--lr is 'fast', but must be a number"),
    "tasks that don't divide": ("run digits --tasks 3", "tasks is 3, but must be a divisor of 10"),
    "no epochs": ("run digits --epochs 0", "epochs is 0, but must be at least 1"),
    "no steps": ("run digits --steps 0", "steps is 0, but must be at least 1"),
    "no rows in a batch": ("run digits --batch 0", "batch is 0, but must be at least 1"),
    "a batch beyond the data": ("run digits --batch 9999", "batch is 9999, but must be at most 2"),
    "a layer of no width": ("run digits --hidden 0", "hidden is (0,), but must be widths of"),
    "an order of one task": ("run digits --order 0", "order is (0,), but must be a permutation"),
    "a scenario of none": ("run digits --scenario all", "invalid choice 'all' for argument"),
    "classes drawn without steps": ("run digits --draw-classes", "steps is None, but must be"),
    "a setting without a value": ("run digits --set tasks", "--set takes key=value, but got 't"),
    "no such setting": ("run digits --set task=3", "no setting 'task'; did you mean tasks?"),
    "a setting that is no truth": ("run digits --set joint=1", "joint is '1', but must be true"),
    # sweeps
    "a sweep of nothing": ("run digits --sweep lr", "the sweep 'lr' is no key=value,value"),
    "a sweep of one value twice": ("run digits --sweep lr=1,1", "'lr=1,1' has a value twice"),
    "a key swept twice": ("run digits --sweep lr=1 --sweep lr=2", "two sweeps are of the same"),
    "a sweep of a rate that is no number": ("run digits --sweep lr=nan", "lr must be a number"),
    "a sweep of a rate below 0": ("run digits --sweep lr=-1,1", "lr is -1.0, but must be at"),
    "a sweep of words": ("run digits --sweep lr=fast", "lr must be a number"),
    "a sweep of no method's": ("run digits --sweep ewc.strength=1", "a method that isn't run"),
    "a sweep of a strength below 0": (
        "run digits --method ewc() --sweep ewc.strength=-1,1", "ewc: strength is -1.0, but must",
    ),
    "a sweep of no argument": (
        "run digits --method ewc() --sweep ewc.strenght=1", "ewc has no argument 'strenght'",
    ),
    "a sweep of a choice of none": ("run digits --sweep scenario=all", "must be 'class', 'task'"),
    # methods
    "a method that there is none of": ("run digits --method ewcc()", "'ewcc'; did you mean ewc?"),
    "a strength below 0": ("run digits --method ewc(strength=-1)", "strength is -1, but must"),
    "a method of nothing": ("run digits --method ''", "'' is no method; write calls joined by +"),
    "a method that isn't closed": ("run digits --method ewc(", "'ewc(' is no method; write"),
    "a method that is code": ("run digits --method __import__('os')", "'__import__'; there are"),
    "an argument that is a name": ("run digits --method ewc(x)", "ewc's strength is x, but must"),
    "an argument that is twice": (
        "run digits --method 'ewc(1., strength=2.)'", "ewc got 'strength' twice",
    ),
    "a size that is no whole number": (
        "run digits --method er(capacity=1.5)", "capacity is 1.5, but must be a whole number",
    ),
    "an argument that is lacking": ("run digits --method distil()", "distil needs its argument"),
    "a method twice": ("run digits --method 'ewc() + ewc()'", "two methods are named 'ewc'"),
    "a file that isn't there": ("run digits --method ./no.py:f()", "there is no file "),
    "a function that isn't there": (
        "run digits --method ./mine.py:pul(1.)", "has no function 'pul'; did you mean pull?",
    ),
    "a function of no method": (
        "run digits --method ./mine.py:pull(1.)", "pull returned something of type int",
    ),
    "a function that raises": ("run digits --method ./mine.py:boom()", "boom: KeyError: 'x'"),
    "a number as a function": ("run digits --method ./mine.py:LIMIT()", "LIMIT is of type int"),
    "a class as a function": ("run digits --method ./mine.py:Kind()", "Kind is a class, but"),
    "a method for a pipeline": ("run vertical --method ewc()", "whose nodes have their methods"),
    "a sweep of a pipeline": ("run vertical --sweep lr=1", "whose nodes have their methods"),
    "a row that isn't there": ("run survey:olor", "no paper of the survey is 'olor'; did you mean"),
    "a row that is outside": ("run survey:2405.14831", "HippoRAG is outside, so nothing runs it"),
    "a recipe of no stages": ("run recipe --nodes '1 law 2'", "'1 law 2' is no stage of a recipe;"),
    "a recipe of no source": ("run recipe --nodes law", "source is 'law', but must be one of gen"),
    "a source of no files": ("run recipe --files law", "files is 'law', but must be a source's"),
    # where, and going on
    "results into a file": ("run digits --out file", "--out file is a file, but must be a folder"),
    "results into a full folder": ("run digits --out full", "full isn't empty; go on with"),
    "results below a file": ("run digits --out file/new", "file/new can't be written: Not a dir"),
    "going on nowhere": ("run digits --resume", "--resume needs --out, the folder of the run"),
    "going on in a file": ("run digits --resume --out file", "--out file is a file"),
    "going on after a cut": ("run digits --resume --out begun_cut", "config.json can't be read"),
    "going on with a list": ("run digits --resume --out begun_list", "holds a list, but must"),
    "going on in a model": ("run digits --resume --out model", "so it is no run's; choose"),
    "going on with another": ("run mnist --resume --out begun", "was begun with experiment 'dig"),
    "going on with other methods": (
        "run digits --resume --out begun --method ewc()", "begun with methods ['naive()'], so it",
    ),
    "going on with more seeds": ("run digits --resume --out begun --seeds 2", "with seeds 1, so"),
    "going on by rows held out": (
        "run digits --resume --out begun --select-on validation",
        "begun was begun without rows held out of training, so it can't go on with --select-on va",
    ),
    "going on with the best": (
        "run digits --resume --out begun --evaluate-every 5 --keep best",
        "begun was begun with evaluate_every None, so it can't go on with 5",
    ),
    "going on at a rate": ("run digits --resume --out begun --lr 3", "begun with lr 0.001, so it"),
    "going on without a file": (
        "run digits --resume --out begun_with_files", "/gone.py, which isn't there any more",
    ),
    "going on with settings of old": (
        "run digits --resume --out begun_of_old", "begun with depth, which the experiment doesn't",
    ),
    "no mesh": ("run digits --mesh ''", "mesh is '', but must be like 'fsdp=16,tensor=4'"),
    "an axis of none": ("run digits --mesh rows=2", "mesh is 'rows=2', but must be like"),
    "an axis of size 0": ("run digits --mesh data=0", "data is 0, but must be at least 1"),
    "more devices than there are": ("run digits --mesh data=64", "is 64, but must be at most "),
    "no one's process": ("run digits --distributed me", "distributed is 'me', but must be auto"),
    "a process beyond them": ("run digits --distributed a:1,2,5", "index is 5, but must be from"),
    # list and explain
    "a list of nothing": ("list nothing-of-it", "nothing is called 'nothing-of-it'"),
    "a list's flag": ("list --all", "jcl list has no flag --all; there are none"),
    "a list of a broken file": ("list ./syntax.py", "syntax.py can't be run: SyntaxError"),
    "explained by its place": ("explain ewc", "Missing from jcl explain: --method EXPR"),
    "explained of none": ("explain --method ewk", "'ewk'; did you mean ewc"),
    "explained out of range": ("explain --method ewc(-1.)", "strength is -1.0, but must be at"),
    # reproduce
    "a protocol that isn't there": ("reproduce liner", "called 'liner'; did you mean linear?"),
    "a cell that isn't there": ("reproduce linear --cells x", "linear has no cell 'x'; there are"),
    "a table of one": ("reproduce linear --table", "--table is of all protocols, but 'linear' is"),
    "cells of none": ("reproduce --cells x", "are of one protocol, whose NAME is missing"),
    "two of one": ("reproduce --quick --table", "takes one of --quick, --table and --show at a"),
    # compare and report
    "a comparison of none": ("compare", "jcl compare needs folders of runs"),
    "a comparison without a run": ("compare full", "full has no summary.json, so it is no"),
    "a comparison's flag": ("compare done --png x", "no flag --png; there are --baseline, --latex"),
    "a comparison of unlike": ("compare done done_in_bits", "measure different things"),
    "a comparison of cut": ("compare done_cut", "done_cut can't be read as a run of jcl"),
    "a comparison of a list": ("compare done_list", "done_list can't be read as a run of jcl"),
    "a comparison of no runs": ("compare done_of_none", "its summary.json lists no runs"),
    "a comparison of a number": ("compare done_of_a_number", "can't be read as a run of jcl"),
    "a report of nothing": ("report nowhere", "nowhere has no summary.json, so it is no"),
    "a report of a number": ("report done_number", "done_number can't be read as a run of jcl"),
    "a report of no runs": ("report done_of_none", "its summary.json lists no runs"),
    "a report without scores": ("report done_without_scores", "can't be read as a run of jcl"),
    "a report of scores in part": ("report done_in_part", "can't be read as a run of jcl"),
    # export
    "an export of nothing": ("export nowhere --to new", "nowhere has no summary.json"),
    "an export to nowhere": ("export done", "Missing from jcl export: --to DIR"),
    "an export to a full folder": ("export done --to full", "folder is 'full', but must be new"),
    "an export to a file": ("export done --to file", "folder is 'file', but must be new or"),
    "an export of no one's": ("export done --to new", "for it was trained from Python, where its"),
    "an export of no runs": ("export done_of_none --to new", "its summary.json lists no runs"),
    "an export in other numbers": ("export done --to x.gguf --gguf q4", "gguf is 'q4', but must"),
    "an export of numbers in a folder": (
        "export done --to new --gguf q8_0", "to is 'new', but must be a file that ends with .gguf",
    ),
    "adapters in a file": ("export done --to x.gguf --adapters", "must be a folder, where --ad"),
    "adapters for a task": (
        "export done --to new --adapters --task a", "task is 'a', but must be left out with",
    ),
    "an export for no task": ("export done --to new --task z", "task is 'z', but must be one of"),
    # edit
    "a fact for no model": (f"edit nothing {FACT}", "nothing to fetch is called 'nothing'"),
    "a fact for a folder": (f"edit ./full {FACT}", "full has no config.json, which says what"),
    "a fact for a list": (f"edit ./model_list {FACT}", "holds a list, but must hold an object"),
    "a fact for no JSON": (f"edit ./model_cut {FACT}", "config.json is no JSON"),
    "a fact for no weights": (f"edit ./model {FACT}", "model has no *.safetensors, which"),
    "a fact into a full folder": ("edit a 'Rome is in' Oslo --to full", "folder is 'full', but"),
    "a fact of no one": ("edit a 'this is' Lyon --to new", "no name stands out in 'this is'"),
    "a fact of no answer": ("edit a 'Rome is in' '' --to new", "target is '', but must be a text"),
    "a fact of another": (f"edit a {FACT} --subject Spain", "'Spain', but must be a part of"),
    "a fact by no editor": (f"edit a {FACT} --method ewc", "no method is called 'ewc'; there are"),
    "a fact by two editors": (f"edit a {FACT} --method 'rome + memit'", "but must be one of"),
    "a fact by no argument": (f"edit a {FACT} --method rome(layr=3)", "no argument 'layr'"),
    "a fact in no text": (f"edit a {FACT} --text nowhere", "text is 'nowhere', but must be a file"),
    "a table for LaTeX into a folder": (
        "compare nowhere --latex full", "--latex full is a folder, but must be a file to write",
    ),
    "W&B offline for no project": (
        "run digits --wandb-offline", "--wandb-offline needs --wandb PROJECT, whose files",
    ),
    "validation of nothing swept": (
        "run digits --select-on validation", "but there is nothing to choose; give --sweep several",
    ),
    "the best of nothing": (
        "run digits --keep best", "--keep best must come with --evaluate-every N, the steps from",
    ),
    "patience with nothing": (
        "run digits --keep best --patience 2", "--keep best and --patience must come with --eval",
    ),
    "evaluations every 0 steps": (
        "run digits --evaluate-every 0", "evaluate-every is 0, but must be at least 1",
    ),
    "no patience": (
        "run digits --evaluate-every 5 --patience 0", "patience is 0, but must be at least 1",
    ),
    "the worst kept": ("run digits --keep worst", "'last', 'best'"),
    "evaluations within nodes": (
        "run regimes --evaluate-every 5 --keep best",
        "regimes is a pipeline, whose nodes don't take --evaluate-every and --keep; leave it out",
    ),
    "validation where no rows are held out": (
        "run no_experiment.py --select-on validation --sweep lr=1,2", "has no setting validation,",
    ),
    "nothing but validation": (
        "run domains --validation 1", "validation is 1.0, but must be at least 0 and below 1",
    ),
    "validation of what is to be recalled": (
        "run snapshots --validation 0.1", "must be 0 where probe is 'seen', which asks what was",
    ),
    "validation of nodes": (
        "run regimes --select-on validation", "regimes has no setting validation, by which rows",
    ),
    # shardings and fetch
    "no model on a mesh": ("shardings --model a --mesh fsdp=2", "there is no folder 'a'; a model"),
    "a model on no mesh": ("shardings --model tiny", "Missing from jcl shardings: --mesh AXES"),
    "a model on an axis of none": ("shardings --model tiny --mesh x=2", "mesh is 'x=2', but must"),
    "a model on all that is left": ("shardings --model tiny --mesh fsdp=-1", "fsdp is -1, but"),
    "a list on a mesh": ("shardings --model model_list --mesh fsdp=2", "holds a list, but must"),
    "no JSON on a mesh": ("shardings --model model_cut --mesh fsdp=2", "config.json is no JSON"),
    "an unknown one on a mesh": (
        "shardings --model model_unknown --mesh fsdp=2", "model_type is 'xyz' in model_unknown",
    ),
    "a mesh with no method": (
        "shardings --model tiny --mesh fsdp=2 --method ewk", "no method is called 'ewk'",
    ),
    "a table into a folder": (
        "shardings --model tiny --mesh fsdp=2 --json full", "can't write full: Is a directory",
    ),
    "nothing to fetch": ("fetch nothing", "nothing to fetch is called 'nothing'; there are smol"),
    "two to fetch": ("fetch glassllm minilm", "jcl fetch doesn't take 'minilm'"),
    "fetched and listed": ("fetch glassllm --list", "takes one of NAME, --list and --remove"),
    "nothing to remove": ("fetch --remove nothing", "nothing cached is called 'nothing'"),
    "fetched into a full folder": ("fetch glassllm --to full", "to is 'full', but must be a new"),
    "fetched into a file": ("fetch glassllm --to file", "to is 'file', but must be a new or an"),
    "nothing fetched into a folder": ("fetch --to new", "--to is 'new', but nothing is named"),
}  # fmt: skip


@pytest.mark.quick
@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_command_is_refused_by_one_sentence(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command, pattern = COMMANDS[name]
    for path, text in THERE.items():
        if any(word in command for word in (path, path.partition("/")[0])):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_text(text)
    monkeypatch.setenv("JCL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    before = {path: path.is_dir() or path.read_text() for path in tmp_path.rglob("*")}
    code = main(shlex.split(command))
    said = capsys.readouterr()
    assert code == 2 and pattern in said.err, (code, said.err)
    assert said.err.startswith("jcl: ") and said.err.count("\n") == 1 and not said.out
    assert {path: path.is_dir() or path.read_text() for path in tmp_path.rglob("*")} == before


@pytest.mark.quick
def test_what_is_right_is_not_refused() -> None:
    step(rows(CLASSES.astype(np.uint8)))
    assert stream(CLASSES > 0).source["rows"]["y"].dtype == np.int32  # booleans are 0 and 1
    score(accuracy(), rows())
    many = by_label(stream().test, 4)
    assert many["weight"].sum(axis=(1, 2)).tolist() == [2, 2, 2, 0]
    assert many["y"][0, 0, 0] == 0 and many["y"][2, 0, 0] == 2
    assert read(SMALL, [[0, 63]]).shape == (1, 2, 64)
    assert read(LEARNED, np.zeros((1, 8), int)).shape == (1, 8, 256)
