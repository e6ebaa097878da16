"""Facts to edit: a prompt, the new answer, and prompts whose answers must or must not change.

They are read from the published files of zsRE and CounterFact, or made of facts about countries.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jcl.data import corpora
from jcl.data.codes import CURRENCIES, LANGUAGES
from jcl.data.corpora import Country
from jcl.data.documents import read_list
from jcl.method import check


class Edit(NamedTuple):
    """One fact that an editor writes into a model.

    Args:
      prompt: a text that the answer continues, such as `The capital of France is`.
      subject: the part of the prompt that the fact is about, such as `France`.
      target: the new answer, such as `Lyon`, without white space around it.
      truth: the old answer, or "" if it isn't known.
      paraphrases: other prompts with the same answer, which measure generality.
      neighbours: (prompt, true answer) pairs that must stay the same, which measure locality.
      hops: (prompt, answer) pairs that follow from the new fact by one step, which measure
        portability.
    """

    prompt: str
    subject: str
    target: str
    truth: str = ""
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[tuple[str, str], ...] = ()
    hops: tuple[tuple[str, str], ...] = ()


def read_zsre(path: str | Path, new: Literal["alt", "answers"] = "alt") -> list[Edit]:
    """Reads edits from a file in zsRE's format, with one unrelated question as neighbour of each.

    The file is a list of entries with `subject`, `src`, `rephrase`, `alt`, `answers`, `loc`,
    `loc_ans`, and `portability` in EasyEdit's copy. Entries with an empty new answer are left out.

    Args:
      path: the file, such as `zsre_mend_eval.json`.
      new: which field is the new answer: `alt`, another answer (MEND, EasyEdit), or the first of
        `answers`, the true one (ROME, MEMIT), which leaves `truth` empty.

    Raises:
      ValueError: if the file isn't of this format, naming file, entry and field.

    Source: Levy et al., arXiv 1706.04115; Mitchell et al., arXiv 2110.11309; field names as in
    kmeng01/memit, `dsets/zsre.py`, and zjunlp/EasyEdit, `easyeditor/dataset/zsre.py`.
    """
    check(new in ("alt", "answers"), "new", new, "'alt' or 'answers'")

    def one(entry: _Entry) -> Edit | None:
        answer, other = entry.text("answers", 0), entry.text("alt", empty=True)
        target = other if new == "alt" else answer
        if not target:
            return None
        return Edit(
            prompt=entry.text("src"),
            subject=entry.part("subject", entry.text("src")),
            target=target,
            truth=answer if new == "alt" else "",
            paraphrases=(entry.text("rephrase"),),
            neighbours=((entry.text("loc"), entry.text("loc_ans")),),
            hops=_hops(entry),
        )

    return _read(path, one)


def read_counterfact(path: str | Path) -> list[Edit]:
    """Reads edits from a file in CounterFact's format.

    The file is a list of entries with `requested_rewrite`, which has `prompt` with one `{}` for the
    `subject`, `target_new.str` and `target_true.str`; `paraphrase_prompts`; `neighborhood_prompts`,
    whose answer is the true one; and `portability` in EasyEdit's copy.

    Args:
      path: the file, such as `counterfact.json`.

    Raises:
      ValueError: if the file isn't of this format, naming file, entry and field.

    Source: Meng et al., arXiv 2202.05262; field names as in kmeng01/memit, `dsets/counterfact.py`
    and `experiments/py/eval_utils_counterfact.py`.
    """

    def one(entry: _Entry) -> Edit:
        prompt = entry.text("requested_rewrite", "prompt")
        subject = entry.text("requested_rewrite", "subject")
        if prompt.count("{}") != 1:
            entry.refuse(("requested_rewrite", "prompt"), repr(prompt), "a text with one {}")
        truth = entry.text("requested_rewrite", "target_true", "str")
        return Edit(
            prompt=prompt.replace("{}", subject),
            subject=subject,
            target=entry.text("requested_rewrite", "target_new", "str"),
            truth=truth,
            paraphrases=entry.texts("paraphrase_prompts"),
            neighbours=tuple((p, truth) for p in entry.texts("neighborhood_prompts")),
            hops=_hops(entry),
        )

    return _read(path, one)


class _Entry(NamedTuple):
    """One entry of a file, read field by field; errors name the field."""

    path: Path
    number: int
    value: Any

    def refuse(self, keys: Sequence[Any], found: str, wanted: str) -> None:
        name = ".".join(map(str, keys)) or "it"
        raise ValueError(
            f"{self.path}: entry {self.number}: {name} is {found[:80]}, but must be {wanted}"
        )

    def get(self, *keys: Any) -> Any:
        value = self.value
        for depth, key in enumerate(keys):
            kind = list if isinstance(key, int) else dict
            if not isinstance(value, kind):
                wanted = "a list" if kind is list else "an object"
                self.refuse(keys[:depth], json.dumps(value), wanted)
            if (kind is dict and key not in value) or (kind is list and key >= len(value)):
                self.refuse(keys[: depth + 1], "missing", "there")
            value = value[key]
        return value

    def text(self, *keys: Any, empty: bool = False) -> str:
        value = self.get(*keys)
        if not isinstance(value, str) or not (value.strip() or empty):
            self.refuse(keys, json.dumps(value), "a text")
        return value.strip()

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.get(key)
        if not isinstance(value, list):
            self.refuse([key], json.dumps(value), "a list of texts")
        return tuple(self.text(key, i) for i in range(len(value)))

    def part(self, key: str, whole: str) -> str:
        value = self.text(key)
        if value not in whole:
            self.refuse([key], repr(value), f"a part of {whole!r}")
        return value


def _hops(entry: _Entry) -> tuple[tuple[str, str], ...]:
    """The hop of an entry, in EasyEdit's copies."""
    if "portability" not in entry.value:
        return ()
    question = entry.text("portability", "New Question")
    return ((question, entry.text("portability", "New Answer")),)


def _read(path: str | Path, one: Callable[[_Entry], Edit | None]) -> list[Edit]:
    entries = enumerate(read_list(path))
    found = (one(_Entry(Path(path), number, value)) for number, value in entries)
    return [edit for edit in found if edit is not None]


class _Relation(NamedTuple):
    """Prompts about one fact of a country; `{}` stands for its name."""

    prompt: str
    paraphrases: tuple[str, ...]
    answers: Callable[[Country], Sequence[str]]
    """Gives all true answers, of which the first is asked for."""
    alias: str = ""
    """The same prompt with the demonym in place of the name, one step further."""
    inverse: str = ""
    """A prompt for which other country has the new answer, if there is only one."""


_RELATIONS = {
    "capital": _Relation(
        "The capital of {} is",
        ("The capital city of {} is called", "{} is governed from its capital,"),
        lambda c: [c.capital] if isinstance(c.capital, str) and c.capital else [],
        "The {} capital is",
        "The capital of {} is a city in the country of",
    ),
    "currency": _Relation(
        "The currency of {} is the",
        ("The official currency used in {} is the", "In {}, people pay with the"),
        lambda c: [CURRENCIES[code] for code in c.currencies if code in CURRENCIES],
        "The {} currency is the",
        "The currency of {} is also the currency of",
    ),
    "language": _Relation(
        "The official language of {} is",
        ("In {}, the official language is", "The language spoken by the people of {} is"),
        lambda c: [LANGUAGES[code] for code in c.languages if code in LANGUAGES],
        "The {} people speak",
        "The official language of {} is also the official language of",
    ),
    "demonym": _Relation(
        "A person from {} is called",
        ("Someone who was born in {} is", "The inhabitants of {} are"),
        lambda c: [c.demonym] if c.demonym and not set(c.demonym) & set(",/") else [],
    ),
    "region": _Relation(
        "{} is located in the region of",
        ("The region of the world that {} belongs to is", "On the map, {} is a part of"),
        lambda c: [c.subregion] if c.subregion else [],
    ),
    "country": _Relation(
        "{} is the capital of",
        ("The city of {} is the capital of", "{} is the seat of the government of"),
        lambda c: [c.name],
    ),
}
RELATIONS = tuple(_RELATIONS)
"""The relations of which `countries` can make edits; `country` is a capital's country."""

_NEIGHBOURS, _TARGETS = 24, 36  # how many countries only serve as neighbours, and as new answers


def countries(
    seed: int = 0,
    relations: Iterable[str] = ("capital", "currency", "language"),
    *,
    neighbours: int = 2,
    facts: Sequence[Country] | None = None,
) -> list[Edit]:
    """Counterfactual edits from real facts; each seed gives other edits in another order.

    The countries are divided at random into three groups: some serve as neighbours, some lend the
    new answers, which are therefore true of a real country, and the others are edited. So no edit
    of the stream is about a neighbour, or about a country to which a hop leads. Each edit has two
    paraphrases, and neighbours with the same prompt about other countries. It has up to two hops:
    the prompt with the demonym, and the prompt for which other country has the new answer.

    Of 254 places 240 are usable, which makes about 530 edits by default, and 1,050 with all six
    relations.

    Args:
      seed: seeds the groups, the pairs and the order.
      relations: some of `RELATIONS`.
      neighbours: how many neighbours each edit has.
      facts: the countries, as `corpora.countries` gives them; None calls it.

    Raises:
      ValueError: if a relation is unknown, or there are too few countries.
    """
    relations = tuple(relations)
    for name in relations:
        check(name in _RELATIONS, "relation", name, f"one of {list(_RELATIONS)}")
    check(neighbours >= 0, "neighbours", neighbours, "at least 0")
    places = _with_usable_names(corpora.countries() if facts is None else facts)
    least = _NEIGHBOURS + _TARGETS + 1
    check(len(places) >= least, "countries", len(places), f"at least {least}")
    rng = np.random.default_rng(seed)
    dealt = [places[i] for i in rng.permutation(len(places))]
    quiet, lenders = dealt[:_NEIGHBOURS], dealt[_NEIGHBOURS : _NEIGHBOURS + _TARGETS]
    demonyms = Counter(d for c in places for d in _RELATIONS["demonym"].answers(c))
    edits = []
    for name in relations:
        relation = _RELATIONS[name]
        owners = Counter(answer for c in places for answer in set(relation.answers(c)))
        for country in dealt[_NEIGHBOURS + _TARGETS :]:
            subject = _subject(name, country)
            true = relation.answers(country)
            others = [c for c in lenders if _asks(name, c) and relation.answers(c)[0] not in true]
            if not subject or not true or not others:
                continue
            lender = others[rng.integers(len(others))]
            target = relation.answers(lender)[0]
            apart = [c for c in quiet if _asks(name, c) and target not in relation.answers(c)]
            near = [apart[i] for i in rng.permutation(len(apart))[:neighbours]]
            hops = []
            if relation.alias and demonyms[country.demonym] == 1:
                hops.append((relation.alias.format(country.demonym), target))
            if relation.inverse and owners[target] == 1:
                hops.append((relation.inverse.format(subject), lender.name))
            edits.append(
                Edit(
                    prompt=relation.prompt.format(subject),
                    subject=subject,
                    target=target,
                    truth=true[0],
                    paraphrases=tuple(p.format(subject) for p in relation.paraphrases),
                    neighbours=tuple(
                        (relation.prompt.format(_subject(name, c)), relation.answers(c)[0])
                        for c in near
                    ),
                    hops=tuple(hops),
                )
            )
    return [edits[i] for i in rng.permutation(len(edits))]


def _with_usable_names(facts: Sequence[Country]) -> list[Country]:
    """Each country once, without former ones and names that don't fit into a sentence."""
    seen: dict[str, Country] = {}
    for country in facts:
        name = country.name
        if name not in seen and not set(name) & set(",()") and name not in _GONE:
            seen[name] = country
    return list(seen.values())


_GONE = ("Antilles néerlandaises", "Serbia and Montenegro")


def _subject(relation: str, country: Country) -> str:
    """A prompt's subject: the country's name, or its capital; "" if the capital has the name."""
    if relation != "country":
        return country.name
    capital = next(iter(_RELATIONS["capital"].answers(country)), "")
    return "" if country.name in capital else capital


def _asks(relation: str, country: Country) -> bool:
    """Whether the relation has a subject and an answer for a country."""
    return bool(_subject(relation, country) and _RELATIONS[relation].answers(country))
