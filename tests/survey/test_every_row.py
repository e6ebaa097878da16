"""No row that is ready or a recipe is plain fine-tuning: after two stages of two steps it differs.

By default one row is looked at for each method that rows have, and one whole pipeline; `-m whole`
looks at all rows. What is compiled is compiled without optimisation, for it runs four steps.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_text
from method_table import MLP, RANKER, VIEWER

import jcl
from jcl import losses, models
from jcl.models import decoder
from jcl.runs import experiment, expression
from jcl.runs.pipeline import Node
from jcl.survey import Paper, commands, papers
from jcl.testing.bench import Problem, program_of, stream

ROWS = [row for row in papers() if row.status in ("ready", "recipe")]
QUICK: Any = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
SOON = {
    "continual_backprop.replacement": 0.5, "continual_backprop.maturity": 1,
    "oplora.preserved": 4,
}  # fmt: skip
"""Arguments at which four steps of a tiny model show what else takes hundreds, or a large one."""


# Methods, in an experiment.

OF_DECODERS = {
    "lora", "inclora", "olora", "moelora", "ia3", "bottleneck", "llama_pro", "rho", "oplora", "osf",
}  # fmt: skip
"""Methods that a perceptron has no place for."""


@functools.cache
def language() -> Problem:
    """A decoder with as many blocks as rows name, whose next tokens are learned."""
    config = decoder.Config(
        vocabulary=8, layers=6, width=16, heads=2, kv_heads=1, hidden=24, context=32
    )
    params = decoder.init(jax.random.key(1), config)
    return Problem(decoder.apply_fn(config), params, loss=losses.next_token)


@functools.cache
def batches() -> Any:
    """Two stages of two steps of 32 rows, [2, 2, 32, ...], with all that a problem reads."""
    rows = {k: jnp.concatenate([x[:2, i : i + 2] for i in range(4)], axis=2)
            for k, x in stream().items()}  # fmt: skip
    return {**rows, "reference": jnp.full((2, 2, 32, rows["tokens"].shape[-1] - 1), 2.0)}


PROBLEMS = {
    "alignment": lambda: RANKER, "multimodal": lambda: VIEWER, "": lambda: MLP,
    "language": language,
}  # fmt: skip


def names_of(method: str) -> tuple[str, ...]:
    return tuple(call.name for call in expression.parse(method))


@functools.cache
def predicted(problem: str, method: str) -> list[np.ndarray]:
    """What a model says after two stages of two steps."""
    given, names = PROBLEMS[problem](), names_of(method)
    sooner = {key: value for key, value in SOON.items() if key.partition(".")[0] in names}
    program = program_of(expression.build(expression.parse(method), sooner), given)

    def trained(params: Any, key: jax.Array, rows: Any) -> Any:
        state, _ = jcl.run(program, params, key, rows)
        return program.predict(state, jax.tree.map(lambda x: x[0, 0], rows))

    run = jax.jit(trained, compiler_options=QUICK)
    return [*map(np.asarray, jax.tree.leaves(run(given.params, jax.random.key(3), batches())))]


def problem_of(row: Paper, method: str) -> str:
    """What a method of a row is tried on."""
    if row.experiment in PROBLEMS:
        return row.experiment
    return "language" if OF_DECODERS & set(names_of(method)) else ""


METHODS = {
    (problem_of(row, method), method): row.id
    for row in ROWS for method in row.methods if method != "naive()"
}  # fmt: skip
"""Each expression once, with a row that has it."""


def first_of_each(given: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Expressions so that each method that rows have is in one of them, the longest first."""
    seen: set[str] = set()
    found = set()
    for problem, method in sorted(given, key=lambda one: -len(names_of(one[1]))):
        if not set(names_of(method)) <= seen:
            found.add((problem, method))
            seen |= set(names_of(method))
    return found


DEFAULT = first_of_each(METHODS)


@pytest.mark.parametrize(
    ("problem", "method"),
    [pytest.param(*one, id=f"{row}-{'-'.join(names_of(one[1]))}",
                  marks=[pytest.mark.xdist_group(f"survey {one[0]}"),
                         *([] if one in DEFAULT else [pytest.mark.whole])])
     for one, row in METHODS.items()],
)  # fmt: skip
def test_a_method_of_a_row_is_no_plain_fine_tuning(problem: str, method: str) -> None:
    pairs = zip(predicted(problem, method), predicted(problem, "naive()"), strict=True)
    assert max(np.abs(one - other).max() for one, other in pairs) > 1e-5


@pytest.mark.quick
def test_a_row_without_a_method_has_another_stream_or_measure() -> None:
    for row in ROWS:
        if row.experiment and set(row.methods) <= {"naive()"}:
            assert row.flags, row.id


# Pipelines, over small files.

TOGETHER = pytest.mark.xdist_group("survey recipes")

WORDS = {
    "general": "the cat sat on the mat", "domain": "def f(x): return x + 1", "code": "int f(int x)",
    "releases": "release 2.0 adds f", "german": "die Katze sass dort", "python": "import f as g",
    "compiled": "f(x)\nLOAD x", "infilled": "<PRE>f<SUF>)<MID>(x", "parallel": "the cat\ndie Katze",
    "worked": "Q: 1 + 1 = A: 2",
}  # fmt: skip
"""What is read, as plain text."""
ANSWERED = {"instructions": " yes", "wrong": " no", "tasks": " do", "tagged": " the text"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A file for each source of the recipes."""
    folder = tmp_path_factory.mktemp("sources")

    def write(name: str, rows: list[dict[str, str]]) -> str:
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return f"{name}={path}"

    found = [write(k, [{"text": f"{w} {i}"} for i in range(20)]) for k, w in WORDS.items()]
    for name, answer in ANSWERED.items():
        rows = [{"prompt": f"Q {i}:", "answer": f"{answer} {i}"} for i in range(20)]
        found.append(write(name, rows))
    both = [{"prompt": f"Q {i}:", "chosen": f" yes {i}", "rejected": " no"} for i in range(160)]
    return (*found, write("preferences", both))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with as many blocks as recipes name."""
    tokenizer = tiny_text.byte_level()
    config = decoder.Config(
        vocabulary=len(tokenizer), layers=3, width=16, heads=2, kv_heads=1, hidden=24, context=64
    )
    params = decoder.init(jax.random.key(0), config)
    made = models.of(config, params, tokenizer)
    return models.save(made, params, tmp_path_factory.mktemp("stored") / "model")


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return experiment.load(experiment.find(commands.RECIPE))


def nodes_of(
    recipe: ModuleType, text: str, model: Path, files: tuple[str, ...], batch: int = 4
) -> list[Node]:
    config = recipe.Config(
        nodes=text, files=files, model=str(model), steps=2, batch=batch, length=32, test_rows=2,
        lr=1e-2,
    )  # fmt: skip
    return recipe.nodes(config)


READ: Any = {
    "tokens": jnp.arange(64).reshape(2, 32), "segments": jnp.ones((2, 32), jnp.int32),
    "task": jnp.zeros(2, jnp.int32), "weight": jnp.ones(2),
}  # fmt: skip


def said_after(nodes: Sequence[Node]) -> np.ndarray:
    """What the model says of some tokens after the last node, each begun as a pipeline does."""
    params: Any = None
    for i, node in enumerate(nodes, 1):
        made = experiment.setup(node.experiment, expression.parse(node.method), params=params)
        state = jcl.fit(*made, chunk=2).state
        if i < len(nodes):
            params = experiment.merged_params(node.experiment, made, state)
    return np.asarray(jax.jit(made.program.predict)(state, READ))


PIPELINES = {row.nodes: row.id for row in ROWS if row.nodes}
WHOLE = "1 domain & 1 instructions -> preferences: dpo()"
"""The one that is trained by default: with shares, answers, pairs and a method."""


@pytest.mark.parametrize(
    "text",
    [pytest.param(text, id=row, marks=[TOGETHER, *([] if text == WHOLE else [pytest.mark.whole])])
     for text, row in PIPELINES.items()],
)  # fmt: skip
def test_a_recipe_is_not_plain_training_on_text(
    recipe: ModuleType, text: str, folder: Path, files: tuple[str, ...]
) -> None:
    plans = recipe.plans(text)
    plain = ", ".join("general" for plan in plans for _ in plan.stages)
    one, other = (said_after(nodes_of(recipe, nodes, folder, files)) for nodes in (text, plain))
    assert np.abs(one - other).max() > 1e-4


@TOGETHER
def test_recipes_that_differ_read_other_rows_or_have_other_methods(
    recipe: ModuleType, folder: Path, files: tuple[str, ...]
) -> None:
    seen: dict[Any, str] = {}
    for text in ("general", *PIPELINES):
        marks = []
        for node in nodes_of(recipe, text, folder, files, 100):
            made = node.experiment.stream(0)
            for stage in range(len(made.names)):
                batch = made.fetch(
                    made.source, jax.tree.map(lambda x: x[0], made.chunk(stage, 0, 1))
                )
                marks.append(np.asarray(batch["tokens"]).tobytes())
            marks.append(node.method.encode())
        assert seen.setdefault(tuple(marks), text) == text


@TOGETHER
def test_a_node_of_texts_takes_no_pairs_of_answers(
    recipe: ModuleType, folder: Path, files: tuple[str, ...]
) -> None:
    for text in ("preferences, domain", "1 preferences & 1 domain", "preferences, preferences"):
        with pytest.raises(ValueError, match="pairs of answers need stages of their own"):
            nodes_of(recipe, text, folder, files)
