"""Wrong or odd inputs, and what must be said of each: one sentence, before anything is computed.

A row is a call and a pattern of its error's message. Nothing is trained: programs are tiny, and
what only a trace can know is traced by shapes alone.
"""

from __future__ import annotations

import os
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
    "one width": (lambda: models.mlp.init(KEY, [4]), r"^sizes is \[4\], but must name at least"),
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


COMMANDS = {
    "a rate that is NaN": (["--lr", "nan"], "lr is nan, but must be a finite number"),
    "a rate that is infinite": (["--lr", "inf"], "lr is inf, but must be a finite number"),
    "a sweep of a rate that is no number": (["--sweep", "lr=nan"], "lr must be a number"),
    "a sweep of words": (["--sweep", "lr=fast"], "lr must be a number"),
    "a method that there is none of": (["--method", "ewcc()"], "ewcc"),
    "a strength below 0": (["--method", "ewc(strength=-1)"], "strength is -1"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_command_is_refused_by_one_sentence(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, pattern = COMMANDS[name]
    code = main(["run", "digits", "--out", str(tmp_path / "out"), *flags])
    said = capsys.readouterr().err
    assert code == 2 and pattern in said and "Traceback" not in said, said
    assert not os.path.exists(tmp_path / "out")


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
