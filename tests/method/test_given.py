"""What hooks are given: a step's products as a pytree, and the keys of a batch in their table."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jcl
from jcl.method import Info

pytestmark = pytest.mark.quick


def test_what_a_step_produced_is_a_pytree() -> None:
    info = Info(*(jnp.full(i, float(i)) for i in range(len(Info._fields))))
    doubled = jax.tree.map(lambda x: 2 * x, info)
    assert isinstance(doubled, Info) and doubled.grads.tolist() == [6.0] * 3


PACKAGE = Path(jcl.__file__).parent
BATCHES = {"batch", "batches", "rows", "fresh", "old", "pairs", "part", "own", "info.batch"}
"""What the code calls a batch, all over `jcl/`."""
RAW = ("data/corpora.py", "data/registry/")
"""Where what is called so isn't one yet, but a file as it was fetched."""
FACTS = {"fact", "facts"}
"""And in `jcl/editing/`, where batches are of edits."""


def table() -> dict[str, str]:
    """The rows of the table beneath `Batch`, by their key."""
    body = ast.parse((PACKAGE / "method" / "given.py").read_text()).body
    at = next(i for i, n in enumerate(body) if isinstance(n, ast.Assign) and _is_batch(n))
    beneath = body[at + 1]
    assert isinstance(beneath, ast.Expr) and isinstance(beneath.value, ast.Constant)
    rows = str(beneath.value.value).partition("\nkey ")[2].splitlines()[1:]
    return {row.split()[0]: row for row in rows}


def _is_batch(node: ast.Assign) -> bool:
    return isinstance(node.targets[0], ast.Name) and node.targets[0].id == "Batch"


def _text(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return None


def keys_of(path: Path) -> set[str]:
    """String keys that a file reads from batches, asks of them, or adds to them."""
    names = BATCHES | (FACTS if "editing" in path.parts else set())
    found: set[str | None] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) in names:
            found.add(_text(node.slice))
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
            if ast.unparse(node.comparators[0]) in names:
                found.add(_text(node.left))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            gets = node.func.attr in ("get", "setdefault") and node.args
            if gets and ast.unparse(node.func.value) in names:
                found.add(_text(node.args[0]))
        elif isinstance(node, ast.Dict) and None in node.keys:
            spread = {ast.unparse(v) for k, v in zip(node.keys, node.values, strict=True) if not k}
            found |= {_text(k) for k in node.keys if k} if spread & names else set()
    return {key for key in found if key}


def test_every_key_of_a_batch_in_the_code_is_in_the_table() -> None:
    known = table()
    files = {p.relative_to(PACKAGE).as_posix(): p for p in sorted(PACKAGE.rglob("*.py"))}
    used = {name: keys_of(p) for name, p in files.items() if not name.startswith(RAW)}
    leaves = {"kernel", "bias", "embed/table"}  # of a layer's parameters, which are a file's `own`
    unknown = {f"{name}: {key}" for name, keys in used.items() for key in keys - {*known} - leaves}
    assert not unknown
    everywhere = set().union(*used.values())
    assert {"weight", "task", "tokens", "mask", "question", "essence", "row"} <= everywhere


def test_every_key_in_the_table_is_in_the_code() -> None:
    sources = [p for p in PACKAGE.rglob("*.py") if p.name != "given.py"]
    trees = [ast.parse(p.read_text()) for p in sources]
    # of a name such as f"{name}/match" the constant part
    texts = {text for tree in trees for node in ast.walk(tree) if (text := _text(node))}
    for key in table():
        made = key.startswith("rejected_") and key.removeprefix("rejected_") in texts
        named = "/" in key and f"/{key.rpartition('/')[2]}" in texts
        assert key in texts or made or named, key


def test_the_rows_of_the_table_say_shape_dtype_and_who() -> None:
    for row in table().values():
        _, shape, meaning = re.split(r"\s{2,}", row)
        assert re.fullmatch(r"\[.+\] (u?int32|float(32)?)|a model's Cache", shape)
        assert "; " in meaning and " -> " in meaning
