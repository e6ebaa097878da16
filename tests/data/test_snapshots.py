"""Versions made by hand: which paragraph is unchanged, updated or new; dates; the real ones."""

from __future__ import annotations

import numpy as np
import pytest

from jcl import data
from jcl.data import snapshots
from jcl.data.corpora import Page, django_docs
from jcl.data.snapshots import Passage, changed_part, compare, series, with_dates

OLD = [
    Page(
        "install",
        "Installing\n==========\n\nRun the installer now. It takes a minute or so.\n\n"
        "You need version 2.7 of Python. Older ones will not do.\n\n"
        "This feature is gone tomorrow.\n",
    ),
    Page("gone", "Nobody will miss this page at all."),
    Page("moved", "This sentence moves to another page."),
]
NEW = [
    Page(
        "install",
        "Installing\n==========\n\nrun the installer, now! It takes a minute or so.\n\n"
        "You need version 3.6 of Python. Older ones will not do.\n\n"
        "Containers are what everybody uses these days.\n\n"
        "This sentence moves to another page.\n",
    ),
    Page("async", "Views may be coroutines.\n \t\nViews may be coroutines.\n\n::\n\nOnly here."),
]


@pytest.mark.quick
def test_paragraphs_are_sorted_by_what_the_older_version_has() -> None:
    found = compare(OLD, NEW, shortest=8)
    assert [(p.path, p.text.partition(" ")[0]) for p in found.unchanged] == [
        ("install", "Installing\n=========="),
        ("install", "run"),  # case and marks don't count
        ("install", "This"),  # from another page
    ]
    assert found.updated == (Passage("install", "You need version 3.6 of Python."),)
    assert found.new == (
        Passage("install", "Containers are what everybody uses these days."),
        Passage("async", "Views may be coroutines."),
        Passage("async", "Only here."),
    )


@pytest.mark.quick
def test_nothing_changed_from_a_version_to_itself_and_all_from_none() -> None:
    same = compare(NEW, NEW, shortest=0)
    assert not same.updated and not same.new and len(same.unchanged) == 8
    every = compare([], NEW, shortest=0)
    assert every.new == same.unchanged and not every.updated


@pytest.mark.quick
def test_who_is_likest_is_who_was_replaced() -> None:
    old = [Page("p", "The cat sat on the mat.\n\nA dog barked in the yard.")]
    new = [
        Page("p", "A dog barked in the garden.\n\nThe cat sat on the sofa.\n\nThe cat sat here.")
    ]
    found = compare(old, new, shortest=0, alike=0.6)
    # the third is like the first too, but that one is taken
    assert [p.text for p in found.updated] == [
        "A dog barked in the garden.",
        "The cat sat on the sofa.",
    ]
    assert [p.text for p in found.new] == ["The cat sat here."]
    strict = compare(old, new, shortest=0, alike=0.9)
    assert not strict.updated and len(strict.new) == 3


@pytest.mark.quick
@pytest.mark.parametrize(
    "before, after, part",
    [
        ("A b. C d.", "A b. C e.", ("A b. ", "C e.")),
        ("A b. C d. E f.", "X y. C d. E g. H.", ("", "X y. C d. E g. H.")),
        ("A b.\nC d.  E f.", "A b.\n  C x.\n  E f.", ("A b.\n  ", "C x.")),
        ("A b. C d.", "C d.", None),
        ("Use a.b() here", "Use a.c() here", ("", "Use a.c() here")),  # no sentence ends in a name
    ],
)
def test_only_the_sentences_that_changed_are_learned(before, after, part) -> None:
    assert changed_part(before, after) == part


@pytest.mark.quick
def test_a_series_has_three_probes_a_version_and_two_ways_to_train() -> None:
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(200)]

    def text(n: int, tag: str) -> str:
        return "\n\n".join(f"{tag}{i}. " + " ".join(rng.choice(words, 9)) + "." for i in range(n))

    stays, changes = text(60, "s"), text(60, "c")
    updated = changes.replace(" w1", " W one")
    versions = {
        "1": [Page("a", stays), Page("b", changes)],
        "2": [Page("a", stays), Page("b", updated), Page("n", text(40, "n"))],
    }
    made = series(versions, share=0.3, shortest=10)
    assert list(made.domains) == ["1", "2 unchanged", "2 updated", "2 new"]
    assert made.changed[0] == made.whole[0] == "1"
    assert list(made.changed[1]) == ["2 updated", "2 new"]
    assert list(made.whole[1]) == ["2 unchanged", "2 updated", "2 new"]
    found = compare(versions["1"], versions["2"], 10)
    assert made.changed[1]["2 new"] == sum(len(p.text) for p in found.new)
    for name, (train, test) in made.domains.items():
        assert train and test and not set(map(str, train)) & set(map(str, test)), name
    # what is held out of the first version isn't trained on later either
    assert not set(made.domains["1"][1]) & set(made.domains["2 unchanged"][0])
    seen = series(versions, share=0.3, shortest=10, probe="seen")
    assert set(map(str, seen.domains["2 new"][1])) < set(map(str, seen.domains["2 new"][0]))
    stream = data.from_text(
        made.domains, length=32, batch=4, steps=5, stages=made.changed, cache=False
    )
    assert stream.tests == tuple(made.domains)
    assert set(np.unique(stream.chunk(1, 0, 5)["task"])) == {2, 3}
    given = [d for d in made.domains["2 updated"][0] if isinstance(d, tuple)]
    assert given and all(not g.strip() or g.endswith(" ") for g, _ in given)


@pytest.mark.quick
def test_dates_are_given_and_not_learned() -> None:
    pairs = with_dates(["It rains.", ("In May ", "it shines.")], 2019)
    assert pairs == [
        ("Text from 2019: ", "It rains."),
        ("Text from 2019: In May ", "it shines."),
    ]
    stream = data.from_text(
        {"a": (pairs, pairs)}, length=40, batch=2, steps=1, packing="alone", cache=False
    )
    batch = stream.fetch(stream.source, stream.chunk(0, 0, 1))
    learned = sorted(int(n) for n in batch["mask"].sum(-1).reshape(-1))
    assert learned == [len("It rains."), len("it shines.")]
    with pytest.raises(ValueError, match="form is 'Text: ', but must be a text with"):
        with_dates(["x"], 1, "Text: ")
    with pytest.raises(ValueError, match="text is 'dict', but must be a text or a pair"):
        with_dates([[{"role": "user", "content": "a"}, {"role": "x", "content": "b"}]], 1)


@pytest.mark.quick
def test_translations_have_the_same_pages_and_no_line_of_the_original(tmp_path) -> None:
    bodies = {
        "en-US": ["Hello there.", "apt install x"],
        "de-DE": ["Hallo {i}.", "apt install x"],
        "xx-XX": ["Hello there.", "apt install x"],
    }
    for language, lines in bodies.items():
        (tmp_path / language).mkdir()
        for i in range(20):
            page = '<html><div class="titlepage">' + "".join(f"<p>\n{x}\n</p>" for x in lines)
            (tmp_path / language / f"p{i}.html").write_text(page.replace("{i}", str(i)))
    found = snapshots.translations(["en-US", "de-DE"], share=0.3, folder=tmp_path)
    assert [len(x) for x in found["en-US"]] == [len(x) for x in found["de-DE"]]
    assert sum(map(len, found["de-DE"])) == 20 and min(map(len, found["de-DE"])) > 2
    assert all("apt" not in text for text in found["de-DE"][0])
    assert all("apt" in text for text in found["en-US"][0])
    with pytest.raises(ValueError, match="languages is 'xx-XX', but must be one with translated"):
        snapshots.translations(["xx-XX"], folder=tmp_path)


@pytest.mark.quick
def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="alike is 0, but must be in"):
        compare(OLD, NEW, alike=0)
    with pytest.raises(ValueError, match="path in new is 'a', but must be there once"):
        compare(OLD, [Page("a", "x"), Page("a", "y")])
    with pytest.raises(ValueError, match="number of versions is 1, but must be at least 2"):
        series({"1": OLD})
    with pytest.raises(ValueError, match="probe is 'all', but must be"):
        series({"1": OLD, "2": NEW}, probe="all")


@pytest.mark.network
def test_djangos_documentation_changes_as_its_history_says() -> None:
    old, new = django_docs("1.11"), django_docs("2.2")
    found = compare(old, new)
    sizes = [sum(len(p.text) for p in kind) for kind in found]
    assert sizes[0] > 4 * (sizes[1] + sizes[2])  # most of it stays
    text = " ".join(p.text for p in found.new)
    assert "Django 2.1" in text and "CheckConstraint" in text  # new in 2.2
    kept = " ".join(p.text for p in found.unchanged)
    assert "CheckConstraint" not in kept
    assert any("path(" in p.text for p in found.updated)  # url() became path() in 2.0
