"""Who may import whom, who may touch disk, clock and screen, and what `import jcl` loads."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jcl"
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")

LAYERS = [
    "records",
    "trees",
    "method",
    "outputs",
    "taps refusals",
    "chain losses",
    "contexts",
    "memory data",
    "parallel",
    "mechanisms",
    "models methods program",
    "replicate training measures",
    "editing report testing",
    "runs",
    "survey",
    "cli",
    "entry",
]
"""The entries of `jcl/`, files or folders, from the earliest layer to the latest."""
LAYER = {entry: depth for depth, layer in enumerate(LAYERS) for entry in layer.split()}
BACKWARDS = {("method", "chain"): "a + b is chain(a, b)"}
"""Imports against the order, inside a function, and why."""
OUTSIDE_LAYERS = {"moved"}
"""`moved` maps old names to new ones and imports neither before it is asked to."""

SENSES = {
    "disk": {"pathlib", "os", "shutil", "tempfile", "csv", "mmap", "sqlite3"},
    "clock": {"time", "datetime"},
    "screen": {"rich", "print"},
}
TOUCHES = {
    "training": {"disk", "clock"},
    "data": {"disk", "clock"},
    "report": {"disk", "clock", "screen"},
    "runs": {"disk", "clock", "screen"},
    "survey": {"disk", "screen"},
    "cli": {"disk", "clock", "screen"},
    "testing": {"disk"},  # a folder to save into and to restore from
    "entry": {"disk", "clock", "screen"},  # of `os`, what ends a process
    "parallel/processes": {"disk", "clock", "screen"},  # of `os`, what ends a process
    "parallel/signals": {"disk", "clock", "screen"},
    "models/pretrained": {"disk"},
    "models/gguf": {"disk"},
    "models/gguf_vocabulary": {"disk"},  # a folder that a tokenizer saves itself into
    "models/gguf_write": {"disk"},
    "models/dequantize": {"disk"},
    "models/peft": {"disk"},
    "models/tensors": {"disk"},
    "editing/stream": {"disk", "clock"},
}
"""What may touch what; every other file is pure."""

RANKS = {"sort", "argsort", "top_k", "argpartition", "quantile", "percentile", "median", "_largest"}
MAY_RANK = {
    "mechanisms/importance": "with a layer's tensors in view",
    "mechanisms/merging": "with a layer's tensors in view",
    "methods/projections/ogd": "draws rows at random",
    "methods/weighting/rho": "chooses tokens of a batch",
    "editing/editors/grace": "puts a row's target first",
}
"""Which methods, mechanisms and editors rank anything themselves, and what that isn't: a share of
parameters, which `merging.mark_largest` takes in each layer's tensor and not in a stack of them."""

READS_TAPS = {"probe", "read", "custom_vjp"}
MAY_READ_TAPS = {
    "mechanisms/importance": "weighs by rows, and by tokens as the loss does",
    "methods/adapters/eproj": "each row's own image, with nothing summed over rows",
    "editing/statistics": "few of many layers, of which `moments` would hold all",
    "editing/values": "what flows at one token of a fact",
    "editing/editors/grace": "what flows at single tokens",
    "editing/editors/wise": "what flows at each token",
}
"""Which of them read what taps saw themselves; all others sum it by `taps.moments`, which leaves
padding out."""

MAY_NAME_METHODS = {
    "chain": "a chain of no methods is called `naive`",
    "contexts": "what a refusal advises",
    "data/codes": "languages have such codes",
    "mechanisms/adapters": "`lora` is a leaf of the tree: these are its words",
    "mechanisms/merging": "`lora` is a leaf; what a refusal advises",
    "mechanisms/lasting": "what a refusal advises",
    "models/layers": "`lora` is a leaf",
    "models/peft": "`lora` is a leaf; PEFT's own names in its files",
    "models/peft_prompts": "which method trains what PEFT's files hold",
    "parallel/mesh": "`lora` is a leaf",
    "cli": "examples in the help",
    "runs/expression": "examples in refusals",
    "runs/plan": "examples in refusals",
    "runs/life/settings": "the method of a life whose user names none",
    "runs/life/begin": "what a model is loaded with before its method is chosen: none",
    "runs/pipeline": "a node's default, and what costs are counted beside: plain fine-tuning",
    "runs/recycle": "the command distils",
    "testing/composition": "one method of each kind, to chain a user's own with",
    "testing/laws": "what is neutral is compared with `naive`",
}
"""Which files outside `methods/` name a method in their code, and why. No method is a special case
there: what one needs of a model, a mesh or a batch is a word of the contract."""

LONGEST = 400
LONG_BY_NATURE = {
    "jcl/models/decoder.py": "a whole architecture",
}

NO_MIRROR = {
    "data/codes": "a table, which edits.countries reads in test_edits.py",
    "data/registry/archives": "a table, which test_fetch.py looks over",
    "entry/jcl_command": "what starts the command, which test_signals.py does",
    "editing/editor": "a record, which every editor's test fills",
    "methods/baselines/naive": "a method that does nothing, to which others are compared",
    "models/decoder_families": "a table, row by row against transformers in test_parity.py",
    "models/decoder_layouts": "a table, row by row against transformers in test_parity.py",
    "models/encoder_families": "a table, row by row against transformers in test_encoder.py",
    "models/presets": "a table of published sizes",
    "refusals": "sentences, each of them a row of test_wrong_input.py",
    "models/vision_families": "a table, row by row against transformers in test_vision.py",
}
"""Modules of `jcl/` without a file of tests of their own, and why."""


def name_of(path: Path) -> str:
    """A file of `jcl/` as `folder/module`."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def entry_of(path: Path) -> str:
    """The entry of `LAYERS` to which a file belongs."""
    return name_of(path).partition("/")[0]


def imports(path: Path) -> set[str]:
    """Full names of what a file imports, anywhere in it: `jcl.x.y` for `from jcl.x import y`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(path: Path) -> set[str]:
    """Entries of `LAYERS` that a file imports; a bare `import jcl` counts as `jcl` itself."""
    names = [name.split(".") for name in imports(path)]
    found = {([*parts, "jcl"])[1] for parts in names if parts[0] == "jcl"}
    return found - OUTSIDE_LAYERS


def outside(path: Path) -> set[str]:
    """Packages that a file imports besides Python's own and ours."""
    names = {name.split(".")[0] for name in imports(path)}
    return names - set(sys.stdlib_module_names) - {"jcl", "__future__"}


def below(folder: str) -> list[Path]:
    """The files below a folder of `jcl/`."""
    return [path for path in FILES if name_of(path).startswith(f"{folder}/")]


def by_name(paths: list[Path]) -> dict[str, object]:
    """The arguments of `parametrize` for a test of each file."""
    return {"argnames": "path", "argvalues": paths, "ids": [name_of(p) for p in paths]}


@pytest.mark.quick
@pytest.mark.parametrize(**by_name(FILES))
def test_imports_run_from_later_layers_to_earlier_ones(path: Path) -> None:
    mine = entry_of(path)
    if mine in OUTSIDE_LAYERS:
        return
    for other in ours(path) - {mine, "__version__"}:
        if (mine, other) in BACKWARDS:
            continue
        assert other in LAYER, f"{name_of(path)} imports jcl.{other}, which is in no layer"
        assert LAYER[other] < LAYER[mine], f"{name_of(path)} imports {other} of a later layer"


@pytest.mark.quick
def test_every_entry_is_in_a_layer() -> None:
    assert {entry_of(path) for path in FILES} - OUTSIDE_LAYERS == set(LAYER)


@pytest.mark.quick
@pytest.mark.parametrize(
    **by_name([path for path in FILES if entry_of(path) in ("method", "records", "trees")])
)
def test_the_contract_stands_on_jax_alone(path: Path) -> None:
    assert outside(path) <= {"jax"}


@pytest.mark.quick
@pytest.mark.parametrize(**by_name(below("data")))
def test_data_imports_of_jcl_the_contract_alone(path: Path) -> None:
    assert ours(path) <= {"data", "method", "records"}


def siblings(folder: str) -> Iterator[tuple[Path, set[str]]]:
    """Each file below a folder, and the other files below it that it imports."""
    modules = {"jcl." + name_of(p).replace("/", "."): p for p in below(folder)}
    for path in below(folder):
        seen = {name for name in imports(path) if name.startswith(f"jcl.{folder}")}
        yield path, {m for m in modules for name in seen if f"{name}.".startswith(f"{m}.")}


@pytest.mark.quick
@pytest.mark.parametrize("folder", ["methods", "editing/editors"])
def test_no_method_imports_another_and_no_editor_another(folder: str) -> None:
    for path, others in siblings(folder):
        assert not others, f"{name_of(path)} imports {others}"


@pytest.mark.quick
@pytest.mark.parametrize(**by_name(below("methods") + below("mechanisms")))
def test_methods_and_mechanisms_are_pure_jax(path: Path) -> None:
    assert outside(path) <= {"jax"}


def calls(path: Path) -> set[str]:
    """Names of the functions that a file uses as attributes of a module, such as `lax.top_k`."""
    tree = ast.parse(path.read_text())
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


METHODICAL = below("methods") + below("mechanisms") + below("editing")


@pytest.mark.quick
@pytest.mark.parametrize("what, may", [(RANKS, MAY_RANK), (READS_TAPS, MAY_READ_TAPS)])
def test_who_ranks_and_who_reads_what_taps_saw(what: set[str], may: dict[str, str]) -> None:
    found = {name_of(path) for path in METHODICAL if calls(path) & what}
    assert found <= set(may), "use merging.mark_largest and taps.moments"
    mine = {"mechanisms/importance", "mechanisms/merging"}  # which need not
    assert set(may) - mine <= found, "an exception that nobody needs"


@pytest.mark.quick
def test_chain_knows_no_method_and_models_and_data_know_no_program() -> None:
    assert ours(PACKAGE / "chain.py") <= {"method", "trees"}
    for path in below("models") + below("data"):
        assert not ours(path) & {"methods", "chain", "program", "training"}, path


NAMES_OF_METHODS = {n.rpartition(".")[2] for n in imports(PACKAGE / "methods/__init__.py")}


def methods_named(path: Path) -> set[str]:
    """The methods that a file's code names: in strings that are no docstrings, and as functions."""
    tree = ast.parse(path.read_text())
    docs = {n.value for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docs:
            found |= set(re.findall(r"\w+", node.value))
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("methods"):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("jcl.methods."):
            found |= {alias.name for alias in node.names}
    return found & NAMES_OF_METHODS - {"infinite"}  # as numbers are called too


@pytest.mark.quick
def test_no_code_outside_methods_knows_a_method() -> None:
    others = [p for p in FILES if entry_of(p) != "methods" and entry_of(p) not in OUTSIDE_LAYERS]
    found = {name_of(path): methods_named(path) for path in others}
    named = {name: which for name, which in found.items() if which}
    assert {n: w for n, w in named.items() if n not in MAY_NAME_METHODS} == {}
    assert not set(MAY_NAME_METHODS) - set(named), "an exception that nobody needs"


@pytest.mark.quick
@pytest.mark.parametrize(**by_name(FILES))
def test_who_touches_disk_clock_and_screen(path: Path) -> None:
    tree = ast.parse(path.read_text())
    calls = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and hasattr(n.func, "id")}
    used = {name.split(".")[0] for name in imports(path)} | (calls & {"print", "open"})
    touched = {sense for sense, by in SENSES.items() if used & by}
    touched |= {"disk"} if "open" in used else set()
    name, entry = name_of(path), entry_of(path)
    assert touched <= TOUCHES.get(entry, set()) | TOUCHES.get(name, set())


@pytest.mark.quick
def test_nothing_imports_experiments() -> None:
    for path in FILES:
        assert not {n for n in imports(path) if n.startswith(("experiments", "tpu"))}, path


@pytest.mark.quick
def test_no_file_says_nothing_by_its_name() -> None:
    assert not {p.stem for p in FILES} & {"utils", "helpers", "misc", "common"}


@pytest.mark.quick
def test_the_top_floor_is_the_idea() -> None:
    assert len([path for path in FILES if path.parent == PACKAGE]) <= 12


@pytest.mark.quick
def test_no_file_is_longer_than_it_can_be_read() -> None:
    written = [*FILES, *sorted((ROOT / "tpu").glob("*.py"))]
    long = {p.relative_to(ROOT).as_posix(): len(p.read_text().splitlines()) for p in written}
    assert {n: k for n, k in long.items() if k > LONGEST and n not in LONG_BY_NATURE} == {}


def mirrors(path: Path) -> list[Path]:
    """Where a module's tests may be: its own name in its own folder, or with the folder's in front
    where another file of tests has that name already, for pytest wants each once."""
    folder, stem = ROOT / "tests" / path.relative_to(PACKAGE).parent, path.stem
    return [folder / f"test_{stem}.py", folder / f"test_{path.parent.name}_{stem}.py"]


MIRRORED = {p: [m for m in mirrors(p) if m.exists()] for p in FILES}


@pytest.mark.quick
@pytest.mark.parametrize(**by_name(FILES))
def test_every_module_has_tests_where_it_says(path: Path) -> None:
    assert bool(MIRRORED[path]) != (name_of(path) in NO_MIRROR), "none, or no reason for none"


@pytest.mark.quick
def test_each_name_of_a_file_of_tests_is_there_once() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


@pytest.mark.quick
@pytest.mark.parametrize(**by_name([path for path in FILES if MIRRORED[path]]))
def test_every_module_has_a_quick_test(path: Path) -> None:
    assert any(is_quick(ast.parse(mirror.read_text())) for mirror in MIRRORED[path])


def is_quick(tests: ast.Module) -> bool:
    """Whether a file of tests marks all as quick, or a test or one of its parameters."""
    return any(
        isinstance(node, ast.Attribute) and ast.unparse(node) == "pytest.mark.quick"
        for node in ast.walk(tests)
    )


def test_import_loads_the_core_alone() -> None:
    heavy = "orbax matplotlib rich tyro sklearn tensorflow_datasets transformers torch grain flax"
    code = f"import sys, jcl; print([m for m in {heavy.split()!r} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.fixture
def marked(tmp_path: Path) -> Callable[..., str]:
    """Runs pytest as this repository does over one empty test for each combination of marks."""
    by_hand = ["network", "gpu", "pairs"]
    text = "import pytest\ndef test_plain(): pass\n"
    for marks in [[m] for m in (*by_hand, "slow", "quick")] + [["quick", m] for m in by_hand]:
        text += "".join(f"@pytest.mark.{m}\n" for m in marks)
        text += f"def test_{'_'.join(marks)}(): pass\n"
    path = tmp_path / "test_marked.py"
    path.write_text(text)

    def run(*options: str) -> str:
        root = PACKAGE.parent
        command = [sys.executable, "-m", "pytest", "-c", str(root / "pyproject.toml"), "-n", "0"]
        command += ["-p", "no:cacheprovider", "-p", "conftest", "-vv", *options, str(path)]
        places = [str(root), str(root / "tests")]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
        return subprocess.run(command, capture_output=True, text=True, env=env).stdout

    return run


def test_what_is_run_by_hand_is_never_run_by_default_or_as_quick(
    marked: Callable[..., str],
) -> None:
    def passed(shown: str) -> list[str]:
        return re.findall(r"::test_(\w+) PASSED", shown)

    assert passed(marked()) == ["plain", "slow", "quick"]
    assert passed(marked("-m", "network")) == ["network"]
    quick = marked("-m", "quick")
    assert passed(quick) == ["quick"]
    for mark in (
        "network",
        "gpu",
        "pairs",
    ):  # fails before its fixtures are made
        assert f"test_quick_{mark} is marked quick and {mark}, but must" in quick


@pytest.mark.quick
def test_ci_runs_the_command_that_the_readme_gives() -> None:
    command = (PACKAGE.parent / ".ci" / "run").read_text().splitlines()[-1]
    readme = (PACKAGE.parent / "README.md").read_text()
    given = re.search(r"^pip install -e '\.\[test\]' && ([^#\n]+)", readme, re.MULTILINE)
    assert given is not None and given[1].strip() == command


@pytest.mark.xdist_group("together")
def test_tests_that_share_what_is_compiled_run_in_one_process(
    request: pytest.FixtureRequest,
) -> None:
    """Else each of two processes compiles it, and the whole takes half as long again."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("there is only one process")
    assert request.node.nodeid.endswith("@together")
