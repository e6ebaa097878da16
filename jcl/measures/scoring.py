"""Scores generated texts against references, as numbers from 0 to 1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jcl.method import check


class Summary(NamedTuple):
    """Mean scores of generated texts, each against the reference that it matches best."""

    exact_match: float
    f1: float
    rouge_l: float
    number: int
    """How many texts were scored."""


def normalise(text: str) -> str:
    """The text in lower case, without punctuation, articles and superfluous white space.

    Source: the evaluation script of SQuAD 1.1, Rajpurkar et al., arXiv 1606.05250.

    >>> normalise("The  Eiffel-Tower!")
    'eiffeltower'
    """
    bare = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(text: str, reference: str) -> float:
    """1 if both are the same after `normalise`, else 0.

    Source: Rajpurkar et al., arXiv 1606.05250.

    >>> exact_match("the Seine.", "Seine")
    1.0
    """
    return float(normalise(text) == normalise(reference))


def f1(text: str, reference: str) -> float:
    """The harmonic mean of precision and recall of the words as bags, after `normalise`.

    If a text has no words, it is 1 if neither has, else 0, as in SQuAD 2.0's script.

    Source: Rajpurkar et al., arXiv 1606.05250, section 6.1, and arXiv 1806.03822.

    >>> round(f1("in Paris, France", "Paris"), 3)
    0.5
    """
    words, wanted = normalise(text).split(), normalise(reference).split()
    if not words or not wanted:
        return float(words == wanted)
    return _harmonic((Counter(words) & Counter(wanted)).total(), len(words), len(wanted))


def rouge_l(text: str, reference: str) -> float:
    """F-measure (β = 1) of the longest common subsequence of words; 0 if either text has none.

    Words are runs of `a` to `z` and digits in lower case, not stemmed, as in the rouge-score
    package, so text in other scripts has none.

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, section 3.1.

    >>> round(rouge_l("police kill the gunman", "police killed the gunman"), 3)
    0.75
    """
    words, wanted = (re.findall(r"[a-z0-9]+", t.lower()) for t in (text, reference))
    if not words or not wanted:
        return 0.0
    # lengths[j] is for the words so far and the first j of `wanted`
    lengths = [0] * (len(wanted) + 1)
    for word in words:
        before = 0  # the length for one word fewer of both
        for j, other in enumerate(wanted, 1):
            above = lengths[j]
            lengths[j] = before + 1 if word == other else max(above, lengths[j - 1])
            before = above
    return _harmonic(lengths[-1], len(words), len(wanted))


def _harmonic(common: int, found: int, wanted: int) -> float:
    """2 · precision · recall / (precision + recall)."""
    return 2 * common / (found + wanted)


def best(score: Callable[[str, str], float], text: str, references: Sequence[str]) -> float:
    """The highest of a text's scores against several references, any of which will do."""
    return max(score(text, reference) for reference in references)


def summary(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Summary:
    """The mean scores of generated texts.

    Args:
      texts: the generated texts.
      references: for each text, the answers of which any will do.

    Raises:
      ValueError: if there is nothing to score, there are not as many lists of references as texts,
        or a list is empty.

    >>> summary(["Paris", "the Rhine"], [["Paris", "Paris, France"], ["Danube"]])
    Summary(exact_match=0.5, f1=0.5, rouge_l=0.5, number=2)
    """
    check(len(texts) >= 1, "number of texts", len(texts), "at least 1")
    check(len(references) == len(texts), "number of references", len(references), f"{len(texts)}")
    for i, given in enumerate(references):
        listed = not isinstance(given, str) and len(given) >= 1
        check(listed, f"references of text {i}", given, "a list of strings, at least one")

    def mean(score: Callable[[str, str], float]) -> float:
        pairs = zip(texts, references, strict=True)
        return sum(best(score, text, given) for text, given in pairs) / len(texts)

    return Summary(mean(exact_match), mean(f1), mean(rouge_l), len(texts))
