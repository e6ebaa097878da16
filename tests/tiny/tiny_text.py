"""Small tokenizers, trained on a few lines, so that the tests need no download."""

import functools

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

LINES = [
    "the cat sat on the mat and the dog sat on the cat",
    "def f(x):\n    return x + 1\n",
    "naïve café — ünïcödé ☕ 数学 🙂🙂",
    "user: hello assistant: hi there",
]
ODD = [
    "the cat",
    " leading and trailing  ",
    "tabs\tand\n\n\nnewlines\r\n",
    "naïve café ☕ 数学 🙂",
    "👩‍👩‍👧‍👦 family, e\u0301 combined, \u200b nothing wide, \ufeff mark",
    "Ünknown ЖЗИ العربية",
    "        return   x",
    "😀",
    "a",
    "\x00\x01 control",
    "<|end|> in a text",
]

CHATML = """{% for m in messages -%}
<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def _fast(tokenizer, **special):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@functools.cache
def byte_level(trim=False):
    """As GPT-2's: every string has tokens, blanks go with the word after them."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim)
    t.decoder = decoders.ByteLevel()
    if trim:
        t.post_processor = processors.ByteLevel(trim_offsets=True)
    special = ["<|end|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    t.train_from_iterator(LINES, trainer)
    made = _fast(t, eos_token="<|end|>", additional_special_tokens=special[1:])
    made.chat_template = CHATML
    return made


@functools.cache
def sentence_piece():
    """As Llama's: begins documents with a token, falls back to bytes."""
    fallback = [f"<0x{i:02X}>" for i in range(256)]
    t = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=["<unk>", "<s>", "</s>", *fallback], show_progress=False
    )
    t.train_from_iterator(LINES[:1], trainer)
    t.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return _fast(t, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@functools.cache
def word_piece():
    """As BERT's: lower case, drops blanks and accents, wraps a document in [CLS] and [SEP]."""
    t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    t.normalizer = normalizers.BertNormalizer(lowercase=True)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    t.train_from_iterator(LINES, trainer)
    t.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return _fast(t, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
