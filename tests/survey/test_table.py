"""Every row of the survey is whole, and what it says is done here is there to be called."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections import Counter
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import jcl
from jcl.runs import edit, experiment, expression
from jcl.survey import table
from jcl.survey.table import Paper, choose, counts, find, papers, primitives

pytestmark = pytest.mark.quick
ROOT = Path(__file__).parents[2]
NODES = {"cpt", "sft"}
"""What recipes call nodes of a pipeline: texts, and prompts with answers."""


def test_there_are_all_papers_of_the_list_and_later_ones() -> None:
    rows = papers()
    assert Counter(row.later for row in rows) == {False: 202, True: 36}
    assert len({row.id for row in rows}) == len(rows)
    sections = Counter(row.section.partition("/")[0] for row in rows if not row.later)
    assert sections == {
        "CPT": 40, "DAP": 74, "CFT-general": 19, "CIT": 10, "CMR": 11, "CMA": 9, "CMLLM": 29,
        "Misc": 10,
    }  # fmt: skip
    assert set(sections) == set(table.SECTIONS)
    for row in rows:
        assert row.title and row.mechanism and row.recipe and row.status in table.STATUSES, row
        assert row.family in table.FAMILIES, row
        assert bool(row.needs) == (row.status == "planned"), row
        assert set(row.needs) <= {one.name for one in primitives()}, row
        assert row.id[:1].isalpha() or re.fullmatch(r"\d{4}\.\d{5}", row.id), row


@cache
def modules() -> dict[str, ModuleType]:
    names = [m.name for m in pkgutil.walk_packages(jcl.__path__, "jcl.") if "entry" not in m.name]
    return {name: importlib.import_module(name) for name in names}


def is_there(name: str) -> bool:
    """Whether a name is a method, an editor, or an attribute of some module that it names."""
    *owner, last = name.split(".")
    if not owner and (last in expression.factories() or last in edit.EDITORS):
        return True
    owned = [m for n, m in modules().items() if not owner or n.split(".")[-len(owner) :] == owner]
    return any(hasattr(module, last) for module in owned)


@pytest.mark.parametrize(
    "row", [r for r in papers() if r.status in ("ready", "recipe")], ids=lambda row: row.id
)
def test_what_a_recipe_names_is_there(row: Paper) -> None:
    missing = {one.name for one in primitives()}
    for code in re.findall(r"`([^`]+)`", row.recipe):
        if code.startswith("experiments/"):
            assert (ROOT / code).is_file(), code
        elif code.startswith("jcl "):
            _, command, name = code.split()[:3]
            assert (command == "run" and name in experiment.available()) or command == "reproduce"
        for part in re.split(r" \+ | → ", code.lstrip("+ ")):
            called = re.match(r"([A-Za-z_][\w.]*)(\(|$)", part)
            if called and called[1] not in NODES | missing:
                assert is_there(called[1]), (row.id, called[1])
            if called and called[1] in expression.factories() and called[2]:
                tree = ast.parse(part, mode="eval").body
                assert isinstance(tree, ast.Call)
                known = list(inspect.signature(expression.factories()[called[1]]).parameters)
                given = [one.arg for one in tree.keywords]
                given += [one.id for one in tree.args if isinstance(one, ast.Name)]
                assert set(given) <= set(known), (row.id, part)


def test_rows_are_found_and_chosen() -> None:
    assert find("2310.14152").title == "O-LoRA" and find("o-lora") == find("2310.14152")
    assert find("o-lora").link == "https://arxiv.org/abs/2310.14152"
    edits = choose(section="cmr", status="ready")
    assert {row.title for row in edits} >= {"WISE", "GRACE"}
    masked = choose(needs="masking")
    assert masked and counts(masked)["planned"] == len(masked)
    assert choose(mechanism="no such word") == []
    for give, sentence in (
        (lambda: find("o-lorra"), "no paper of the survey is 'o-lorra'; did you mean o-lora"),
        (lambda: find("zzz"), "no paper of the survey is 'zzz'; jcl survey lists all"),
        (lambda: choose(section="XY"), "section is 'XY', but must be the beginning of one of CPT"),
        (lambda: choose(status="done"), "status is 'done', but must be one of ready, recipe"),
        (lambda: choose(needs="luck"), "needs is 'luck', but must be a primitive: clip_tower"),
    ):
        with pytest.raises(ValueError, match=sentence):
            give()
