"""A tokenizer as GGUF's metadata, if llama.cpp splits texts as it does.

llama.cpp has no regular expressions in its files: it knows the splitting of published tokenizers by
their names. So a tokenizer is written only if its own expression is that of one of these names.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from jcl.method import check

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    ("words",): "gpt-2",
    ("digits", "words"): "smollm",
    (_LLAMA3,): "llama-bpe",
    (_LLAMA3.replace("{1,3}", ""),): "qwen2",
}
"""llama.cpp's names for how a text is split before merging: of `llm_tokenizer_bpe` in its
`llama-vocab.cpp`. `words` is GPT-2's own expression, `digits` one digit at a time."""
_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "mask")
PRE = "gguf_pre"
"""Under which name a tokenizer that was read from a GGUF file keeps llama.cpp's for its splits."""


def add(writer: Any, tokenizer: Any, rows: int) -> None:
    """Adds a tokenizer to the metadata of a file.

    Args:
      writer: a `gguf.GGUFWriter`.
      tokenizer: one of transformers, or None, for a model of bytes, say.
      rows: how many tokens the model has an embedding for; those without a text are unused.

    Raises:
      ValueError: if llama.cpp has none that splits and merges alike.
    """
    if tokenizer is None:
        writer.add_tokenizer_model("none")
        return
    import gguf

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        path = Path(folder) / "tokenizer.json"
        wanted = "a fast one of transformers, which has a tokenizer.json"
        check(path.is_file(), "tokenizer", type(tokenizer).__name__, wanted)
        stored = json.loads(path.read_text())
        special = gguf.SpecialVocab(folder, load_merges=True, special_token_types=())
    kind = stored["model"]["type"]
    check(kind == "BPE", "kind of tokenizer", kind, "BPE in a .gguf")
    if stored["model"].get("byte_fallback"):
        _add_pieces(writer, tokenizer, stored, rows)  # llama.cpp needs no merges, transformers does
    else:
        _add_bytes(writer, tokenizer, stored, rows)
    ids = {name: getattr(tokenizer, f"{name}_token_id", None) for name in _SPECIAL}
    special.special_token_ids = {name: at for name, at in ids.items() if at is not None}
    empty = tokenizer("")["input_ids"]
    first, last = bool(empty) and empty[0] == ids["bos"], bool(empty) and empty[-1] == ids["eos"]
    special.add_special_token = {"bos": first, "eos": last and len(empty) > first}
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    special.chat_template = template
    special.add_to_gguf(writer, quiet=True)


def _tokens(tokenizer: Any, rows: int) -> tuple[list[str], list[int]]:
    """The texts of all tokens, and what each is: llama.cpp's `get_vocab_base`."""
    from gguf import TokenType

    texts = {at: text for text, at in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for at in range(rows):
        text, kind = texts.get(at, f"[PAD{at}]"), TokenType.NORMAL
        if at not in texts:
            kind = TokenType.UNUSED
        elif at in added:
            looks = re.fullmatch(r"<\|.*\|>|<｜.*｜>|<unused\d+>", text)
            control = added[at].special or looks
            kind = TokenType.CONTROL if control else TokenType.USER_DEFINED
            text = text if control else text.replace("▁", " ")
        tokens.append(text)
        types.append(int(kind))
    return tokens, types


def _add_bytes(writer: Any, tokenizer: Any, stored: dict[str, Any], rows: int) -> None:
    """One that merges bytes, each written as a visible character: GPT-2's kind."""
    known = getattr(tokenizer, "init_kwargs", {}).get(PRE)
    splits = _splits(stored.get("pre_tokenizer") or {})
    names = f"one of {sorted(set(_SPLITS.values()))}"
    check(bool(known) or splits in _SPLITS, "what splits texts", splits, f"that of {names}")
    name = known or _SPLITS[splits]
    whole = bool(stored["model"].get("ignore_merges"))
    check(known or whole == (name == "llama-bpe"), "ignore_merges", whole, f"as in {name}")
    tokens, types = _tokens(tokenizer, rows)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types(types)


def _splits(given: dict[str, Any]) -> tuple[str, ...]:
    """What a `pre_tokenizer` does, in the words of `_SPLITS`."""
    parts = given.get("pretokenizers", [given])
    found = []
    for piece in parts:
        kind = piece.get("type", "nothing")
        if kind == "ByteLevel" and not piece.get("add_prefix_space"):
            found += ["words"] if piece.get("use_regex", True) else []
        elif kind == "Digits" and piece.get("individual_digits"):
            found.append("digits")
        elif kind == "Split" and piece.get("behavior") == "Isolated" and not piece.get("invert"):
            found.append(str(piece["pattern"].get("Regex")))
        else:
            found.append(kind)
    return tuple(found)


def _add_pieces(writer: Any, tokenizer: Any, stored: dict[str, Any], rows: int) -> None:
    """One that merges characters, with ▁ for a space: that of Llama 2, after SentencePiece.

    llama.cpp merges the pair of the highest score, which is how early its merge was learned.
    """
    from gguf import TokenType

    split = stored.get("pre_tokenizer")
    alone = split is None or split.get("type") == "Metaspace"
    check(alone, "pre_tokenizer", split, "none, for llama.cpp merges a whole text in such a case")
    tokens, types = _tokens(tokenizer, rows)
    rank: dict[str, int] = {}
    for order, merge in enumerate(stored["model"]["merges"]):
        rank.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), order)
    unknown = stored["model"].get("unk_token")
    for at, text in enumerate(tokens):
        if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", text):
            types[at] = int(TokenType.BYTE)
        elif text == unknown:
            types[at] = int(TokenType.UNKNOWN)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(rank.get(text, len(rank))) for text in tokens])
    writer.add_token_types(types)
    normalised = json.dumps(stored.get("normalizer")) + json.dumps(split)
    before = '"Prepend"' in normalised or '"prepend_scheme": "first"' in normalised
    writer.add_add_space_prefix(before or '"prepend_scheme": "always"' in normalised)
