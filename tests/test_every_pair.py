"""Every pair of kinds × the laws of composition; the kinds are the rows of `pair_table`.

A pair's whole run, three stages of two steps with all that is looked at, is one compiled function
of the methods' strengths and of the stream, so that its active run, its neutral ones and the one
with other padding cost a single compilation. That it compiles as a scan over stages of a scan over
steps is the law of one trace.
"""

from __future__ import annotations

import random
import re
from functools import cache, cached_property, partial, wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pair_table import (
    FAULTS,
    KINDS,
    ONCE_AT_FAULT,
    OUTCOMES,
    OUTCOMES_OF_ADAPTERS,
    ROUNDS,
    ROWS,
    SENTENCES,
    STAGES,
    Kind,
)

import jcl
from jcl import adapters, losses, models, preference, taps, trees
from jcl.parallel import mesh as meshes
from jcl.testing.witness import Found, watch, witness

STEPS, ROWS_EACH, LENGTH, CLASSES = 2, 4, 6, 9
KEY = jax.random.key(3)
# products by powers of two are exact, so that sums have the same bits however they are fused; a
# momentum would be summed up inside of some matrix products, and not of others
EXACT = optax.sgd(2**-4)


class Problem(NamedTuple):
    """What learns, from which rows."""

    apply: Any
    params: Any
    loss: Any
    stream: Any
    """Leaves [STAGES, STEPS, ROWS_EACH, ...]; the last row of each batch is padding."""


def _rows() -> Any:
    shape = (STAGES, STEPS, ROWS_EACH)
    task = jnp.broadcast_to(jnp.arange(STAGES)[:, None, None], shape)
    weight = jnp.ones(shape).at[..., -1].set(0)
    return {"task": task, "weight": weight}


@cache
def perceptron() -> Problem:
    """Three classes a task, and a loss over those of the stages so far."""
    keys = jax.random.split(jax.random.key(5), 2)
    x = jax.random.normal(keys[0], (STAGES, STEPS, ROWS_EACH, LENGTH))
    rows = _rows()
    y = 3 * rows["task"] + jax.random.randint(keys[1], rows["task"].shape, 0, 3)
    table = jnp.arange(CLASSES) // 3 == jnp.arange(STAGES)[:, None]
    params = models.mlp.init(jax.random.key(1), [LENGTH, 8, CLASSES])
    loss = losses.cross_entropy(table, "seen")
    return Problem(models.mlp.apply, params, loss, {"x": x, "y": y, **rows})


@cache
def decoder() -> Problem:
    """A language model whose tasks have their own tokens."""
    config = models.decoder.Config(
        vocabulary=CLASSES, layers=2, width=8, heads=1, kv_heads=1, hidden=8, pre_norm=False,
        gated=False, activation="relu", rope=None, context=LENGTH + 2 * STAGES,
    )  # fmt: skip
    params = models.decoder.init(jax.random.key(1), config)
    blocks = jax.tree.map(lambda x: 3 * x if x.ndim > 2 else x, params["blocks"])
    params = {**params, "embed": {"table": 20 * params["embed"]["table"]}, "blocks": blocks}
    rows = _rows()
    drawn = jax.random.randint(jax.random.key(5), (*rows["task"].shape, LENGTH), 0, 5)
    tokens = 2 * rows["task"][..., None] + drawn
    whole = models.decoder.apply_fn(config)
    untapped = jax.jit(lambda params, batch: whole(params, batch))  # traced once for each shape

    @wraps(whole)
    def apply(params: Any, batch: Any, tap: Any = taps.identity) -> Any:
        return untapped(params, batch) if tap is taps.identity else whole(params, batch, tap)

    return Problem(apply, params, losses.next_token, {"tokens": tokens, **rows})


@cache
def ranker() -> Problem:
    """The language model, ranking answers over others."""
    stream = dict(decoder().stream)
    answer = jnp.broadcast_to(jnp.arange(LENGTH - 1) >= 2, (*stream["task"].shape, LENGTH - 1))
    for side, move in (("", 0), ("rejected_", 3)):
        stream[f"{side}tokens"] = (stream["tokens"] + move) % CLASSES
        stream[f"{side}segments"] = jnp.ones_like(stream["tokens"])
        stream[f"{side}answer"] = answer.astype(jnp.float32)
    return decoder()._replace(loss=preference.ranking(), stream=stream)


@cache
def viewer() -> Problem:
    """A model of images and text."""
    config = models.multimodal.Config(
        models.vision.Config(image=4, patch=2, layers=1, width=8, heads=1, hidden=8),
        models.decoder.Config(
            vocabulary=CLASSES, layers=2, width=8, heads=1, kv_heads=1, hidden=8, context=16
        ),
    )
    params = models.multimodal.init(jax.random.key(1), config)
    params = {**params, "embed": {"table": 20 * params["embed"]["table"]}}
    shape = (*decoder().stream["task"].shape, 4, 4, 1)
    stream = {**decoder().stream, "image": jax.random.normal(jax.random.key(6), shape)}
    return Problem(models.multimodal.apply_fn(config), params, losses.next_token, stream)


PROBLEMS = {"perceptron": perceptron, "decoder": decoder, "ranker": ranker, "viewer": viewer}


def problem_for(kinds: tuple[Kind, ...]) -> str:
    """The smallest problem that suits all."""
    if any(k.images for k in kinds):
        return "viewer"
    if any(k.pairs for k in kinds):
        return "ranker"
    return "decoder" if any(k.decoder for k in kinds) else "perceptron"


def probe(problem: Problem) -> Any:
    """Rows of all tasks, and one of padding."""
    rows = jax.tree.map(lambda x: x[:, 0, 0], problem.stream)
    return jax.tree.map(lambda x: jnp.concatenate([x, x[:1]]), rows) | {
        "weight": jnp.ones(STAGES + 1).at[-1].set(0)
    }


class Chain:
    """A chain of kinds, compiled once."""

    def __init__(
        self, kinds: tuple[Kind, ...], problem: str | None = None, only_adapters: bool = False
    ) -> None:
        self.kinds = kinds
        self.known_as = problem or problem_for(kinds)
        self.problem = PROBLEMS[self.known_as]()
        self.trainable = adapters.is_adapter if only_adapters else trees.every_leaf
        self.traces = 0
        self._run = jax.jit(self._whole)

    def program(
        self, values: list[dict[str, Any]], *more: jcl.Method, **options: Any
    ) -> jcl.Program:
        p, given = self.problem, {"teacher": jax.tree.map(lambda x: 1.1 * x, self.problem.params)}
        made = [
            k.build(**v, **(given if k.teacher else {}))
            for k, v in zip(self.kinds, values, strict=True)
        ]
        chain = jcl.chain(*made, *more)
        return jcl.make(chain, p.apply, p.loss, EXACT, trainable=self.trainable, **options)

    @property
    def active(self) -> list[dict[str, float]]:
        return [k.values for k in self.kinds]

    def refusal(self) -> str | None:
        """The sentence by which `chain` or `init` refuses it, or None if they admit it."""
        example = jax.tree.map(lambda x: x[0, 0], self.problem.stream)
        try:
            program = self.program(self.active)
            jax.eval_shape(program.init, self.problem.params, example, KEY)
        except ValueError as refused:
            return str(refused)
        return None

    def run(self, values: list[dict[str, float]] | None = None, stream: Any = None) -> Found:
        values = self.active if values is None else values
        stream = self.problem.stream if stream is None else stream
        values = jax.tree.map(jnp.float32, values)
        return self._run(values, self.problem.params, stream)

    @cached_property
    def found(self) -> Found:
        return self.run()

    def _whole(self, values: Any, params: Any, stream: Any) -> Found:
        self.traces += 1
        rows = probe(self.problem)
        program = self.program(values, witness(rows))
        return watch(program, self.problem.loss, params, KEY, stream, rows)


ALONE: dict[Any, Chain] = {}


def alone(kinds: tuple[Kind, ...], problem: str) -> Chain:
    """A chain of fewer methods, to compare with; compiled once."""
    key = (*map(id, kinds), problem)
    return ALONE.setdefault(key, Chain(kinds, problem))


PAIRS = [(a, b) for a in KINDS for b in KINDS if a is not b]
HOLDING = [
    (a, b)
    for a, b in PAIRS
    if OUTCOMES[a.name][b.name] == "."
    and (not (a.second or b.second) or (a.name, b.name) in ONCE_AT_FAULT)
]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(pair, id=f"{a.name}-{b.name}", marks=pytest.mark.xdist_group(a.name))
        for pair in HOLDING
        for a, b in [pair]
    ],
)
def pair(request: pytest.FixtureRequest) -> Chain:
    return Chain(request.param)


def close(found: Any, wanted: Any, what: str) -> None:
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5, err_msg=what)


def same(found: Any, wanted: Any, what: str) -> None:
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=what)


QUICK = {"ewc", "wise_ft", "packnet", "rewarm"}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(
            *(a, b),
            id=f"{a.name}-{b.name}",
            marks=[pytest.mark.quick] if {a.name, b.name} <= QUICK else [],
        )
        for a, b in PAIRS
    ],
)
def test_a_pair_is_admitted_or_refused_by_a_sentence_that_names_both(
    first: Kind, second: Kind
) -> None:
    for only_adapters, outcomes in ((False, OUTCOMES), (True, OUTCOMES_OF_ADAPTERS)):
        code = outcomes.get(first.name, {}).get(second.name, "-")
        if code == "-":
            continue
        quick = {first.name, second.name} <= QUICK
        if not only_adapters and (first, second) in HOLDING and not quick:
            continue  # it runs in the next tests
        refusal = Chain((first, second), only_adapters=only_adapters).refusal()
        if code == ".":
            assert refusal is None
        else:
            wanted = SENTENCES[code].format(first=first.name, second=second.name)
            assert refusal is not None and re.search(wanted, refusal), refusal


def test_what_hooks_see_is_the_model_of_the_moment(pair: Chain) -> None:
    found = pair.found
    close(found.shown_first, found.first, "init")
    close(found.shown_begun, found.begun, "begin")
    close(found.shown_ended, found.ended, "consolidate")


def test_a_frozen_model_answers_the_same_for_ever(pair: Chain) -> None:
    found = pair.found
    left = jnp.concatenate([found.first.outputs[None], found.ended.outputs])
    for stage in range(STAGES):
        initial, previous, own = found.recalled[stage]
        close(initial, left[0], "initial")
        close(own, left[0], "own")
        close(previous, left[stage], "previous")


def test_what_stands_in_padding_changes_nothing(pair: Chain) -> None:
    def other(x: jax.Array) -> jax.Array:
        pad = x[:, :, -1:, ::-1] if x.ndim > 3 else (x[..., -1:] + 1) % STAGES
        return x.at[:, :, -1:].set(3 * pad if pad.dtype == jnp.float32 else pad)

    stream = pair.problem.stream
    changed = {k: v if k == "weight" else other(v) for k, v in stream.items()}
    assert not all(np.array_equal(stream[k], changed[k]) for k in stream)
    same(pair.run(stream=changed), pair.found, "padding")
    assert pair.traces == 1


def neutral_against(chain: Chain, index: int) -> tuple[Any, Any]:
    """Parameters and predictions with one method neutral, and without it."""
    kinds = chain.kinds
    values = [dict(v) for v in chain.active]
    values[index] = kinds[index].neutral
    found = chain.run(values)
    others = tuple(k for i, k in enumerate(kinds) if i != index)
    wanted = alone(others, chain.known_as).found
    mine, theirs = trees.by_path(found.params), trees.by_path(wanted.params)
    shared = {path: mine[path] for path in theirs}
    return (shared, found.ended.outputs), (theirs, wanted.ended.outputs)


def check_neutral(chain: Chain, index: int) -> None:
    first, *others = (kind.name for kind in (chain.kinds[index], *chain.kinds))
    why = next((why for test, why in ROUNDS if any(test(first, o) for o in others)), None)
    (same if why is None else close)(*neutral_against(chain, index), f"{first}, neutral")


@pytest.mark.parametrize("index", [0, 1], ids=["first", "second"])
def test_beside_a_neutral_method_the_other_is_as_alone(
    request: pytest.FixtureRequest, pair: Chain, index: int
) -> None:
    neutral = pair.kinds[index].neutral
    if isinstance(neutral, str):
        pytest.skip(neutral)
    law = f"{('first', 'second')[index]} neutral"
    fault = FAULTS.get((pair.kinds[0].name, pair.kinds[1].name, law))
    if fault is not None:
        request.applymarker(pytest.mark.xfail(strict=True, reason=fault))
    check_neutral(pair, index)
    assert pair.traces == 1


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_a_kind_alone_is_not_neutral(kind: Kind) -> None:
    """Else the law of neutral methods would prove nothing."""
    if kind.name == "infer_task":
        pytest.skip("it only routes rows, which alone are read by nobody")
    problem = problem_for((kind,))
    found, plain = alone((kind,), problem).found, alone((), problem).found
    moved = [
        not np.array_equal(x, trees.by_path(found.params)[path])
        for path, x in trees.by_path(plain.params).items()
    ]
    moved.append(not np.array_equal(found.ended.outputs, plain.ended.outputs))
    assert any(moved)


# All methods, by hand: pytest -m pairs tests/test_every_pair.py

OTHERS = 200
DRAWN = random.Random(0)


def _known(kinds: tuple[Kind, ...]) -> Any:
    names = [kind.name for kind in kinds]
    return pytest.param(kinds, id="-".join(names), marks=pytest.mark.xdist_group(names[0]))


ROW_PAIRS = [_known((a, b)) for a in ROWS for b in ROWS if a is not b]
ROW_TRIPLES = [_known(tuple(DRAWN.sample(ROWS, 3))) for _ in range(OTHERS)]


@pytest.fixture(scope="module", params=ROW_PAIRS + ROW_TRIPLES)
def some(request: pytest.FixtureRequest) -> Chain:
    """A pair or a triple that is admitted; the sentence of a refused one is held to name two.

    One of them alone may be what the problem of all isn't for, such as hat, which takes a plain
    stack of layers, or what works with another loss; then the sentence is about that.
    """
    chain = Chain(request.param)
    refusal = chain.refusal()
    if refusal is None:
        return chain
    named = sum(kind.name in refusal for kind in chain.kinds)
    other = re.search(r"^loss is .* for \w+;|^teacher's ", refusal)
    if named < 2 and not other:
        unfit = [k.name for k in chain.kinds if Chain((k,), chain.known_as).refusal()]
        assert unfit, refusal
        refusal = f"{' and '.join(unfit)}, alone: {refusal}"
    pytest.skip(refusal)


@pytest.mark.pairs
def test_all_hold_the_laws(some: Chain) -> None:
    test_what_hooks_see_is_the_model_of_the_moment(some)
    test_a_frozen_model_answers_the_same_for_ever(some)
    test_what_stands_in_padding_changes_nothing(some)
    for index, kind in enumerate(some.kinds):
        if not isinstance(kind.neutral, str):
            check_neutral(some, index)
    assert some.traces == 1


def training(chain: Chain, **options: Any) -> Any:
    """`(stream, key)` -> parameters and predictions at the end of a stream; compiled once."""

    def run(values: Any, params: Any, stream: Any, key: jax.Array) -> Any:
        program = chain.program(values, **options)
        state, _ = jcl.run(program, params, key, stream)
        return state.params, program.predict(state, probe(chain.problem))

    values = jax.tree.map(jnp.float32, chain.active)
    return partial(jax.jit(run), values, chain.problem.params)


@pytest.mark.pairs
def test_all_hold_in_other_shapes(some: Chain) -> None:
    """More padding, microbatches, a mesh of eight devices and members change only the rounding."""
    stream, plain = some.problem.stream, training(some)
    wanted = plain(stream, KEY)
    more = {
        k: jnp.concatenate([v, jnp.zeros_like(v) if k == "weight" else v[:, :, ::-1]], axis=2)
        for k, v in stream.items()
    }
    close(training(some, microbatches=4)(more, KEY), wanted, "appended padding, microbatches")
    devices = meshes.make(data=2, fsdp=2, tensor=2)
    close(training(some, mesh=devices)(stream, KEY), wanted, "mesh")

    def member(program: jcl.Program, key: jax.Array) -> Any:
        state, _ = jcl.run(program, some.problem.params, key, stream)
        return state.params, program.predict(state, probe(some.problem))

    many = jcl.replicate(lambda _: some.program(some.active), jnp.arange(2), how="vmap")
    keys = jax.random.split(KEY, 2)
    members = jax.jit(lambda keys: many.over_members(member, keys))(keys)
    close(jax.tree.map(lambda x: x[1], members), plain(stream, keys[1]), "member")
