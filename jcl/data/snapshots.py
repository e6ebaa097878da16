"""Versions of a text: what changed between two dates, and a book in several languages."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

from jcl.data.corpora import Page, handbook, held_out
from jcl.data.documents import Document
from jcl.data.stages import Stage
from jcl.method import check

KINDS = ("unchanged", "updated", "new")


class Passage(NamedTuple):
    """A paragraph of the newer version, or the part of it that changed."""

    path: str
    """The path of its page."""
    text: str
    given: str = ""
    """The beginning of its paragraph, up to the first sentence that changed."""


class Difference(NamedTuple):
    """The newer version's paragraphs, compared with the older version."""

    unchanged: tuple[Passage, ...]
    """Paragraphs that the older version has, on this page or another."""
    updated: tuple[Passage, ...]
    """Paragraphs that replace a similar one; `text` is from the first to the last new sentence."""
    new: tuple[Passage, ...]
    """Paragraphs that resemble none in their place."""


def paragraphs(text: str) -> list[str]:
    """The parts of a text between blank lines."""
    return [p.strip("\n") for p in re.split(r"\n[ \t]*\n", text) if p.strip()]


def _words(text: str) -> tuple[str, ...]:
    """The words by which two texts are compared, in lower case, without punctuation."""
    return tuple(re.sub(r"[^\w\s]", "", text).lower().split())


def _likeness(a: Sequence[str], b: Sequence[str]) -> float:
    """The share of the words of both that they have in common, in [0, 1]."""
    return 2 * (Counter(a) & Counter(b)).total() / max(len(a) + len(b), 1)


def changed_part(before: str, after: str) -> tuple[str, str] | None:
    """Splits a paragraph into `(given, changed)` at its first new sentence; None if none is new.

    `changed` ends with the last new sentence.

    >>> changed_part("It is. It was 1.", "It is. It was 2. So.")
    ('It is. ', 'It was 2. So.')
    """
    spans = [m.span() for m in re.finditer(r"\S.*?(?:[.!?](?=\s)|$)", after, re.DOTALL)]
    there = {_words(s) for s in re.split(r"(?<=[.!?])\s+", before.strip())}
    moved = [span for span in spans if _words(after[slice(*span)]) not in there]
    if not moved:
        return None
    start, end = moved[0][0], moved[-1][1]
    return after[:start], after[start:end]


def compare(
    old: Iterable[Page], new: Iterable[Page], shortest: int = 40, alike: float = 0.5
) -> Difference:
    """Sorts the paragraphs of `new` into unchanged, updated and new ones, against `old`.

    Pages are matched by path, and their paragraphs in order. Where some paragraphs were replaced,
    each new one is paired with the old one that shares the most words. Equal texts come once.

    Source: the diff of TemporalWiki (Jang et al., arXiv 2204.14211, section 3.1), with its
    definition of equal (lower case, no punctuation). It takes the sentences between equal lines of
    an article; here paragraphs are paired, so that updated and new ones can be told apart.

    Args:
      old: the pages of the older version.
      new: the pages of the newer version.
      shortest: how many characters a paragraph has at least; shorter ones are left out.
      alike: from which share of common words on a paragraph counts as updated, in (0, 1].

    Raises:
      ValueError: if an argument is out of range, or a version has a path twice.

    >>> old, new = ([Page("a", f"It stays so.\\n\\nUp to {n}.")] for n in (1, 2))
    >>> compare(old, new, shortest=1).updated
    (Passage(path='a', text='Up to 2.', given=''),)
    """
    check(shortest >= 0, "shortest", shortest, "at least 0")
    check(0 < alike <= 1, "alike", alike, "in (0, 1]")
    before = _by_path(old, "old")
    known = {_words(p) for texts in before.values() for p in texts}
    found: dict[str, dict[str, Passage]] = {kind: {} for kind in KINDS}

    def add(kind: str, passage: Passage) -> None:
        found[kind].setdefault(passage.text, passage)

    for path, texts in _by_path(new, "new").items():
        was = before.get(path, [])
        keys, were = [_words(t) for t in texts], [_words(t) for t in was]
        matcher = SequenceMatcher(None, were, keys, autojunk=False)
        for tag, a, b, c, d in matcher.get_opcodes():
            free = set(range(a, b)) if tag == "replace" else set()
            for i in range(c, d):
                text, words = texts[i], keys[i]
                if len(text) < shortest:
                    continue
                if tag == "equal" or words in known:
                    add("unchanged", Passage(path, text))
                    continue
                likest = max(free, key=lambda j: (_likeness(were[j], words), -j), default=None)
                if likest is None or _likeness(were[likest], words) < alike:
                    add("new", Passage(path, text))
                    continue
                free.remove(likest)
                part = changed_part(was[likest], text)
                if part is None:  # sentences were left out or moved
                    add("unchanged", Passage(path, text))
                else:
                    add("updated", Passage(path, part[1], part[0]))
    return Difference(*(tuple(found[kind].values()) for kind in KINDS))


def _by_path(pages: Iterable[Page], name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for page in pages:
        check(page.path not in found, f"path in {name}", page.path, "there once")
        found[page.path] = paragraphs(page.text)
    return found


def documents(passages: Iterable[Passage]) -> list[Document]:
    """Passages as documents: texts, or `(given, text)` pairs, of which only the text is learned."""
    return [(p.given, p.text) if p.given.strip() else p.text for p in passages]


class Series(NamedTuple):
    """Versions of a corpus as `from_text` takes them."""

    domains: dict[str, tuple[list[Document], list[Document]]]
    """`(train, test)` documents by name: the first version by its own, and of each later one the
    `unchanged`, `updated` and `new` passages, by names such as `4.2 new`."""
    changed: tuple[Stage, ...]
    """Stages: the first version, then the updated and new passages of each later one."""
    whole: tuple[Stage, ...]
    """Stages: the first version, then each later one as a whole."""


def series(
    versions: Mapping[str, Iterable[Page]],
    *,
    probe: Literal["held_out", "seen"] = "held_out",
    share: float = 0.2,
    shortest: int = 40,
) -> Series:
    """The changes of each version of a corpus, kind by kind, for training and for tests.

    Args:
      versions: the pages of each version, the oldest first.
      probe: whether the paragraphs of the tests are `held_out` of training, or `seen` in it, as the
        facts whose recall CKL and TemporalWiki measure.
      share: the chance that a paragraph is in a test, which depends on its text alone.
      shortest: how many characters a paragraph has at least; shorter ones are left out.

    Raises:
      ValueError: if an argument is out of range, there is only one version, or two versions have
        too few passages of a kind.

    Source: Jang et al., arXiv 2110.03215 (CKL) and 2204.14211 (TemporalWiki), for the three kinds;
    `metrics.fuar` weighs the loss on unchanged ones against the gain on the others.
    """
    check(len(versions) >= 2, "number of versions", len(versions), "at least 2")
    check(probe in ("held_out", "seen"), "probe", probe, "'held_out' or 'seen'")

    def sides(passages: Sequence[Passage], name: str) -> tuple[list[Document], list[Document]]:
        train, test = held_out(passages, share)
        check(bool(train and test), "passages", len(train) + len(test), f"more of {name!r}")
        return documents(passages if probe == "seen" else train), documents(test)

    pages = {name: list(version) for name, version in versions.items()}
    names = list(pages)
    first = names[0]
    whole_first = compare([], pages[first], shortest).new
    domains = {first: sides(whole_first, first)}
    changed: list[Stage] = [first]
    whole: list[Stage] = [first]
    for old, new in pairwise(names):
        found = compare(pages[old], pages[new], shortest)
        size: dict[str, float] = {}
        for kind, passages in zip(KINDS, found, strict=True):
            name = f"{new} {kind}"
            domains[name] = sides(passages, name)
            size[name] = sum(len(p.text) for p in passages)
        whole.append(size)
        changed.append({name: n for name, n in size.items() if not name.endswith("unchanged")})
    return Series(domains, tuple(changed), tuple(whole))


def with_dates(
    texts: Iterable[Document], when: object, form: str = "Text from {when}: "
) -> list[tuple[str, str]]:
    """Puts a date before texts, which isn't learned: `(prompt, answer)` pairs.

    A row that begins in the middle of a longer text doesn't see the date; cut such texts first.

    Args:
      texts: texts, or pairs whose prompt then follows the date.
      when: the date, such as a year.
      form: the text of the date, with `{when}` in it.

    Raises:
      ValueError: if `form` lacks `{when}`, or a document is a conversation.

    Source: Dhingra et al., arXiv 2106.15110, section 3: text modelled jointly with its time by a
    prefix that names it. The words are ours.

    >>> dated(["It rains."], 2019)
    [('Text from 2019: ', 'It rains.')]
    """
    check("{when}" in form, "form", form, "a text with {when} in it")
    prefix = form.replace("{when}", str(when))
    pairs: list[tuple[str, str]] = []
    for text in texts:
        given, answer = ("", text) if isinstance(text, str) else tuple(text)[:2]
        check(isinstance(answer, str), "text", type(answer).__name__, "a text or a pair of them")
        pairs.append((f"{prefix}{given}", str(answer)))
    return pairs


def translations(
    languages: Sequence[str],
    *,
    original: str = "en-US",
    share: float = 0.2,
    folder: Path | None = None,
) -> dict[str, tuple[list[str], list[str]]]:
    """`(train, test)` pages of the Debian handbook by language, divided alike in each language.

    A translation's lines that are also in the original are left out: they are untranslated, or no
    language, such as commands.

    Args:
      languages: codes such as `de-DE`, see `corpora.handbook`.
      original: the language from which the others were translated.
      share: the chance that a page is in the test, which depends on its name alone.
      folder: the folder of the fetched archive; None fetches it.

    Raises:
      ValueError: if `share` is out of range or a language isn't there.
    """
    check(0 < share < 1, "share", share, "between 0 and 1")
    source = {line for page in handbook(original, folder) for line in page.text.splitlines()}
    found = {}
    for language in languages:
        sides: tuple[list[str], list[str]] = [], []
        for page in handbook(language, folder):
            lines = page.text.splitlines()
            own = [x for x in lines if x not in source] if language != original else lines
            if own:
                draw = zlib.crc32(page.path.encode()) / 2**32
                sides[draw < share].append("\n".join(own))
        check(all(sides), "languages", language, "one with translated pages on both sides")
        found[language] = sides
    return found


dated = with_dates  # its name in version 0.1, until the next release
