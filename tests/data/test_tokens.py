"""Tokens of documents: that they are right, and that the cache gives no others."""

import os
import resource

import numpy as np
import pytest
import tiny_text as tiny

from jcl import data
from jcl.data import tokens as module
from jcl.data.tokens import cache_folder, tokenise

DOCUMENTS = ["the cat sat", "", "naïve ☕", " \n", "a", ("q: ", "cat"), ("q", " ")]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JCL_CACHE", str(tmp_path / "cache"))


def same(a, b):
    for x, y in zip(a, b, strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        np.testing.assert_array_equal(x, y)


def folders():
    return sorted(p.name for p in cache_folder().iterdir())


@pytest.mark.quick
def test_documents_lie_one_after_another():
    tokenizer = tiny.byte_level()
    got = tokenise(DOCUMENTS, tokenizer)
    texts = ["the cat sat", "naïve ☕", "a", "q: cat"]
    assert got.tokens.dtype == np.uint16 and got.offsets.dtype == np.int64
    assert len(got.offsets) == 5
    for i, text in enumerate(texts):
        here = slice(got.offsets[i], got.offsets[i + 1])
        assert got.tokens[here].tolist() == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        assert got.bytes[here].sum() == len(text.encode())
        assert got.learn[here].all() == (i < 3)
    assert tokenise(DOCUMENTS).tokens.tobytes() == "the cat satnaïve ☕aq: cat".encode()
    assert tokenise(DOCUMENTS).tokens.dtype == np.uint8


@pytest.mark.quick
def test_conversations_are_as_chat_makes_them():
    tokenizer = tiny.byte_level()
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    got = tokenise([talk, "the cat", []], tokenizer)
    tokens, mask = data.chat(tokenizer, talk)
    np.testing.assert_array_equal(got.tokens[: len(tokens)], tokens)
    np.testing.assert_array_equal(got.learn[1 : len(tokens)], mask > 0)
    assert got.learn[len(tokens) :].all() and len(got.offsets) == 3


@pytest.mark.quick
def test_batches_make_no_difference(monkeypatch):
    many = [f"{i} the cat" * (i % 7) for i in range(60)]
    whole = tokenise(many, tiny.byte_level(), cache=False)
    monkeypatch.setattr(module, "_BATCH", 50)
    heard = []
    same(tokenise(many, tiny.byte_level(), cache=False, on_event=heard.append), whole)
    same(tokenise(many, tiny.byte_level()), whole)
    assert len(heard) > 5 and {e["kind"] for e in heard} == {"tokenise"}
    counts = [(e["documents"], e["tokens"]) for e in heard]
    assert counts == sorted(counts) and counts[-1] == (51, len(whole.tokens))


@pytest.mark.quick
def test_a_second_call_finds_what_the_first_has_kept():
    heard = []
    first = tokenise(DOCUMENTS, tiny.byte_level(), on_event=heard.append)
    assert isinstance(first.tokens, np.memmap) and heard
    heard.clear()
    same(tokenise(iter(DOCUMENTS), tiny.byte_level(), on_event=heard.append), first)
    assert not heard and len(folders()) == 1
    same(tokenise(DOCUMENTS, tiny.byte_level(), cache=False), first)


@pytest.mark.quick
def test_other_documents_or_another_tokenizer_are_kept_apart():
    def made(*given):
        """Whether there was anything to do."""
        heard = []
        tokenise(*given, on_event=heard.append)
        return bool(heard)

    tokenizer = tiny.byte_level()
    assert made(["ab", "c"], tokenizer) and not made(["ab", "c"], tokenizer)
    assert made(["a", "bc"], tokenizer) and made(["c", "ab"], tokenizer) and made(["abc"])
    assert made([("ab", "c")], tokenizer) and made(["ab", "c"], tiny.sentence_piece())
    # what a call leaves behind in a tokenizer is no part of it
    tokenizer(["a", "the cat"], truncation=True, max_length=2)
    assert not made(["ab", "c"], tokenizer)
    tokenizer.eos_token = "<|im_end|>"
    try:
        assert made(["ab", "c"], tokenizer)
    finally:
        tokenizer.eos_token = "<|end|>"


HARMS = [
    (name, harm)
    for name in data.Tokens._fields
    for harm in ("cut", "empty", "gone", "pickle", "other")
    if (name, harm) != ("largest", "gone")  # which is an older folder
]


@pytest.mark.parametrize(("name", "harm"), HARMS)
def test_a_broken_file_is_made_anew(name, harm):
    good = tokenise(DOCUMENTS, tiny.byte_level(), cache=False)
    tokenise(DOCUMENTS, tiny.byte_level())
    path = cache_folder() / folders()[0] / f"{name}.npy"
    whole = path.read_bytes()
    if harm == "cut":
        path.write_bytes(whole[:-3])
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "gone":
        path.unlink()
    elif harm == "pickle":
        np.save(path, np.array([print], dtype=object), allow_pickle=True)
    else:
        np.save(path, np.zeros(3, np.int64))
    same(tokenise(DOCUMENTS, tiny.byte_level()), good)
    assert path.read_bytes() == whole and len(folders()) == 1


@pytest.mark.quick
def test_what_is_interrupted_leaves_nothing_behind():
    def documents():
        yield "the cat"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenise(data.Documents(documents))
    reads = []

    def later():  # it ends in the second reading, when tokens are being written
        reads.append(1)
        yield "the cat"
        if len(reads) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenise(data.Documents(later))
    assert folders() == []
    assert len(tokenise(data.Documents(later)).tokens) == 7


@pytest.mark.quick
def test_a_cache_that_can_not_be_written_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("JCL_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"tokens can't be kept in .*set JCL_CACHE .*or cache=False"):
        tokenise(["a"])
    assert len(tokenise(["ab"], cache=False).tokens) == 2


@pytest.mark.quick
def test_a_full_disk_leaves_nothing_behind():
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"tokens can't be kept in .*: File too large; set JCL"):
            tokenise(["abc" * 10_000])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert folders() == []


@pytest.mark.quick
def test_where_the_cache_is(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache" / "tokens"
    monkeypatch.delenv("JCL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "jcl" / "tokens"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == type(tmp_path).home() / ".cache" / "jcl" / "tokens"


@pytest.mark.quick
def test_files_are_plain_npy_that_numpy_reads():
    tokenise(DOCUMENTS)
    folder = cache_folder() / folders()[0]
    assert sorted(os.listdir(folder)) == sorted(f"{name}.npy" for name in data.Tokens._fields)
    assert np.load(folder / "offsets.npy").tolist() == [0, 11, 21, 22, 28]
    assert len(folder.name) == 64


@pytest.mark.quick
@pytest.mark.parametrize(
    ("documents", "sentence"),
    [
        (["", " "], "documents is empty or all blank"),
        ([], "documents is empty or all blank"),
        ("a text", "documents is str, but must be many"),
        (["a", 3], "document 1 is int, but must be a text"),
        ([("a", "b", "c")], "document 0 is tuple, but must be"),
        ([[{"role": "user", "content": "x"}]], "document 0: .*no chat template"),
    ],
)
@pytest.mark.parametrize("cache", [True, False])
def test_what_is_no_document_is_refused_by_its_number(documents, sentence, cache):
    with pytest.raises(ValueError, match=sentence):
        tokenise(documents, cache=cache)
    assert not cache_folder().exists() or folders() == []


@pytest.mark.quick
def test_what_json_can_not_hold_is_refused_by_its_number():
    talk = [{"role": "user", "content": object()}, {"role": "assistant", "content": "x"}]
    with pytest.raises(ValueError, match=r"document 1 holds what JSON can't: .*object"):
        tokenise(["a", talk], tiny.byte_level())
