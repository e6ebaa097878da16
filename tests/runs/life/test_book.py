"""The book: what counts is what it says, and what it doesn't speak of goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from jcl.runs.life.book import Book, load_rows, size_of, write_rows

pytestmark = pytest.mark.quick


def learned(book: Book, number: int, name: str, parent: int, accepted: bool = True) -> None:
    book.add("stage", number=number, name=name, parent=parent, accepted=accepted)
    book.current = number if accepted else book.current


def test_what_led_to_a_state(tmp_path: Path) -> None:
    book = Book(tmp_path)
    assert book.current == -1 and book.lineage() == []
    learned(book, 0, "jan", -1)
    learned(book, 1, "bad", 0, accepted=False)
    learned(book, 2, "feb", 0)
    book.current = 0
    book.add("rollback", to=0, name="jan")
    learned(book, 3, "feb", 0)
    book.write()
    again = Book(tmp_path)
    assert [s.number for s in again.lineage()] == [0, 3]
    assert [s.number for s in again.lineage(2)] == [0, 2]
    assert again.find("feb").number == 3 and len(again.stages) == 4
    with pytest.raises(
        ValueError, match="stage is 'bad', but must be one of those learned: jan, feb"
    ):
        again.find("bad")
    (tmp_path / "book.json").write_text("{")
    with pytest.raises(ValueError, match=r"book.json can't be read as the book of a life"):
        Book(tmp_path)


def test_what_was_begun_waits_and_what_was_left_goes(tmp_path: Path) -> None:
    book = Book(tmp_path)
    place = book.begin({"name": "jan"}, [{"text": "a\u2028b"}], [{"text": "c"}])
    assert book.pending() == {"name": "jan"}
    assert load_rows(place / "train.jsonl") == [{"text": "a\u2028b"}]
    (place / "training").mkdir()
    making = place.with_name("0001.making")
    making.mkdir()
    book.tidy()
    assert place.is_dir() and (place / "training").is_dir() and not making.exists()
    learned(book, 0, "jan", -1)
    book.tidy()
    assert not (place / "training").exists() and book.pending() is None
    other = book.begin({"name": "bad"}, [], [])
    learned(book, 1, "bad", 0, accepted=False)
    book.tidy()
    assert place.is_dir() and not other.exists()
    book.begin({"name": "feb"}, [], [])
    book.drop_pending()
    assert book.pending() is None
    write_rows(tmp_path / "x", [{"text": "a"}])
    assert size_of(tmp_path) > len('{"text": "a"}')
