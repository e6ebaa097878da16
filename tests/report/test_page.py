"""A run's page, read as a browser would."""

import json
import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure
from tiny_run import R, write

from jcl import report
from jcl.report import page


class _Page(HTMLParser):
    """What a page links to, and its text."""

    def __init__(self, text):
        super().__init__()
        self.links, self.words, self.opened = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.opened.append((tag, dict(attrs)))
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset")]

    def handle_data(self, data):
        self.words += data


def _png_size(path):
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def test_the_page_needs_no_other_file_and_fits_a_phone_and_the_dark(tmp_path):
    write(tmp_path, tasks=("a<b", "b", "c"), method="er(labels='<x>')")
    with (tmp_path / "metrics.jsonl").open("w") as log:
        for step in range(5):
            log.write(json.dumps({"stage": step // 2, "step": step, "loss": 1.0}) + "\n")
    report.save_json(tmp_path / "config.json", {"command": "jcl run toy --set a='<b>'"})
    text = page.draw(tmp_path).read_text()
    seen = _Page(text)
    assert seen.links and all(link.startswith("data:image/png;base64,") for link in seen.links)
    assert not re.search(r"https?://|@import|url\(", text)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in (
        seen.opened
    )
    assert "prefers-color-scheme: dark" in text
    for words in ("56.7", "35.0", "toy", "jcl run toy --set a='<b>'", "class-incremental"):
        assert words in seen.words
    for name in ("curves", "forgetting", "matrix", "loss"):
        assert min(_png_size(tmp_path / f"{name}.png")) > 200


def test_several_runs_are_drawn_side_by_side(tmp_path):
    runs = [
        write(tmp_path / "a", R, method="naive()", labels=["naive()"]),
        write(tmp_path / "b", 0.5 * R, method="er()", labels=["er()"]),
    ]
    report.group(tmp_path, runs)
    seen = _Page(page.draw(tmp_path).read_text())
    assert "naive()" in seen.words and "er()" in seen.words and "17.5" in seen.words
    assert (tmp_path / "comparison.png").exists()
    assert (tmp_path / "a" / "report.html").exists()
    assert [run.labels for run in report.load(tmp_path)] == [["naive()"], ["er()"]]


def test_a_sweep_over_shapes_is_drawn_as_a_curve_too(tmp_path):
    runs = [
        write(tmp_path / str(n), R * n / 30, method=f"er({n})", labels=[f"er({n})"],
              family="er()", outer={"er.capacity": n})
        for n in (10, 20, 30)
    ]  # fmt: skip
    report.group(tmp_path, [*runs, write(tmp_path / "n", R, method="naive()", labels=["naive()"])])
    page.draw(tmp_path)
    assert (tmp_path / "sweep.png").exists()


def test_compare_labels_equal_methods_by_folder_and_refuses_other_measures(tmp_path):
    runs = [write(tmp_path / "x"), write(tmp_path / "y")]
    assert [s.label for s in report.labelled(runs)] == [
        "ewc(strength=1.0) (x)",
        "ewc(strength=1.0) (y)",
    ]
    page.compare(runs, tmp_path / "c.png")
    assert min(_png_size(tmp_path / "c.png")) > 200
    other = write(tmp_path / "z", measure="bits per byte", higher_is_better=False)
    with pytest.raises(ValueError, match="different things"):
        page.compare([runs[0], other], tmp_path / "c.png")


@pytest.mark.quick
def test_a_pipeline_s_page_links_its_nodes_and_shows_names_as_they_are(tmp_path):
    costs = {"examples": 1234, "bytes": 3 * 2**20, "parameters": 56, "flops": 0.25}
    nodes = [{"name": name, "costs": costs, "wall_seconds": 7.5} for name in ("one", "t<w>o")]
    summary = {"pipeline": "a & b", "seeds": 3, "nodes": nodes}
    table = (["after", "x<y"], [["one", "12.5"], ["t<w>o", "<b>3</b>"]])
    path = page.pipeline(tmp_path, summary, table, Figure(figsize=(2, 1), dpi=100))
    seen = _Page(path.read_text())
    (image,) = (link for link in seen.links if link.startswith("data:image/png;base64,"))
    assert image and [x for x in seen.links if x != image] == [
        "one/report.html", "t<w>o/report.html",
    ]  # fmt: skip
    for words in ("a & b", "3 seeds, ± 95 %", "x<y", "<b>3</b>", "1,234", "3.0 MiB", "+25 %"):
        assert words in seen.words
    assert _png_size(tmp_path / "pipeline.png") == (200, 100)


@pytest.mark.quick
def test_runs_of_other_measures_do_not_compare(tmp_path):
    runs = [write(tmp_path / "a"), write(tmp_path / "b", measure="bits per byte")]
    with pytest.raises(ValueError, match=r"different things, \['accuracy', 'bits per byte'\], so"):
        page.compare(runs, tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()
