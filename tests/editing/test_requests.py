"""Edits in words as arrays: which tokens are the target's, and where the subject ends."""

import numpy as np
import pytest
import tiny_model as tiny

from jcl.data.edits import Edit
from jcl.editing.requests import CONTEXTS, encode, pad

pytestmark = pytest.mark.quick

FRANCE = Edit("The capital of France is", "France", "Lyon")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer(whole=True)


def words(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("edit", [
    FRANCE,
    FRANCE._replace(target=" San Marino\n"),
    FRANCE._replace(prompt="The capital of France is  "),
    FRANCE._replace(target="東京"),
    Edit("{France} has its capital, {}, in", "{France}", "Lyon"),
])  # fmt: skip
def test_the_marked_tokens_are_the_target(tokenizer, edit):
    facts = encode([edit], tokenizer, CONTEXTS[:3])
    for row, context in enumerate(CONTEXTS[:3]):
        tokens, real = facts["tokens"][0, row], facts["segments"][0, row] > 0
        target = tokens[1:][facts["mask"][0, row] > 0]
        assert words(tokenizer, target) == f" {edit.target.strip()}"
        whole = context.replace("{}", edit.prompt.rstrip()) + f" {edit.target.strip()}"
        assert words(tokenizer, tokens[real]) == whole
        assert tokens[0] == 0 and 1 not in tokens[real]  # it is begun, and not ended
        before = words(tokenizer, tokens[: facts["subject"][0, row] + 1])
        assert before.endswith(edit.subject)
    assert words(tokenizer, facts["essence"][0]) == f"{edit.subject} is a"
    head = facts["essence"][0, : facts["essence_subject"][0] + 1]
    assert words(tokenizer, head) == edit.subject


@pytest.mark.parametrize(("prompt", "subject", "end"), [
    ("Niger, and not Nigeria, has", "Niger", 4),  # as a whole word
    ("Oman is not Oman, says Oman to", "Oman", 26),  # the last of them
    ("The Francophones of", "Franco", 9),  # part of one, where nothing else is there
])  # fmt: skip
def test_which_subject(prompt, subject, end):
    assert encode([Edit(prompt, subject, "x")], None, ["{}"])["subject"][0, 0] == end


def test_bytes_by_hand():
    facts = encode([Edit("ab c", "c", "d")], None, ["{}", "e {}"], length=8)
    assert facts["tokens"][0].tolist() == [[*b"ab c d", 0, 0], [*b"e ab c d"]]
    assert facts["segments"][0].tolist() == [[1] * 6 + [0] * 2, [1] * 8]
    assert facts["mask"][0].tolist() == [[0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1]]
    assert facts["subject"].tolist() == [[3, 5]]
    assert facts["essence"].tolist() == [[*b"c is a", 0, 0]] and facts["essence_subject"] == [0]
    kinds = {k: x.dtype.name for k, x in facts.items() if x.dtype != np.int32}
    assert kinds == {"mask": "float32", "weight": "float32"}


def test_padding_adds_rows_of_weight_0():
    facts = pad(encode([FRANCE]), 3)
    assert facts["weight"].tolist() == [1, 0, 0]
    assert {len(x) for x in facts.values()} == {3}


@pytest.mark.parametrize(("edit", "options", "said"), [
    (FRANCE._replace(subject="Spain"), {}, "subject is 'Spain', but must be a part of the prompt"),
    (FRANCE._replace(subject=" "), {}, "subject is '', but must be a part of the prompt"),
    (FRANCE._replace(target=" "), {}, "target is ' ', but must be a text that goes on from"),
    (FRANCE, {"length": 9}, "length is 9, but must be at least 29"),
    (FRANCE, {"contexts": ["So: {}"]}, r"contexts is \('So: {}',\), but must be"),
    (FRANCE, {"contexts": ["{}", "So."]}, r"contexts is \('{}', 'So.'\), but must be"),
    (FRANCE, {"tokenizer": object()}, "tokenizer is object, but must be a fast tokenizer"),
])  # fmt: skip
def test_what_is_refused(edit, options, said):
    with pytest.raises(ValueError, match=said):
        encode([edit], **{"contexts": ["{}"], **options})


def test_no_edits_and_too_many():
    with pytest.raises(ValueError, match="number of edits is 0, but must be at least 1"):
        encode([])
    with pytest.raises(ValueError, match="number of edits is 2, but must be at most 1"):
        pad(encode([FRANCE, FRANCE]), 1)
