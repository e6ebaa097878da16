"""`jcl list NAME`: what it shows of each kind of thing, whole and as it is used."""

from __future__ import annotations

import inspect
import shlex

import pytest

import jcl
from jcl import cli, data, editing, methods, models
from jcl.runs import edit, experiment, expression, listing


@pytest.fixture
def shown(capsys):
    """What `jcl list NAME` prints."""

    def call(name: str) -> str:
        assert cli.main(["list", name]) == 0
        said = capsys.readouterr()
        assert said.err == ""
        return said.out

    return call


def squeezed(text: str) -> str:
    """A text without its line breaks, which a terminal puts elsewhere."""
    return " ".join(text.split())


@pytest.mark.quick
def test_a_method_is_shown_whole(shown):
    said = shown("er")
    assert said.startswith("er, method\n\ner(capacity=500, rows=None, weight=1.0, start=1, ")
    assert squeezed(inspect.getdoc(methods.er)) in squeezed(said)
    pipeline = jcl.explain(methods.er()).splitlines()[1:]
    assert "\n".join(pipeline) in said  # in the order in which they run
    assert "reads of earlier stages: samples\n" in said
    assert 'example: jcl run EXPERIMENT --method "er(capacity=500)"\n' in said


@pytest.mark.parametrize("name", list(expression.factories()))
def test_every_method_has_phases_and_an_example_that_works(shown, name):
    said = shown(name)
    lines = said.splitlines()
    usage = next(line for line in lines if line.startswith("example: "))
    if "in Python" in usage:  # it needs arrays, which no expression can name
        assert listing.example(name) is None and f"jcl.methods.{name}(" in usage
        return
    words = shlex.split(usage)
    method = expression.build(expression.parse(words[words.index("--method") + 1]))
    assert (
        jcl.explain(method).splitlines()[1:]
        == lines[lines.index("phases of a step:") + 1 :][
            : len(jcl.explain(method).splitlines()) - 1
        ]
    )
    assert f"reads of earlier stages: {', '.join(method.reads) or 'nothing'}" in lines


@pytest.mark.quick
def test_only_what_needs_arrays_has_no_expression():
    assert [n for n in expression.factories() if listing.example(n) is None] == ["distil"]


@pytest.mark.parametrize("name", ["rome", "memit", "alphaedit", "ft_l", "grace", "wise"])
def test_an_editor_is_shown_whole(shown, name):
    said = shown(name)
    assert said.startswith(f"{name}, editor\n\n{name}(apply, ")
    assert squeezed(inspect.getdoc(getattr(editing, name))) in squeezed(said)
    if name in edit.EDITORS:
        usage = next(line for line in said.splitlines() if line.startswith("example: "))
        words = shlex.split(usage)
        assert words[1:3] == ["jcl", "edit"] and words[-1] == name


def test_a_name_that_two_have_shows_both(shown):
    said = shown("digits")
    first, second = said.index("digits, experiment\n"), said.index("digits, function of jcl.data\n")
    assert first < said.index("  epochs = 20\n") < said.index("example: jcl run digits\n") < second
    assert said.index("digits(test_share=0.2, seed=0)") > second
    assert squeezed(inspect.getdoc(data.digits)) in squeezed(said)


@pytest.mark.parametrize("name", list(experiment.available()))
def test_an_experiment_is_shown_without_being_imported(shown, name):
    module = experiment.load(experiment.find(name))
    said = shown(name)
    assert squeezed(inspect.getdoc(module)) in squeezed(said)
    assert f"example: jcl run {name}\n" in said
    for field in module.Config.__dataclass_fields__:
        assert f"\n  {field} = " in said


def test_a_function_of_data_and_a_model(shown):
    assert squeezed(inspect.getdoc(data.split)) in squeezed(shown("split"))
    said = shown("mlp")
    assert squeezed(inspect.getdoc(models.mlp)) in squeezed(said)
    assert "  init(key, sizes)\n" in said and "  apply(params, batch, call=Call())\n" in said


@pytest.mark.parametrize(
    "name, says",
    [
        ("erx", "nothing is called 'erx'; did you mean er or der?"),
        ("rom", "did you mean rome, "),
        ("qqqqq", "nothing is called 'qqqqq'; jcl list names all that there is"),
    ],
)
def test_an_unknown_name_is_one_sentence(capsys, name, says):
    assert cli.main(["list", name]) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and not said.out
