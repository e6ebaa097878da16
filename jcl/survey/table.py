"""The papers of the field as a table: what each does, and how it is done here."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from jcl.method import check
from jcl.runs.expression import listed

Status = Literal["ready", "recipe", "planned", "outside"]
"""A method, function or experiment is it; it is an expression or a pipeline of what is there; a
primitive is missing; it is no matter for this library."""
STATUSES: tuple[Status, ...] = get_args(Status)
SECTIONS = {
    "CPT": "continual pre-training",
    "DAP": "domain-adaptive pre-training",
    "CFT-general": "continual fine-tuning in general",
    "CIT": "continual instruction tuning",
    "CMR": "continual model refinement",
    "CMA": "continual model alignment",
    "CMLLM": "continual multimodal models",
    "Misc": "miscellaneous",
}
"""What the sections' names, before a slash, stand for."""
FAMILIES = {
    "stages": "plain stages, one after another",
    "data": "data chosen, mixed or made",
    "objective": "what the loss counts",
    "updates": "what moves, and how fast",
    "anchors": "pulled to old weights or answers",
    "replay": "old rows again",
    "parts": "adapters, prompts, experts",
    "merging": "weights merged",
    "editing": "facts written in",
    "alignment": "preferences and rewards",
    "study": "measured, with nothing new",
}
"""The kinds of mechanism, of which a row has its foremost."""


class Paper(NamedTuple):
    """A row of the table."""

    id: str
    """Its arXiv number, or a word where it has none."""
    section: str
    """Of the survey, such as `CPT` or `DAP/Legal`; of a later system what kind it is."""
    title: str
    """The system's or the paper's short name."""
    mechanism: str
    """What it does."""
    family: str
    """The foremost kind of that, of `FAMILIES`."""
    status: Status
    recipe: str
    """How it is done here, what of it is missing, or why it is outside."""
    experiment: str = ""
    """The experiment that shows it, as `jcl run` takes it; else `nodes` or `script` do, or nothing
    does yet."""
    methods: tuple[str, ...] = ()
    """The expressions that run side by side in it; by default the experiment's own."""
    nodes: str = ""
    """The nodes of a pipeline, as `jcl run recipe --nodes` takes them."""
    script: str = ""
    """A script of experiments/ with its arguments."""
    flags: str = ""
    """Of the experiment or the pipeline."""
    differs: str = ""
    """What of that isn't as in the paper, beside sizes and data."""
    evidence: tuple[str, ...] = ()
    """What of ours supports it: files of tests, figures of experiments, `jcl reproduce NAME`."""
    where: str = ""
    """Where it stands, if arXiv doesn't have it or there is more to say."""
    needs: tuple[str, ...] = ()
    """The primitives that are missing."""
    code: str = ""
    """The authors' repository; ✓ if it was seen to exist."""
    checked: bool = False
    """Whether `mechanism` was held against the paper's abstract or the authors' code."""
    doubt: bool = False
    """Whether a detail of `mechanism` is in doubt."""
    later: bool = False
    """Whether it came after the survey's list."""

    @property
    def link(self) -> str:
        """Where it can be read."""
        if self.where:
            return self.where
        return f"https://arxiv.org/abs/{self.id}" if self.id[:1].isdigit() else self.id


class Primitive(NamedTuple):
    """What several systems lack here."""

    name: str
    what: str
    room: str
    """The folder that it belongs into."""


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("papers.toml").read_text(encoding="utf-8"))


def papers() -> tuple[Paper, ...]:
    """All rows, those of the survey in its order first."""
    rows = _table()["paper"]
    return tuple(Paper(**{name: _frozen(value) for name, value in row.items()}) for row in rows)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def primitives() -> tuple[Primitive, ...]:
    """What is missing, by how many rows need it."""
    return tuple(Primitive(**row) for row in _table()["primitive"])


def find(name: str) -> Paper:
    """The row with this id or title.

    Raises:
      ValueError: if there is none; names near ones.
    """
    by_name = {key.lower(): row for row in papers() for key in (row.title, row.id)}
    if name.lower() not in by_name:
        close = difflib.get_close_matches(name.lower(), by_name, 3)
        hint = f"did you mean {listed(close)}?" if close else "jcl survey lists all"
        raise ValueError(f"no paper of the survey is {name!r}; {hint}")
    return by_name[name.lower()]


def choose(
    section: str = "", status: str = "", mechanism: str = "", needs: str = ""
) -> list[Paper]:
    """The rows that agree with all that is given.

    Args:
      section: how the section begins, such as `DAP` or `CMR`, in any case.
      status: one of `STATUSES`.
      mechanism: a word of the mechanism, its family, the title or the recipe, in any case.
      needs: the name of a primitive.

    Raises:
      ValueError: if there is no such section, status or primitive.

    >>> [paper.title for paper in choose(section="CIT", mechanism="orthogonal")]
    ['O-LoRA']
    """
    found: Iterable[Paper] = papers()
    check(not status or status in STATUSES, "status", status, f"one of {', '.join(STATUSES)}")
    known = [one.name for one in primitives()]
    check(not needs or needs in known, "needs", needs, f"a primitive: {', '.join(known)}")
    found = [paper for paper in found if paper.section.lower().startswith(section.lower())]
    names = ", ".join(dict.fromkeys(paper.section for paper in papers()))
    check(bool(found), "section", section, f"the beginning of one of {names}")
    word = mechanism.lower()
    return [
        paper
        for paper in found
        if (not status or paper.status == status)
        and (not needs or needs in paper.needs)
        and word in f"{paper.family} {paper.mechanism} {paper.title} {paper.recipe}".lower()
    ]


def counts(rows: Sequence[Paper]) -> dict[str, int]:
    """How many rows there are of each status."""
    return {status: sum(row.status == status for row in rows) for status in STATUSES}
