"""Who may import whom, read from the source, and what `import jcl` may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jcl"
HELPERS = {
    "method", "trees", "taps", "losses", "importance", "memory", "merging", "metrics", "adapters",
    "growth",
    "flops", "preference", "rows",
}  # fmt: skip
FOLDERS = {"folder", "gguf", "peft", "tensors"}  # of models: what reads and writes weights
SHELL = {
    "fit",
    "edit",
    "export",
    "checkpoint",
    "processes",
    "report",
    "cli",
    "launch",
    "data",
    "nodes",
    "pipeline",
    "plan",
    "screen",
    "page",
    "figures",
    "flags",
    "signals",
}


def imports(path: Path, top_level: bool = False) -> set[str]:
    """Full names of the modules that a file imports, `jcl.x` for `from jcl import x`."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = node.module == "jcl"
            found |= {f"jcl.{a.name}" for a in node.names} if inside else {node.module}
    return found


def ours(path: Path) -> set[str]:
    """First names of the jcl modules that a file imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("jcl.")}


def outside(path: Path) -> set[str]:
    names = {name.split(".")[0] for name in imports(path)}
    return names - set(sys.stdlib_module_names) - {"jcl", "__future__"}


def files(folder: str) -> list[Path]:
    return [p for p in sorted((PACKAGE / folder).glob("*.py")) if p.name != "__init__.py"]


@pytest.mark.parametrize("name", ["method", "trees"])
def test_the_contract_stands_on_jax_alone(name: str) -> None:
    path = PACKAGE / f"{name}.py"
    assert outside(path) <= {"jax"} and not ours(path) - {"method"}


@pytest.mark.parametrize("path", files("methods"), ids=lambda p: p.stem)
def test_methods_import_helpers_and_never_one_another(path: Path) -> None:
    assert ours(path) <= HELPERS
    assert outside(path) <= {"jax"}


@pytest.mark.parametrize("name", sorted(HELPERS - {"memory", "metrics"}))
def test_helpers_are_pure(name: str) -> None:
    path = PACKAGE / f"{name}.py"
    assert ours(path) <= HELPERS and outside(path) <= {"jax"}


def test_chain_knows_no_method() -> None:
    assert ours(PACKAGE / "chain.py") <= {"method", "trees"}


@pytest.mark.parametrize("path", files("models") + files("data"), ids=lambda p: p.stem)
def test_models_and_data_know_no_method(path: Path) -> None:
    assert not ours(path) & {"methods", "chain", "program", "fit"}


def test_only_the_shell_opens_files_or_reads_the_clock() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        weights = name == "models" and path.stem in FOLDERS
        driver = name == "editing" and path.stem == "stream"
        if name not in SHELL | {"experiment"} and not weights and not driver:
            assert not imports(path) & {"time", "pathlib", "os", "shutil", "rich"}, path


def test_nothing_imports_experiments() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert not {n for n in imports(path) if n.startswith(("experiments", "tpu"))}, path


def test_no_file_says_nothing_by_its_name() -> None:
    names = {p.stem for p in PACKAGE.rglob("*.py")}
    assert not names & {"utils", "helpers", "misc", "common"}


def test_import_loads_the_core_alone() -> None:
    heavy = "orbax matplotlib rich tyro sklearn tensorflow_datasets transformers torch grain flax"
    code = f"import sys, jcl; print([m for m in {heavy.split()!r} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
