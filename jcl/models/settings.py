"""A published configuration whose unread keys are refused, so that none is ignored silently.

A key changes the function that a model computes, or it doesn't. What a family reads is honoured;
what `HARMLESS` lists changes training, generation or speed alone; whatever else isn't at its
default is refused by name.
"""

from __future__ import annotations

import re
from typing import Any

from jcl.method import check

HARMLESS = frozenset({
    # what the files are and where they come from
    "_name_or_path", "architectures", "dtype", "model_type", "transformers_version",
    # what generation begins and ends with
    "bos_token_id", "eos_token_id", "pad_token_id", "use_cache",
    # what a call returns, and how it is cut up
    "chunk_size_feed_forward", "output_attentions", "output_hidden_states",
    "output_router_logits", "pretraining_tp", "reorder_and_upcast_attn", "return_dict",
    # heads of transformers that we don't have, whose tensors are refused
    "id2label", "label2id", "problem_type", "projection_dim", "summary_activation",
    "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
    # training: dropout, first weights, and what balances experts
    "attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "classifier_dropout",
    "dropout_rate", "embd_pdrop", "hidden_dropout", "hidden_dropout_prob", "initializer_factor",
    "initializer_range", "resid_pdrop", "router_aux_loss_coef", "router_jitter_noise",
    # what transformers has already made `layer_types`, `rope_parameters` or another key of
    "_sliding_window_pattern", "max_window_layers", "no_rope_layer_interval",
    "original_max_position_embeddings", "use_sliding_window",
})  # fmt: skip
"""Keys that leave the function of a model in evaluation as it is."""
UNDECLARED = {"head_dim": None, "is_causal": True, "position_embedding_type": "absolute"}
"""Keys that mattered in some version of transformers though not each configuration declares them,
and what they are by default."""
OURS = frozenset({"classifier_pooling", "decoder_start_token_id", "num_labels"})
"""Keys that we read though none or few configurations declare them."""


class Settings:
    """A configuration of transformers that notes which of its keys are read.

    Keys that its class doesn't declare aren't there, as they aren't for transformers' models,
    except `UNDECLARED` ones and those in `also`.
    """

    def __init__(self, given: Any, also: frozenset[str] = frozenset()) -> None:
        self._given = given
        others = {k: v for k, v in UNDECLARED.items() if k not in type(given).attribute_map}
        self._default: dict[str, Any] = others | type(given)().to_dict()
        self._also = also
        self._read: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        named = type(self._given).attribute_map.get(name, name)
        if named not in self._default.keys() | self._also | OURS:
            raise AttributeError(f"{self._given.model_type} has no {name!r}")
        self._read.add(named)
        return getattr(self._given, named)

    def refuse_unread(self, where: str) -> None:
        """Refuses a key that nobody has read, whose value isn't the default and may matter.

        Args:
          where: what the configuration was read from, for the message.

        Raises:
          ValueError: if there is such a key.
        """
        for key, usual in self._default.items():
            value = getattr(self._given, key, usual)
            if key not in self._read | HARMLESS and value != usual:
                raise ValueError(
                    f"{key} is {value!r} in {where}, but must be {usual!r}: models of type "
                    f"{self._given.model_type!r} are only read without it"
                )


def configuration(given: dict[str, Any], where: str) -> Any:
    """A transformers configuration, which brings the 4.x form to that of 5.x.

    Args:
      given: the contents of a `config.json`.
      where: what they were read from, for the message.

    Raises:
      ValueError: if they are none of their `model_type`.
    """
    from transformers import AutoConfig

    kind = given["model_type"]
    values = {k: v for k, v in given.items() if k not in ("model_type", "auto_map")}
    for key in {"num_attention_heads", "n_head", "num_heads"} & values.keys():
        ok = isinstance(values[key], int) and values[key] >= 1
        check(ok, f"{key} in {where}", values[key], "at least 1")
    try:
        return AutoConfig.for_model(kind, **values)
    except Exception as error:  # whatever its checks raise, in several lines
        said = re.sub(r"\s+", " ", str(error)).strip()
        raise ValueError(f"{where} has no configuration of {kind!r}: {said}") from error
