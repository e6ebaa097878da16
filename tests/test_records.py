"""What `help`, `repr` and a notebook show of the records that users hold in their hands."""

from __future__ import annotations

import inspect
import pydoc
import xml.etree.ElementTree as ElementTree
from typing import Any

import jax
import numpy as np
import optax
import pytest

import jcl
from jcl import data, editing, losses, method, models, program
from jcl.measures.evaluation import accuracy, evaluator
from jcl.models import decoder, mlp
from jcl.runs import experiment


def scenario(names: tuple[str, ...]) -> data.Scenario:
    """Tasks of 40 rows, each the sign of another column."""
    rng = np.random.default_rng(0)
    tasks = []
    for column in range(len(names)):
        x = rng.normal(size=(40, 6)).astype(np.float32)
        tasks.append({"x": x, "y": (x[:, column % 6] > 0).astype(np.int32)})
    return data.scenario(tasks, tasks, names, np.ones((len(names), 2), bool))


NAMES = tuple(f"the stage that is called <b>{i}</b> & has a rather long name" for i in range(30))
METHOD = jcl.chain(
    jcl.methods.er(capacity=20, rows=4), jcl.methods.packnet(stages=30), jcl.methods.lwf()
)


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    """A real example of each record, with more and longer names than people give."""
    given = scenario(NAMES)
    stream = data.from_scenario(given, batch=8, steps=2)
    made = jcl.make(METHOD, mlp.apply, losses.cross_entropy(), optax.sgd(0.1))
    params = mlp.init(jax.random.key(0), (6, 5, 2))
    scored = evaluator(stream.test, accuracy())
    result = jcl.fit(made, params, jax.random.key(1), stream, evaluate=scored)
    config = decoder.Config(layers=3, width=32, heads=2, kv_heads=1, hidden=40)
    model = models.of(config, decoder.init(jax.random.key(0), config))
    return {
        "Result": result, "Stream": stream, "Scenario": given, "Program": made, "Model": model,
        "Method": METHOD,
    }  # fmt: skip


FACTS = {
    "Result": ("stages=30", "final_scores=(", "mean=0.", "steps=60", "loss=", "wall_seconds="),
    "Stream": ("stages=30", "names=('the stage", "steps=60", "tests=30", "megabytes=0.0"),
    "Scenario": ("stages=30", "rows=(40, 40, 40, 40, ...)", "x float32 [6]"),
    "Program": ("method='er + packnet + lwf'",),
    "Model": ("'llama'", "parameters='0.0 million'", "float32", "layers=3", "width=32"),
    "Method": ("'er + packnet + lwf'", "observe", "reads=("),
}


@pytest.mark.parametrize("name", FACTS)
def test_repr_is_a_line_of_facts(shown: dict[str, Any], name: str) -> None:
    text = repr(shown[name])
    assert len(text) <= 200 and "\n" not in text and text.startswith(f"{name}(")
    for fact in FACTS[name]:
        assert fact in text
    assert "Array" not in text and "array" not in text.replace("arrays=", "")


@pytest.mark.parametrize("name", FACTS)
def test_a_notebook_shows_the_same_facts_as_a_table(shown: dict[str, Any], name: str) -> None:
    root = ElementTree.fromstring(shown[name]._repr_html_())  # refuses what isn't well-formed
    assert root.tag == "table" and root.findtext("caption") == name
    rows = {row.findtext("th"): row.findtext("td") for row in root.iter("tr")}
    line = f"{name}({', '.join(f'{k}={v}' for k, v in rows.items())})"
    assert repr(shown[name]) == (line if len(line) <= 200 else line[:196] + "...)")
    assert {x.tag for x in root.iter()} == {"table", "caption", "tr", "th", "td"}


def test_markup_in_names_is_text(shown: dict[str, Any]) -> None:
    named = shown["Scenario"]._replace(names=("<b>bold</b> & so on",))
    assert "'&lt;b&gt;bold&lt;/b&gt; &amp; so on'" in named._repr_html_().replace("&#x27;", "'")


def test_the_last_scores_are_those_that_repr_shows(shown: dict[str, Any]) -> None:
    few = shown["Result"]._replace(scores=np.array([[0, 0], [0.5, 0], [0.25, 0.75]], np.float32))
    assert "stages=2, final_scores=(0.25, 0.75), mean=0.5, " in repr(few)
    members = few._replace(scores=np.stack([few.scores, few.scores + 0.25]))
    assert "members=2, stages=2, final_scores=(0.375, 0.875), mean=0.625, " in repr(members)
    assert "scores" not in repr(few._replace(scores=None))


def test_a_program_names_its_members_and_its_mesh() -> None:
    def member(values: Any) -> jcl.Program:
        return jcl.make(jcl.methods.naive(), mlp.apply, losses.cross_entropy(), optax.sgd(0.1))

    assert "members=3" in repr(jcl.replicate(member, {"seed": np.arange(3)}))
    spread = jcl.make(
        jcl.methods.naive(), mlp.apply, losses.cross_entropy(), optax.sgd(0.1),
        mesh=jcl.mesh.make(data=2, fsdp=2),
    )  # fmt: skip
    assert (
        repr(spread) == "Program(method='naive', mesh='data=2,fsdp=2,expert=1,sequence=1,tensor=1')"
    )


def public_records() -> list[type]:
    """The NamedTuples that the packages export, those of the contract, and `Experiment`."""
    found = [getattr(module, n) for module in (jcl, data, models) for n in module.__all__]
    found += [editing.Editor, experiment.Experiment]
    for module in (method, program, losses):
        found += [x for n, x in vars(module).items() if not n.startswith("_")]
    classes = [x for x in found if inspect.isclass(x) and hasattr(x, "_fields")]
    return sorted(set(classes), key=lambda x: x.__qualname__)


@pytest.mark.parametrize("kind", public_records(), ids=lambda kind: kind.__name__)
def test_help_says_what_each_field_means(kind: Any) -> None:
    for name in kind._fields:
        said = inspect.getdoc(getattr(kind, name))
        assert said and not said.startswith("Alias for"), name
    assert "Alias for field number" not in pydoc.render_doc(kind)


@pytest.mark.quick
def test_the_records_are_there() -> None:
    assert {"Ctx", "Info", "Method", "Program", "Result", "State", "Stream", "TokenScores"} <= {
        kind.__name__ for kind in public_records()
    }


@pytest.mark.quick
def test_a_field_has_the_string_beneath_it_or_its_entry_under_args() -> None:
    assert jcl.Ctx.stage_step.__doc__ == "int32 []: how many steps are taken in this stage."
    beneath = inspect.getdoc(jcl.Result.examples_per_second)
    assert beneath and beneath.endswith("compiling and\nevaluation excluded, work at boundaries "
                                        "included.")  # fmt: skip
    told = "changes the gradient before the optimizer sees it, by a quadratic pull or a projection."
    assert jcl.Method.grads.__doc__ == told
