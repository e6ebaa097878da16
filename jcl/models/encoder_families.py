"""The published encoders and T5: the meaning of their `config.json`, the names of their tensors.

Which heads a checkpoint has is told by the names of its tensors; see `layout`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from jcl.method import check
from jcl.models import encoder, t5
from jcl.models.layout import (
    Family,
    Layout,
    Source,
    activation_name,
    block,
    dense,
    linear,
    norm,
    vector,
)


def _bert(given: Any, offset: int = 0) -> encoder.Config:
    return encoder.Config(
        vocabulary=given.vocab_size,
        layers=given.num_hidden_layers,
        width=given.hidden_size,
        heads=given.num_attention_heads,
        hidden=given.intermediate_size,
        eps=given.layer_norm_eps,
        activation=activation_name(given.hidden_act),
        context=given.max_position_embeddings - offset,
        offset=offset,
        types=given.type_vocab_size,
    )


def _roberta(given: Any) -> encoder.Config:
    """RoBERTa, whose masked head has the GELU whatever `hidden_act` says."""
    return replace(_bert(given, given.pad_token_id + 1), masked_activation="gelu")


class _Names(NamedTuple):
    """A family's names of its parts, without `.weight`."""

    body: str
    transform: str
    """The dense layer of a masked language model's head."""
    norm: str
    bias: str
    classifier: str
    first: str
    """The pooler of a classifier that reads the first token."""

    def pooler(self, classifies_first: bool) -> str:
        return self.first if classifies_first else f"{self.body}.pooler.dense"


_BERT = _Names(
    "bert",
    "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm",
    "cls.predictions.bias",
    "classifier",
    "bert.pooler.dense",
)
_ROBERTA = _Names(
    "roberta",
    "lm_head.dense",
    "lm_head.layer_norm",
    "lm_head.bias",
    "classifier.out_proj",
    "classifier.dense",
)


def _heads(
    called: _Names, config: encoder.Config, given: Any, names: frozenset[str]
) -> encoder.Config:
    """The configuration with the heads that the checkpoint has.

    A classifier that transformers wrote reads the first token.
    """

    def there(name: str) -> bool:
        short = name.removeprefix(f"{called.body}.")
        return not names.isdisjoint({f"{name}.weight", f"{short}.weight"})

    pooling: Any = getattr(given, "classifier_pooling", "first")
    classifies = there(called.classifier) and (pooling == "mean" or there(called.first))
    masked = there(called.transform)
    tied = given.tie_word_embeddings
    check(tied or not masked, "tie_word_embeddings", tied, "True: the masked head is the embedding")
    return replace(
        config,
        masked=masked,
        pooler=there(called.pooler(classifies and pooling == "first")),
        classes=given.num_labels if classifies else 0,
        pooling=pooling if classifies else "mean",
    )


def _layout(called: _Names, c: encoder.Config) -> Layout:
    start, at = f"{called.body}.embeddings", f"{called.body}.encoder.layer.{{layer}}"
    found = {
        "embed/table": Source(f"{start}.word_embeddings.weight", (c.vocabulary, c.width)),
        "positions/table": Source(
            f"{start}.position_embeddings.weight", (c.offset + c.context, c.width)
        ),
        "types/table": Source(f"{start}.token_type_embeddings.weight", (c.types, c.width)),
    }
    found |= norm("embed_norm", f"{start}.LayerNorm", c.width)
    parts = {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "output": "attention.output.dense",
        "up": "intermediate.dense",
        "down": "output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "mlp_norm": "output.LayerNorm",
    }
    found |= block(at, c.width, c.hidden, parts)
    if c.pooler:
        first = c.classes > 0 and c.pooling == "first"
        found |= dense("pooler", called.pooler(first), c.width, c.width)
    if c.masked:
        found |= dense("masked/transform", called.transform, c.width, c.width)
        found |= norm("masked/norm", called.norm, c.width)
        found["masked/bias"] = vector(called.bias, c.vocabulary)
    if c.classes:
        found |= dense("classifier", called.classifier, c.width, c.classes)
    return found


def _t5(given: Any) -> t5.Config:
    start = getattr(given, "decoder_start_token_id", None)
    # which transformers has made the two below of
    check(bool(given.feed_forward_proj), "feed_forward_proj", "", "the name of an activation")
    return t5.Config(
        vocabulary=given.vocab_size,
        layers=given.num_layers,
        decoder_layers=given.num_decoder_layers,
        width=given.d_model,
        heads=given.num_heads,
        head_width=given.d_kv,
        hidden=given.d_ff,
        activation=activation_name(given.dense_act_fn),
        gated=given.is_gated_act,
        buckets=given.relative_attention_num_buckets,
        reach=given.relative_attention_max_distance,
        eps=given.layer_norm_epsilon,
        tied=True,
        scaled=given.scale_decoder_outputs,
        start=given.pad_token_id if start is None else start,
    )


def _t5_head(config: t5.Config, given: Any, names: frozenset[str]) -> t5.Config:
    """The configuration with `tied`: 1.1 has its own head, some files of 1.0 a copied embedding."""
    return replace(config, tied=config.scaled or "lm_head.weight" not in names)


def _t5_layout(c: t5.Config) -> Layout:
    inner = c.heads * c.head_width
    found = {"embed/table": Source("shared.weight", (c.vocabulary, c.width))}
    for side in ("encoder", "decoder"):
        at = f"{side}.block.{{layer}}.layer"
        attends = {"": f"{at}.0.SelfAttention", "cross_": f"{at}.1.EncDecAttention"}
        norms = {"attention": f"{at}.0", "cross": f"{at}.1", "mlp": f"{at}.2"}
        if side == "encoder":
            attends, norms = {"": attends[""]}, {"attention": f"{at}.0", "mlp": f"{at}.1"}
        for prefix, name in attends.items():
            for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v")):
                source = linear(f"{name}.{theirs}", c.width, inner)
                found[f"{side}/blocks/{prefix}{ours}/kernel"] = source
            found[f"{side}/blocks/{prefix}output/kernel"] = linear(f"{name}.o", inner, c.width)
        mlp = f"{norms['mlp']}.DenseReluDense"
        for ours, theirs in (("gate", "wi_0"), ("up", "wi_1")) if c.gated else (("up", "wi"),):
            found[f"{side}/blocks/{ours}/kernel"] = linear(f"{mlp}.{theirs}", c.width, c.hidden)
        found[f"{side}/blocks/down/kernel"] = linear(f"{mlp}.wo", c.hidden, c.width)
        for part, name in norms.items():
            found[f"{side}/blocks/{part}_norm/scale"] = vector(f"{name}.layer_norm.weight", c.width)
        found[f"{side}/norm/scale"] = vector(f"{side}.final_layer_norm.weight", c.width)
        found[f"{side}/positions/table"] = Source(
            f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            (c.buckets, c.heads),
        )
    if not c.tied:
        found["head/kernel"] = linear("lm_head", c.width, c.vocabulary)
    return found


_BERT_COPIES = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
_ROBERTA_COPIES = {
    "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}
_T5_COPIES = {f"{side}.embed_tokens.weight": "shared.weight" for side in ("encoder", "decoder")}
_T5_UNREAD = r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
"""What the first published T5 have and no version of transformers reads."""
ENCODERS = {
    "bert": Family(
        _bert, partial(_layout, _BERT), "bert.", partial(_heads, _BERT),
        encoder.init, encoder.apply_fn, _BERT_COPIES, r"cls\.seq_relationship\..*",
    ),
    "roberta": Family(
        _roberta, partial(_layout, _ROBERTA), "roberta.", partial(_heads, _ROBERTA),
        encoder.init, encoder.apply_fn, _ROBERTA_COPIES,
    ),
    "t5": Family(_t5, _t5_layout, "", _t5_head, t5.init, t5.apply_fn, _T5_COPIES, _T5_UNREAD),
}  # fmt: skip
"""Families of encoders and T5 by `model_type`; MiniLM is a `bert`, Flan-T5 a `t5`."""
