"""A tiny decoder over bytes, some edits and its statistics, which the tests of editors share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from jcl.data.edits import Edit
from jcl.editing import encode
from jcl.editing.statistics import second_moment
from jcl.models import decoder

LAYERS, WIDTH, HIDDEN, LENGTH = 3, 16, 24, 20
CONFIG = decoder.Config(layers=LAYERS, width=WIDTH, heads=2, kv_heads=1, hidden=HIDDEN)
APPLY = decoder.apply_fn(CONFIG)


def base(dtype: Any = jnp.float32) -> Any:
    """Parameters so large that the context counts."""
    params = decoder.init(jax.random.key(1), CONFIG, dtype)
    blocks = jax.tree.map(lambda x: 20 * x if x.ndim > 2 else x, params["blocks"])
    return {**params, "embed": {"table": 10 * params["embed"]["table"]}, "blocks": blocks}


PARAMS = base()
EDITS = [
    Edit("Rome is in", "Rome", "Gaul"),
    Edit("Oslo has", "Oslo", "no"),
    Edit("A cat eats", "cat", "hay"),
    Edit("So do eels", "eels", "fly"),
]
FACTS = jax.tree.map(jnp.asarray, encode(EDITS, None, ["{}", "a {}", "it: {}"], LENGTH))
TEXT = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 8, 32)), jnp.int32)


def moments(layers: tuple[int, ...]) -> jax.Array:
    """C of those layers over random text."""
    return second_moment(APPLY, PARAMS, {"tokens": TEXT}, layers)


MOMENTS = jax.jit(moments, static_argnums=0)((0, 1, 2))


def some(*places: int) -> dict[str, jax.Array]:
    """Those of `FACTS`."""
    return jax.tree.map(lambda x: x[jnp.asarray(places)], FACTS)


def kernel(params: Any) -> np.ndarray:
    """Of all layers, [layers, in, out]."""
    return np.asarray(params["blocks"]["down"]["kernel"])


def tokenizer(whole: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE as GPT-2's; a `whole` document begins with <s> and ends with </s>."""
    made = Tokenizer(BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    texts = ["The capital of France is Lyon", "France is a country", "Therefore, it is so."] * 9
    trainer = BpeTrainer(
        vocab_size=330, special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(texts, trainer)
    if whole:
        made.post_processor = TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
