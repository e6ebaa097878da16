"""Token ids are transformers' own; bytes add up to the text's, and are where the tokens are."""

import copy

import numpy as np
import pytest
import tiny_text as tiny
from tokenizers import processors

from jcl.data.encode import Passage, encode, largest_id, special_texts

pytestmark = pytest.mark.quick

TOKENIZERS = {
    "byte level": tiny.byte_level(),
    "byte level, trimmed": tiny.byte_level(trim=True),
    "sentence piece": tiny.sentence_piece(),
    "word piece": tiny.word_piece(),
}


def odd_strings(count):
    """Strings of many kinds of characters, of up to 40."""
    rng = np.random.default_rng(0)
    kinds = [
        "abc the cat",
        "  \t\n\r",
        "àéîõü ß",
        "数学中文",
        "🙂👩‍👧🏽☕",
        "\u0301\u200b\ufeff\u00a0",
        "<|end|></s>",
        "0123.,;:!?",
    ]
    for _ in range(count):
        letters = "".join(kinds[k] for k in rng.choice(len(kinds), rng.integers(1, 4)))
        yield "".join(rng.choice(list(letters), rng.integers(1, 40)))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_are_the_tokenizer_s_own_and_bytes_add_up_on_odd_strings(name):
    tokenizer = TOKENIZERS[name]
    texts = [*tiny.ODD, *odd_strings(300)]
    for text, got in zip(texts, encode(tokenizer, [Passage(t) for t in texts]), strict=True):
        own = tokenizer(text)["input_ids"]
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        if own and end and own[-1] == end[0]:
            end = []
        assert got.tokens.tolist() == own + (end if own else []), repr(text)
        assert got.learn.all() and (got.bytes >= 0).all()
        assert got.bytes.sum() == (len(text.encode()) if own else 0), repr(text)


def test_a_token_stands_for_its_own_bytes():
    tokenizer = tiny.byte_level()
    text = "the naïve cat's café  数学 sat"
    got = encode(tokenizer, [Passage(text)])[0]
    # as GPT-2's alphabet writes them a byte is a character; a character of the text that is cut
    # into several tokens is all the first one's
    sizes = [len(t) for t in tokenizer.convert_ids_to_tokens(got.tokens[:-1])]
    edges = {len(text[:i].encode()) for i in range(len(text) + 1)}
    true, said = np.cumsum(sizes), np.cumsum(got.bytes[:-1])
    cut = [end not in edges for end in true]
    assert 0 < sum(cut) < len(cut) / 2
    for here, end, ours in zip(cut, true, said, strict=True):
        assert ours == (min(e for e in edges if e > end) if here else end)


def test_what_a_tokenizer_drops_or_adds_changes_no_sum():
    tokenizer = tiny.word_piece()
    got = encode(tokenizer, [Passage("  Cat   sat  ")])[0]
    assert tokenizer.convert_ids_to_tokens(got.tokens)[0] == "[CLS]"
    assert got.bytes[0] == got.bytes[-1] == 0 and got.bytes.sum() == 13
    got = encode(tiny.sentence_piece(), [Passage("the cat")])[0]
    assert got.bytes[0] == got.bytes[-1] == 0 and got.bytes.sum() == 7


def test_an_end_that_the_tokenizer_writes_itself_is_not_written_twice():
    tokenizer = copy.deepcopy(tiny.sentence_piece())
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )  # as T5's
    got = encode(tokenizer, [Passage("the cat"), Passage("the cat", ((4, 7),))])
    assert got[0].tokens.tolist().count(2) == 1 and got[0].tokens[-1] == 2
    assert got[0].bytes.sum() == 7 and got[0].bytes[-1] == 0 and got[0].learn.all()
    assert got[1].learn[-1] and not got[1].learn[0]


def test_bytes_are_their_own_tokens():
    got = encode(None, [Passage("aü🙂"), Passage("b")])
    assert bytes(got[0].tokens.tolist()) == "aü🙂".encode()
    assert (got[0].bytes == 1).all() and got[0].learn.all() and got[1].tokens.tolist() == [98]
    assert largest_id(None) == 255 and largest_id(tiny.byte_level()) == 319


def test_what_utf_8_cannot_hold_is_replaced():
    # JSON may carry half a pair of surrogates; a whole one is a character
    got = encode(None, [Passage("a\ud83d\ude42\ud800b")])[0]
    assert bytes(got.tokens.tolist()).decode() == "a🙂\ufffdb"
    assert encode(tiny.byte_level(), [Passage("\udcff")])[0].bytes.sum() == 3


@pytest.mark.parametrize("tokenizer", [None, *TOKENIZERS.values()])
def test_tokens_that_share_a_character_with_a_span_are_learned(tokenizer):
    text = "the cat 🙂☕ sat"
    whole = encode(tokenizer, [Passage(text)])[0]
    for a in range(len(text)):
        for b in range(a + 1, len(text) + 1):
            got = encode(tokenizer, [Passage(text, ((a, b),))])[0]
            np.testing.assert_array_equal(got.tokens, whole.tokens)
            own = got.learn & (got.bytes > 0)
            # from the first token that reaches into the span to the last that begins in it
            ends = np.cumsum(got.bytes)
            low, high = len(text[:a].encode()), len(text[:b].encode())
            expected = (ends > low) & (ends - got.bytes < high) & (got.bytes > 0)
            np.testing.assert_array_equal(own, expected)
    nothing = encode(tokenizer, [Passage(text, ())])[0].learn
    ended = tokenizer is not None and tokenizer.eos_token_id is not None
    assert nothing.sum() == ended and nothing[-1] == ended


def test_special_tokens_of_a_template_stand_for_no_text():
    tokenizer = tiny.byte_level()
    assert special_texts(tokenizer) == {0: "<|end|>", 1: "<|im_start|>", 2: "<|im_end|>"}
    got = encode(tokenizer, [Passage("<|im_start|>cat<|im_end|>", None, False)])[0]
    assert got.tokens[[0, -1]].tolist() == [1, 2] and got.bytes[[0, -1]].tolist() == [0, 0]
    assert got.bytes.sum() == 3


def test_long_documents_are_whole_and_make_no_noise(caplog):
    tokenizer = copy.copy(tiny.byte_level())
    tokenizer.model_max_length = 8
    tokenizer.backend_tokenizer.enable_truncation(4)
    try:
        got = encode(tokenizer, [Passage("the cat sat on the mat " * 20)])[0]
    finally:
        tokenizer.backend_tokenizer.no_truncation()
    assert got.bytes.sum() == 460 and not caplog.records


def test_a_tokenizer_that_can_t_say_where_its_tokens_are_is_refused():
    from jcl.data.encode import check_tokenizer

    with pytest.raises(ValueError, match="tokenizer is str, but must be a fast tokenizer"):
        check_tokenizer("gpt2")
