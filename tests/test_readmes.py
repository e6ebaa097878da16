"""The READMEs: what they point at exists, what they tell to type is a command, nothing is left out.

Their Python is run as doctests (`--doctest-glob=README.md`); here is the rest of what can go stale.
"""

from __future__ import annotations

import re
import runpy
import shlex
from functools import cache
from pathlib import Path

import pytest

from jcl import methods
from jcl.cli import COMMANDS, main
from jcl.runs import edit, experiment, expression, launch

ROOT = Path(__file__).parents[1]
READMES = sorted(
    [
        ROOT / "README.md",
        ROOT / "experiments" / "README.md",
        ROOT / "tpu" / "README.md",
        *(ROOT / "jcl").rglob("README.md"),
    ]
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
OURS = re.compile(r"(?<![\w./-])(?:jcl|tests|experiments|tpu)/[\w./-]*\w(?:/|(?=[^\w/])|$)")
PATHLIKE = re.compile(r"\.(?:py|sh|md|png|json|yaml)$|/$")

each = pytest.mark.parametrize(
    "path", READMES, ids=[p.relative_to(ROOT).as_posix() for p in READMES]
)


@cache
def text_of(path: Path) -> str:
    return path.read_text()


def anchors(path: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    prose = FENCE.sub("", text_of(path))
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in kept}


def commands_of(path: Path) -> list[str]:
    """Lines of a page's bash blocks, continued ones joined, and its spans of code."""
    text = text_of(path)
    blocks = [body.replace("\\\n", " ") for kind, body in FENCE.findall(text) if kind == "bash"]
    spans = re.findall(r"`([^`]+)`", FENCE.sub("", text))
    return [line for block in blocks for line in block.splitlines()] + [
        " ".join(span.split()) for span in spans
    ]


def jcl_calls(path: Path) -> list[list[str]]:
    """What follows `jcl` where a page tells to type it: up to a comment or the next command."""
    found = []
    for line in commands_of(path):
        for call in re.findall(r"(?:^|[\s/])jcl ([a-z][^#;&|]*)", line):
            found.append(call.split())
    return found


def test_there_are_the_pages_that_the_front_page_maps() -> None:
    folders = {p.parent.relative_to(ROOT).as_posix() for p in READMES}
    rooms = {"jcl/methods", "jcl/models", "jcl/data", "jcl/runs"}
    assert folders >= {".", "experiments", "tpu"} | rooms
    for room in folders - {"."}:
        assert f"({room}/README.md)" in text_of(ROOT / "README.md"), f"no way to {room}"


def test_the_front_page_is_one_that_is_read() -> None:
    lines = text_of(ROOT / "README.md").splitlines()
    assert len(lines) <= 180
    assert lines.index("## Contributing") <= 100, "contributing is at the end of a long page"


@each
def test_links_lead_somewhere(path: Path) -> None:
    for link in LINK.findall(FENCE.sub("", text_of(path))):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{link} isn't there"
        assert target.is_relative_to(ROOT), f"{link} leads out of the repository"
        if anchor:
            assert anchor in anchors(target), f"{target} has no heading {anchor}"


@each
def test_paths_that_are_named_exist(path: Path) -> None:
    for name in OURS.findall(text_of(path)):
        if PATHLIKE.search(name):
            assert (ROOT / name).exists(), f"{name} isn't there"


@each
def test_commands_that_are_named_exist(path: Path) -> None:
    known = experiment.available()
    for command, *rest in jcl_calls(path):
        assert command in COMMANDS, f"jcl {command} is no command"
        name = rest[0] if command == "run" and rest else ""
        if re.fullmatch("[a-z]+", name) and name != "finetune":  # a life, and no file
            assert name in known, f"jcl run {name} is no experiment"


OWN = re.compile(r"# (\w+\.py)\n")
"""How a block begins that is a file of the reader's own."""


@pytest.fixture
def beside_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, where we are, with the files that the methods' page tells to write."""
    for kind, body in FENCE.findall(text_of(ROOT / "jcl" / "methods" / "README.md")):
        if kind == "python" and (name := OWN.match(body)):
            (tmp_path / name[1]).write_text(body)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@each
def test_expressions_of_methods_are_understood(path: Path, beside_own_files: Path) -> None:
    for line in commands_of(path):
        for given in re.findall(r'--method "([^"$]+)"', line):
            calls = expression.parse(given)
            assert calls, f"{given} is empty"


def test_some_of_all_this_was_found() -> None:
    front = ROOT / "README.md"
    assert {"run", "list", "fetch", "explain", "compare", "export"} <= {
        call[0] for call in jcl_calls(front)
    }
    assert "jcl/methods/" in OURS.findall(text_of(front))
    assert "jcl/moved.py" in OURS.findall(text_of(front))
    assert "what-it-costs" in anchors(ROOT / "tpu" / "README.md")


def test_every_method_is_in_its_table_with_its_file() -> None:
    page = ROOT / "jcl" / "methods" / "README.md"
    rows = re.findall(r"^\| \[([^\]]+)\]\(([^)]+)\)", text_of(page), re.MULTILINE)
    found = {name: file for names, file in rows for name in re.findall(r"`(\w+)`", names)}
    assert set(found) == set(methods.__all__)
    for name, file in found.items():
        module = getattr(methods, name).__module__
        assert module == "jcl.methods." + file.removesuffix(".py").replace("/", ".")


def test_every_folder_of_methods_is_in_the_list() -> None:
    folders = {p.parent.name for p in (ROOT / "jcl" / "methods").glob("*/__init__.py")}
    listed = re.findall(r"^\| \[`(\w+)/`\]", text_of(ROOT / "jcl/methods/README.md"), re.MULTILINE)
    assert sorted(listed) == sorted(folders)


def test_every_editor_that_the_command_takes_is_said_to_be_taken() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| yes \|$", text_of(ROOT / "jcl/runs/README.md"), re.M)
    assert sorted(rows) == sorted(edit.EDITORS)


def test_everything_that_can_be_fetched_and_every_figure_is_on_a_page() -> None:
    from jcl.data.registry.archives import SOURCES

    page = text_of(ROOT / "jcl" / "data" / "README.md")
    assert not [name for name in SOURCES if f"`{name}`" not in page]
    everything = "".join(map(text_of, READMES))
    figures = sorted(p.name for p in (ROOT / "experiments" / "figures").glob("*.png"))
    assert not [name for name in figures if f"figures/{name})" not in everything]


@each
def test_python_is_run_as_a_doctest(path: Path) -> None:
    for kind, body in FENCE.findall(text_of(path)):
        assert kind in ("python", "bash", "bibtex"), f"a block of {kind or 'no language'}"
        if kind == "python":
            own = path.parent.name == "methods" and OWN.match(body)
            assert own or body.startswith(">>> "), f"this isn't run: {body[:60]}"


def test_the_own_method_of_the_page_runs_and_passes_its_test(
    beside_own_files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = text_of(ROOT / "jcl" / "methods" / "README.md")
    section = page.partition("## Your own method")[2].partition("\n## ")[0]
    (commands,) = [body for kind, body in FENCE.findall(section) if kind == "bash"]
    monkeypatch.setattr(launch, "split_cpu", lambda: None)  # devices are there already
    for line in commands.splitlines():
        assert main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    monkeypatch.syspath_prepend(beside_own_files)
    runpy.run_path(str(beside_own_files / "test_mine.py"))["test_pull"]()
