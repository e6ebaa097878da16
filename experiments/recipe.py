"""A recipe of the field as a pipeline: texts, then instructions, then preferences.

    jcl run recipe --nodes "98 domain & 2 general -> instructions: lora() -> preferences: dpo()"

Nodes follow one another by `->`, each from the model that the one before it left. A node is one or
more stages, with commas between them, and after a colon its method. A stage is a source, or several
with their shares. What a source is, is a function of its name below; `--files law=cases.jsonl`
brings one of your own, or takes the place of one that is here.
"""

from __future__ import annotations

import dis
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
import optax
from eras import pretrained

from jcl import data, losses, models, preference
from jcl.data import corpora, questions
from jcl.data.preferences import Pair
from jcl.measures.evaluation import evaluator, token_nll
from jcl.method import check
from jcl.models.generation import generate
from jcl.program import Evaluate
from jcl.runs import expression
from jcl.runs.experiment import Experiment
from jcl.runs.life.rows import form_of, read_rows
from jcl.runs.life.tasks import document
from jcl.runs.pipeline import Node


@dataclass(frozen=True)
class Config:
    """A run for two cores; another model, more steps and longer rows are what a GPU would take."""

    nodes: str = "98 domain & 2 general -> instructions -> preferences: dpo()"
    """The nodes, as is said above."""
    files: tuple[str, ...] = ()
    """Sources of your own, such as law=cases.jsonl or chosen=pairs.jsonl, in the forms that `jcl
    run finetune` reads."""
    model: str = "glassllm"
    """What `jcl fetch` gets (`smollm2`, `glassllm`), a folder, or a Hugging Face id."""
    documents: int = 2000
    """How many documents, questions or pairs of a source are learned from at most; few of them in
    many steps are several epochs."""
    steps: int = 30
    """Optimizer steps on each stage."""
    batch: int = 8
    """Rows a step."""
    length: int = 64
    """Tokens in a row."""
    lr: float = 5e-4
    """AdamW's learning rate."""
    test_rows: int = 32
    """Test rows of each source."""


class Plan(NamedTuple):
    """A node as it is typed."""

    stages: tuple[dict[str, float], ...]
    """The shares of the sources of each stage."""
    method: str

    @property
    def sources(self) -> tuple[str, ...]:
        """Each source once, in order."""
        return tuple(dict.fromkeys(name for stage in self.stages for name in stage))


def plans(nodes: str) -> list[Plan]:
    """The nodes of a text such as `4 law & 1 general, law -> instructions: lora()`.

    Raises:
      ValueError: if it is no such text.
    """
    found = []
    for node in re.split("->|→", nodes):
        told, _, method = node.partition(":")
        stages = tuple(_shares(stage) for stage in told.split(","))
        found.append(Plan(stages, method.strip() or "naive()"))
    return found


def _shares(stage: str) -> dict[str, float]:
    shares: dict[str, float] = {}
    for part in stage.split("&"):
        told = re.fullmatch(r"\s*(?:(\d*\.?\d+)\s+)?([A-Za-z_]\w*)\s*", part)
        if told is None or told[2] in shares or float(told[1] or 1) == 0:
            raise ValueError(
                f"{stage.strip()!r} is no stage of a recipe; write a source, or shares such as "
                "'4 domain & 1 general'"
            )
        shares[told[2]] = float(told[1] or 1)
    return {name: share / sum(shares.values()) for name, share in shares.items()}


# The sources: `(train, test)` documents or pairs. A pair of texts is a prompt and its answer, of
# which the answer alone is learned.

Source = tuple[Sequence[Any], Sequence[Any]]
LIBRARY = (
    "argparse", "ast", "calendar", "csv", "difflib", "gettext", "heapq", "locale", "pprint",
    "shlex", "textwrap", "zipfile",
)  # fmt: skip


def _texts(rows: Sequence[Any]) -> Source:
    train, test = corpora.held_out(rows)
    return [row.text for row in train], [row.text for row in test]


def _cut(rows: Sequence[Any]) -> Source:
    """Every fifth is for the test."""
    return [row for i, row in enumerate(rows) if i % 5], rows[::5]


def _answered(name: str, choose: Callable[[int, int], int] = lambda right, all: right) -> Source:
    """Questions with one of their choices, by default the right one."""
    items = questions.read(name).items
    chosen = [item.choices[choose(item.answer, len(item.choices))].strip() for item in items]
    return _cut([(item.prompt + " ", text) for item, text in zip(items, chosen, strict=True)])


def _of_python(*domains: str) -> Source:
    found = [map(bytes, sides) for sides in data.python_domains(domains).values()]
    train, test = zip(*found, strict=True)
    return [x.decode(errors="ignore") for x in train], [x.decode(errors="ignore") for x in test]


def _functions() -> Iterator[Any]:
    """Functions of some modules of Python's library."""
    for module in map(importlib.import_module, LIBRARY):
        for _, function in sorted(inspect.getmembers(module, inspect.isfunction)):
            if function.__module__ == module.__name__:
                yield function


def _compiled() -> list[str]:
    """Functions, each followed by its bytecode."""
    return [f"{inspect.getsource(f)}\n{dis.Bytecode(f).dis()}" for f in _functions()]


def _infilled() -> list[Any]:
    """Functions, of which half have their middle last, after marks."""
    found = [inspect.getsource(function) for function in _functions()]
    return [*data.fill_in_the_middle(found, "<PRE>", "<SUF>", "<MID>")]


def _parallel() -> list[str]:
    """Lines of the handbook in English, each followed by the same in German."""
    german = {page.path: page.text.splitlines() for page in corpora.handbook("de-DE")}
    found = []
    for page in corpora.handbook("en-US"):
        lines, others = page.text.splitlines(), german.get(page.path, [])
        if len(lines) == len(others):  # else it isn't known which line is which
            both = zip(lines, others, strict=True)
            found += [f"{one}\n{other}" for one, other in both if one != other]
    return found


def _pages(release: bool) -> Source:
    pages = corpora.django_docs("4.2")
    return _texts([page for page in pages if page.path.startswith("releases/") == release])


def _worked() -> Source:
    """Questions with their answers as plain text, all of which is learned."""
    train, test = ([a + b for a, b in side] for side in _answered("commonsenseqa"))
    return train, test


def _tagged() -> Source:
    """The documentation's paragraphs, each as the answer to an instruction that says nothing."""
    train, test = ([("Go on.\n", p) for text in side for p in data.snapshots.paragraphs(text)]
                   for side in _pages(False))  # fmt: skip
    return train, test


HERE: dict[str, Callable[[], Source]] = {
    "general": lambda: _texts(corpora.state_of_the_union()),
    "domain": lambda: _pages(False),
    "releases": lambda: _pages(True),
    "german": lambda: data.snapshots.translations(["de-DE"])["de-DE"],
    "parallel": lambda: _cut(_parallel()),
    "code": lambda: _of_python("headers", "markup"),
    "python": lambda: _of_python("code"),
    "compiled": lambda: _cut(_compiled()),
    "infilled": lambda: _cut(_infilled()),
    "instructions": lambda: _answered("commonsenseqa"),
    "wrong": lambda: _answered("commonsenseqa", lambda right, all: (right + 1) % all),
    "tasks": lambda: _answered("piqa"),
    "worked": _worked,
    "tagged": _tagged,
    "preferences": lambda: _cut(data.right_over_wrong(questions.read("piqa").items)),
}  # fmt: skip
"""What is here. Texts: addresses of presidents, a program's documentation and its release notes, a
handbook in German, the same with English line by line, C headers and HTML, Python, functions with
their bytecode, functions whose middle comes last. Pairs: questions with right and with wrong
answers, tasks with solutions; questions as plain text, and the documentation as answers.
Preferences: the right solution over the wrong."""
WRITTEN = "written"
"""A source that the model writes itself, before it is trained."""


def _written(model: models.Model, number: int = 64, length: int = 48) -> Source:
    """Texts that the model draws at temperature 1, each from one drawn token."""
    starts = jax.random.randint(jax.random.key(0), (number, 1), 0, model.config.vocabulary).tolist()
    ends = generate(
        model.apply, model.params, model.config, starts, steps=length, key=jax.random.key(1),
        temperature=1.0,
    )  # fmt: skip
    both = zip(starts, ends, strict=True)
    texts = [model.tokenizer.decode(a + b, skip_special_tokens=True) for a, b in both]
    return _cut([text for text in texts if text.strip()])


def _of_files(paths: Sequence[str]) -> Source:
    rows = read_rows(paths)
    if form_of(rows[0]) == "prefer":
        return _cut([Pair(row["prompt"], row["preferred"], row["rejected"]) for row in rows])
    return _cut([document(row) for row in rows])


def _own(files: Sequence[str]) -> dict[str, str]:
    """The user's own sources by name."""
    found = {}
    for file in files:
        name, _, paths = file.partition("=")
        check(bool(name and paths), "files", file, "a source's name and its files: law=cases.jsonl")
        found[name] = paths
    return found


@cache
def _source(name: str, files: tuple[str, ...], model: str) -> Source:
    """A source by its name."""
    own = _own(files)
    if name in own:
        return _of_files(own[name].split(","))
    if name == WRITTEN:
        return _written(pretrained(model))
    return HERE[name]()


def _kept(name: str, rows: Sequence[Any], most: int, tokenizer: Any, length: int) -> list[Any]:
    """Some of the rows, evenly spread, without prompts whose answers a row of tokens would cut."""
    some = [rows[i * len(rows) // most] for i in range(most)] if len(rows) > most else [*rows]
    room = length - 2  # but for what begins and ends a document
    fit = [row for row in some if not _is_prompted(row)
           or len(tokenizer("".join(row), verbose=False)["input_ids"]) <= room]  # fmt: skip
    check(bool(fit), "length", length, f"enough for a prompt of {name!r} with its answer")
    return fit


def _is_prompted(row: Any) -> bool:
    return isinstance(row, tuple) and not isinstance(row, Pair)


def nodes(config: Config) -> list[Node]:
    """The nodes of the recipe; those of equal sources share their tests.

    Raises:
      ValueError: if the recipe can't be read, names a source that isn't there, or mixes pairs of
        answers with texts.
    """
    listed = plans(config.nodes)
    known = [*HERE, WRITTEN, *_own(config.files)]
    for name in [name for plan in listed for name in plan.sources]:
        there = f"one of {expression.listed(known)}, or among --files"
        check(name in known, "source", name, there)
    model = pretrained(config.model)
    length = min(config.length, model.config.context)
    judges: dict[tuple[str, ...], Evaluate] = {}

    def experiment(plan: Plan) -> Experiment:
        found = {name: _source(name, config.files, config.model) for name in plan.sources}
        kept = {
            name: (_kept(name, train, config.documents, model.tokenizer, length),
                   _kept(name, test, 4 * config.test_rows, model.tokenizer, length))
            for name, (train, test) in found.items()
        }  # fmt: skip
        pairs = [isinstance(train[0], Pair) for train, _ in kept.values()]
        ranks = all(pairs) and len(plan.stages) == len(pairs)
        if any(pairs) and not ranks:
            raise ValueError(
                f"{' and '.join(plan.sources)} are in one node, but pairs of answers need stages "
                "of their own in a node without texts"
            )

        def stream(seed: int) -> data.Stream:
            shared: Any = {
                "length": length, "batch": config.batch, "steps": config.steps, "seed": seed,
                "boundary_batches": 8, "test_batch": 16, "vocabulary": model.config.vocabulary,
            }  # fmt: skip
            if ranks:
                tested = {name: (a, b[: config.test_rows]) for name, (a, b) in kept.items()}
                return data.from_pairs(tested, model.tokenizer, **shared)
            return data.from_text(
                kept, model.tokenizer, stages=plan.stages, test_rows=config.test_rows, **shared,
            )  # fmt: skip

        if plan.sources not in judges:
            asked = preference.accuracy if ranks else token_nll()
            rows = preference.pair_rows if ranks else losses.with_targets
            judges[plan.sources] = evaluator(stream(0).test, asked, rows)
        return Experiment(
            name="recipe",
            scenario="vertical",
            stream=stream,
            init=lambda key: model.params,
            apply=models.decoder.apply_fn(model.config),
            loss=preference.ranking() if ranks else losses.fused_next_token(),
            optimizer=lambda lr: optax.adamw(lr),
            evaluate=judges[plan.sources],
            measure="pairs ranked rightly" if ranks else "log perplexity",
            higher_is_better=ranks,
            learning_rate=config.lr,
            chunk=10,
            tokens_per_row=length,
            model=model,
        )

    return [Node(name, experiment(plan), plan.method) for name, plan in _named(listed)]


def _named(listed: Sequence[Plan]) -> Iterator[tuple[str, Plan]]:
    """The nodes with names that no two of them share."""
    for i, plan in enumerate(listed, 1):
        yield f"{i}-{'-'.join(plan.sources)}", plan
