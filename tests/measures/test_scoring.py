"""Scores of text against the rouge-score package, SQuAD's rules and cases by hand."""

import random

import pytest

from jcl import scoring

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The cat, a dog; an  ANT", "cat dog ant"),
        ("theatre and Athens", "theatre and athens"),  # articles are words, not letters
        ("an-other", "another"),  # punctuation goes first, so that no article is left
        (" \n", ""),
        ("U.S.A. 1,000", "usa 1000"),
    ],
)
def test_normalising_is_squads(text, plain):
    assert scoring.normalise(text) == plain


@pytest.mark.parametrize(
    ("text", "reference", "exact", "f1"),
    [
        ("the Eiffel Tower!", "Eiffel tower", 1, 1),
        ("in Paris", "Paris", 0, 2 / 3),
        ("Paris Paris", "Paris", 0, 2 / 3),  # a word counts as often as both have it
        ("London", "Paris", 0, 0),
        ("", "Paris", 0, 0),
        ("the", "a", 1, 1),  # nothing is left of either
        ("", "", 1, 1),
    ],
)
def test_exact_match_and_f1_by_hand(text, reference, exact, f1):
    assert scoring.exact_match(text, reference) == exact
    assert scoring.f1(text, reference) == pytest.approx(f1, abs=1e-12)
    assert scoring.f1(reference, text) == pytest.approx(f1, abs=1e-12)


def test_rouge_l_is_the_packages():
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    rng = random.Random(0)
    words = ["the", "cat", "sat", "Sat", "on", "mat", "x9", "é", "can't", "—", "A-B", "0.5"]
    for _ in range(300):
        text, reference = (" ".join(rng.choices(words, k=rng.randint(0, 14))) for _ in range(2))
        expected = scorer.score(reference, text)["rougeL"].fmeasure
        assert scoring.rouge_l(text, reference) == pytest.approx(expected, abs=1e-12)


def test_rouge_l_of_lins_example():
    # Lin 2004, section 3.1: S2 has three words of S1 in order, S3 only two
    reference = "police killed the gunman"
    assert scoring.rouge_l("police kill the gunman", reference) == 0.75
    assert scoring.rouge_l("the gunman kill police", reference) == 0.5


def test_a_summary_takes_the_best_reference_of_each():
    texts = ["Danube", "the Rhine", "in Bonn"]
    found = scoring.summary(texts, [["Elbe", "the Danube"], ["Rhine"], ["Berlin"]])
    # ROUGE-L knows no articles: "danube" in "the danube" is 2/3, "the rhine" likewise
    assert found == pytest.approx((2 / 3, 2 / 3, (2 / 3 + 2 / 3 + 0) / 3, 3))


@pytest.mark.parametrize(
    ("texts", "references", "says"),
    [
        ([], [], "number of texts is 0"),
        (["a"], [], "number of references is 0, but must be 1"),
        (["a"], [[]], r"references of text 0 is \[\]"),
        (["a"], ["a"], "references of text 0 is 'a', but must be a list"),
    ],
)
def test_what_cannot_be_scored_is_refused(texts, references, says):
    with pytest.raises(ValueError, match=says):
        scoring.summary(texts, references)
