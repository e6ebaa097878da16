"""Figures of the experiments, from made-up numbers that are awkward: their texts keep apart."""

import re
import sys
from pathlib import Path

import drawn_texts
import numpy as np
import pytest
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
KINDS = {"three seeds": (3, 1.0), "one seed": (1, 1.0), "all equal": (3, 0.0), "tiny": (2, 1e-17)}


@pytest.fixture(scope="module", autouse=True)
def _path():
    before = list(sys.path)
    sys.path[:0] = [str(ROOT / "experiments"), str(ROOT / "tpu")]
    yield
    sys.path[:] = before


@pytest.fixture(params=KINDS)
def numbers(request):
    """`numbers(shape)` makes samples [seeds, *shape] within 0 and 1."""
    seeds, size = KINDS[request.param]
    rng = np.random.default_rng(0)
    return lambda *shape: 0.5 + size * (rng.random((seeds, *shape)) - 0.5)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """`drawn(draw, seeds)` calls `draw(path)`, checks what it saves, and returns the figure."""
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: saved.append(self))

    def call(draw, seeds):
        draw(tmp_path / "figure.png")
        (figure,) = saved
        texts = [text.get_text() for text in drawn_texts.check(figure)]
        assert any("95 %" in text for text in texts) == (seeds > 1)
        assert seeds > 1 or not drawn_texts.intervals(figure)
        assert not [text for text in texts if re.search(r"\de[-−]\d", text)]
        return figure

    return call


def test_editing(numbers, drawn):
    import editing

    def lines(samples):  # [seeds, lines, measures]
        return [
            [
                dict(zip(editing.SHOWN, map(float, row), strict=True), edits=4 * i)
                | {"perplexity": 37 + float(row[-1]), "retained": float(row[4]) if i > 1 else None}
                for i, row in enumerate(seed)
            ]
            for seed in samples
        ]

    found = {method: lines(numbers(3, len(editing.SHOWN))) for method in editing.METHODS}
    figure = drawn(lambda path: editing.draw(found, path), len(found[editing.METHODS[0]]))
    for axes in figure.axes[:4]:
        assert axes.get_ylim() == (0, 1)
    assert figure.axes[4].get_xlim() == (0, 1)
    low, high = figure.axes[5].get_ylim()
    assert high - low >= 0.05 and not {"log"} & {axes.get_yscale() for axes in figure.axes}
    assert not any(axes.get_legend() for axes in figure.axes)


def test_dynamics(numbers, drawn):
    import dynamics

    gaps = {name: numbers(301) for name in dynamics.Config.methods}
    ages = numbers(12)
    figure = drawn(
        lambda path: dynamics.draw(gaps, ages, dynamics.Config(out=path)), len(ages)
    )  # fmt: skip
    assert figure.axes[0].get_ylim() == (0, 100)


def test_recycling(numbers, drawn):
    import recycling

    curves = {name: numbers(9) for name in recycling.SHOWN.values()}
    walked, alike = numbers(3, 11)[0], numbers(4, 4)[0]
    drawn(
        lambda path: recycling.draw(curves, walked, alike, recycling.Config(out=path)),
        len(curves["both"]),
    )


@pytest.mark.parametrize("probed", [True, False])
def test_adaptation(numbers, drawn, probed):
    import adaptation

    found = {
        name: {"scores": numbers(4, 3), "probes": numbers(4)[0] if probed else None}
        for name in adaptation.CELLS
    }
    drawn(lambda path: adaptation.draw(found, path), len(found["DAPT"]["scores"]))


def test_snapshots(numbers, drawn):
    import snapshots

    found = {
        name: {kind: numbers(3) for kind in snapshots.KINDS} for name in snapshots.CELLS
    }  # fmt: skip
    drawn(lambda path: snapshots.draw(found, path), len(numbers(1)))


def test_pretraining(numbers, drawn):
    import pretraining

    names = [*(n for n in pretraining.CELLS if "same" not in n), "infinite, annealed"]
    steps = np.arange(3, 121, 3)
    curves = {n: (steps, numbers(40)[0]) for n in ("no re-warming", "re-warming", "infinite")}
    found = {"ends": {name: numbers(3) for name in names}, "curves": curves}
    drawn(lambda path: pretraining.draw(found, path), len(numbers(1)))


def test_multimodal(numbers, drawn, monkeypatch):
    import multimodal

    from jcl.data import images

    class Shown:
        image = np.zeros((1, 28, 28, 1))
        turns = ((("What garment is this on the picture?", "an ankle boot"),),)

    monkeypatch.setattr(images, "image_questions", lambda *_, **__: Shown)
    names = multimodal.METHODS
    found = {
        "tasks": ["digit", "garment", "larger", "worn"],
        "scores": {name: numbers(5, 4) for name in names},
        "lost": {name: numbers(3) for name in names},
    }
    figure = drawn(lambda path: multimodal.draw(found, path), len(numbers(1)))
    assert figure.axes[4].get_ylim() == (0, 100)


def test_alignment(numbers, drawn):
    import alignment

    def run(values):
        measured = {m: np.moveaxis(numbers(len(values), 4, 2), 0, 1) for m in alignment.MEASURES}
        return {"values": values, **measured}

    found = {name: run(values) for name, (_, _, values) in alignment.COMPARED.items()}
    drawn(lambda path: alignment.draw(found, path), len(numbers(1)))


def test_instructions(numbers, drawn):
    import instructions

    found = [
        {
            "label": name, "scores": numbers(5, 4), "forgetting": numbers(4),
            "learned": [1, 2, 3, 4], "stages": ["a", "b", "c", "d"], "tasks": ["a", "b", "c", "d"],
            "measure": "exact match", "higher_is_better": True,
        }
        for name in instructions.METHODS
    ]  # fmt: skip
    drawn(lambda path: instructions.draw(found, path), len(numbers(1)))


def test_weak_scaling(numbers, drawn):
    import scaling

    def point(chips):
        sent = dict(zip(("all-gather", "all-reduce"), 1e9 * numbers(2)[0], strict=True))
        return {"chips": chips, "tokens": 8192, "sent": sent, "flops": 8e13, "compute": 1.0,
                "wires": float(numbers()[0])}  # fmt: skip

    lines = {
        f"v5{kind}, {mesh}": [point(2**i) for i in range(3, 7 + 2 * (kind == "p"))]
        for kind in "ep"
        for mesh in scaling.MESHES
    }
    found = {"model": "llama-1b", "lines": lines, "methods": {n: point(64) for n in "abcde"}}
    drawn(lambda path: scaling.draw(found, path), 1)
