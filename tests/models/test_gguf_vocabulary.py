"""Tokenizers in GGUF files: read again by transformers, refused where llama.cpp has none alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import pytest

from jcl import models
from jcl.models import decoder, gguf_vocabulary

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from tokenizers import decoders, normalizers, pre_tokenizers, processors  # noqa: E402
from tokenizers.models import BPE, WordPiece  # noqa: E402
from tokenizers.trainers import BpeTrainer  # noqa: E402

TEXTS = ["the cat sat on the mat 1234 times", "don't  shout\nat cats", "  mats, hats; 99 bats"]
ROWS = 400


def of_bytes(pre: Any, **options: Any) -> Any:
    """A tokenizer of GPT-2's kind, trained on a few words."""
    made = tokenizers.Tokenizer(BPE(**options))
    made.pre_tokenizer = pre
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>"]
    trainer = BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    made.train_from_iterator(TEXTS * 4, trainer)
    return made


def of_pieces() -> Any:
    """A tokenizer of Llama 2's kind: characters and bytes, ▁ for a space, a first token before."""
    made = tokenizers.Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    made.train_from_iterator(
        [text.replace("\n", " ") for text in TEXTS] * 4,
        BpeTrainer(vocab_size=340, special_tokens=special, max_token_length=5),
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return made


def wrapped(made: Any, **named: Any) -> Any:
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **named)


def split(pattern: str) -> Any:
    isolated = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    return pre_tokenizers.Sequence(
        [isolated, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), WORDS])
PUBLISHED = {splits[0]: name for splits, name in gguf_vocabulary._SPLITS.items()}
LLAMA3, QWEN2 = (next(k for k, v in PUBLISHED.items() if v == n) for n in ("llama-bpe", "qwen2"))
KINDS = {
    "gpt-2": (WORDS, {}),
    "smollm": (DIGITS, {}),
    "llama-bpe": (split(LLAMA3), {"ignore_merges": True}),
    "qwen2": (split(QWEN2), {}),
}


@pytest.fixture(scope="module")
def model() -> models.Model:
    config = decoder.Config(vocabulary=ROWS, layers=1, width=8, heads=1, kv_heads=1, hidden=8)
    return models.of(config, decoder.init(jax.random.key(0), config))


def saved(model: models.Model, tokenizer: Any, folder: Path) -> Any:
    return models.save_gguf(model._replace(tokenizer=tokenizer), model.params, folder / "x.gguf")


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_of_bytes_comes_back(kind: str, model: models.Model, tmp_path: Path) -> None:
    pre, options = KINDS[kind]
    given = wrapped(of_bytes(pre, **options), eos_token="<|endoftext|>")
    given.chat_template = "{{ messages[0].content }}"
    path = saved(model, given, tmp_path)
    reader = gguf.GGUFReader(path)

    def said(key: str) -> Any:
        return reader.get_field(f"tokenizer.{key}").contents()

    assert (said("ggml.model"), said("ggml.pre")) == ("gpt2", kind)
    assert said("ggml.eos_token_id") == given.eos_token_id and not said("ggml.add_bos_token")
    assert said("chat_template") == given.chat_template
    types = said("ggml.token_type")
    assert len(types) == len(said("ggml.tokens")) == ROWS
    assert types[:3] == [3, 3, 1] and types[-1] == 5  # control, normal, unused
    if kind == "gpt-2":  # transformers reads any as one of these
        found = models.load(path).tokenizer
        for text in TEXTS:
            assert found(text)["input_ids"] == given(text)["input_ids"]
    found = models.load(path).tokenizer  # and writes it as the kind that it was
    (tmp_path / "again").mkdir()
    again = gguf.GGUFReader(saved(model, found, tmp_path / "again"))
    assert again.get_field("tokenizer.ggml.pre").contents() == kind
    assert again.get_field("tokenizer.ggml.merges").contents() == said("ggml.merges")


def test_a_tokenizer_of_pieces_comes_back(model: models.Model, tmp_path: Path) -> None:
    given = wrapped(of_pieces(), unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    path = saved(model, given, tmp_path)
    reader = gguf.GGUFReader(path)

    def said(key: str) -> Any:
        return reader.get_field(f"tokenizer.ggml.{key}").contents()

    assert (said("model"), said("add_bos_token"), said("add_space_prefix")) == ("llama", True, True)
    assert said("token_type")[:4] == [2, 3, 3, 6]  # unknown, control, a byte
    scores = dict(zip(said("tokens"), said("scores"), strict=True))
    first, *_, last = ("".join(pair.split(" ")) for pair in said("merges"))
    assert scores[first] == 0 > scores[last] > scores["▁"]  # the earliest merge is the best
    at = given.get_vocab()
    assert said("tokens")[: len(at)] == sorted(at, key=at.__getitem__)
    # transformers makes merges of its own from the scores; the texts of tokens are what it keeps
    found = models.load(path).tokenizer
    for text in (*TEXTS, "a name: Zoë"):
        ids = given(text)["input_ids"]
        assert found.decode(ids, skip_special_tokens=True).strip() == text.strip()


@pytest.mark.quick
def test_one_that_llama_cpp_would_split_otherwise_is_refused(
    model: models.Model, tmp_path: Path
) -> None:
    spaces = pre_tokenizers.Whitespace()
    for made, words in (
        (of_bytes(split("[a-z]+|.")), r"what splits texts is .*\[a-z\]\+.*, but must be that of"),
        (of_bytes(pre_tokenizers.Sequence([spaces, WORDS])), "what splits texts is .*Whitespace"),
        (of_bytes(split(LLAMA3)), "ignore_merges is False, but must be as in llama-bpe"),
        (tokenizers.Tokenizer(WordPiece({"a": 0}, unk_token="a")), "kind of tokenizer is 'WordPi"),
    ):
        with pytest.raises(ValueError, match=words):
            saved(model, wrapped(made), tmp_path)
    pieces = of_pieces()
    pieces.pre_tokenizer = spaces
    with pytest.raises(ValueError, match=r"pre_tokenizer is .*Whitespace.*, but must be none"):
        saved(model, wrapped(pieces), tmp_path)
    assert not any(tmp_path.iterdir())
