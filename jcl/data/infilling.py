"""Documents whose middle comes last, by which a decoder learns to fill it in."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from jcl.data.documents import Document, Documents
from jcl.method import check


def fill_in_the_middle(
    documents: Iterable[Document],
    prefix: str,
    suffix: str,
    middle: str,
    *,
    share: float = 0.5,
    suffix_first: float = 0.5,
    seed: int = 0,
) -> Documents:
    r"""Documents of which a share are rewritten so that a decoder learns to fill in their middle.

    A document is cut at two characters drawn at random. It becomes `prefix` A `suffix` C `middle` B
    (PSM), or, with probability `suffix_first`, `prefix` `suffix` C `middle` A B (SPM), where A, B
    and C are its parts. All of it is learned. A document's draw depends on the seed and on its
    number, so every epoch has the same.

    Sources: Bavarian et al., arXiv 2207.14255, section 3 (characters, not tokens, are cut); the
    marks and SPM's form are of StarCoder (Li et al., arXiv 2305.06161; `permute` in
    bigcode-project/Megatron-LM), which has both shares at .5; Code Llama (arXiv 2308.12950) has a
    share of .9, DeepSeek-Coder (arXiv 2401.14196) .5 and PSM alone.

    Args:
      documents: plain texts.
      prefix: what begins a rewritten document, for instance `"<fim_prefix>"`; the tokenizer should
        know the three marks as single tokens. For bytes take characters that no text has.
      suffix: what the end of the text comes after.
      middle: what the middle comes after.
      share: the share of documents that are rewritten.
      suffix_first: the share of these with SPM.
      seed: seeds the draws.

    Raises:
      ValueError: if a share is out of range, two marks are alike or one is empty; in iteration, if
        a document is no plain text, or has a mark in it.

    >>> list(fill_in_the_middle(["abcdef"], "<", "|", ">", share=1, suffix_first=0))
    ['<abcd|ef>']
    """
    for name, value in (("share", share), ("suffix_first", suffix_first)):
        check(0 <= value <= 1, name, value, "from 0 to 1")
    marks = (prefix, suffix, middle)
    check(len({*marks, ""}) == 4, "marks", marks, "three different texts, none empty")

    def rewritten(text: Document, number: int) -> str:
        check(isinstance(text, str), "document", type(text).__name__, "a str to cut in three")
        assert isinstance(text, str)
        found = [mark for mark in marks if mark in text]
        check(not found, "document", text[:40], f"without {found}, which mark its parts")
        draw = random.Random(f"{seed}:{number}")
        if draw.random() >= share:
            return text
        a, b = sorted(draw.randrange(len(text) + 1) for _ in range(2))
        if draw.random() < suffix_first:
            return prefix + suffix + text[b:] + middle + text[:b]
        return prefix + text[:a] + suffix + text[b:] + middle + text[a:b]

    def read() -> Iterator[Document]:
        return (rewritten(text, number) for number, text in enumerate(documents))

    return Documents(read)
