"""Each key of each family's configuration, flipped alone: the function of transformers, or refused.

It finds what a family reads wrongly or not at all, for transformers' own classes say which keys
there are. A new key of transformers is flipped as soon as it is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from asked_models import answer, batch_of
from perturbed import perturb

from jcl import models
from jcl.models.pretrained import FAMILIES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
GROUPED = {"head_dim": 8, "query_pre_attn_scalar": 24, "sliding_window": 5}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
KINDS = ["sliding_attention", "full_attention"]
ENCODER = {**SMALL, "pad_token_id": 0}
TOWER = {"image_size": 8, "patch_size": 4, "num_channels": 3}
T5 = {
    "vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2,
    "num_decoder_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16, "pad_token_id": 0,
}  # fmt: skip
FAMILY: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "smollm3": {"sliding_window": 5, "no_rope_layers": [1, 0]},
    "granite": {
        "embedding_multiplier": 2.0, "logits_scaling": 3.0, "residual_multiplier": 0.5,
        "attention_multiplier": 0.4,
    },
    "stablelm": {},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": GROUPED,
    "gemma3_text": {**GROUPED, "layer_types": KINDS},
    "cohere2": {"sliding_window": 5, "layer_types": KINDS},
    "olmo2": {},
    "olmo3": {"sliding_window": 5, "layer_types": KINDS},
    "phi3": {"original_max_position_embeddings": 64},
    "gpt2": {},
    "gpt_neox": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {**EXPERTS, "num_experts": 4},
    "qwen3_moe": {**EXPERTS, "num_experts": 4, "head_dim": 8},
    "bert": ENCODER,
    "roberta": {**ENCODER, "pad_token_id": 1},
    "t5": T5,
    "clip_vision_model": {**SMALL, **TOWER},
    "siglip_vision_model": {**SMALL, **TOWER},
}  # fmt: skip
"""Each family's tiny configuration, in which what can be told apart is."""

ROPES: list[dict[str, Any]] = [
    {"rope_theta": 500.0},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
        "beta_fast": 4.0, "beta_slow": 2.0, "truncate": False,
    },
    {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 0.7,
        "mscale_all_dim": 1.3,
    },
    {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
        "attention_factor": 0.5,
    },
    {
        "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    {
        "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 3.0, 4.0, 5.0], "original_max_position_embeddings": 16,
    },
    {"partial_rotary_factor": 0.5},
]  # fmt: skip
VALUES: dict[str, list[Any]] = {
    "hidden_size": [64],
    "n_embd": [64],
    "d_model": [64],
    "n_inner": [40],
    "num_attention_heads": [2],
    "n_head": [2],
    "num_heads": [2],
    "num_key_value_heads": [1, 4, None],
    "head_dim": [16, None],
    "num_hidden_layers": [1],
    "n_layer": [3],
    "num_layers": [1],
    "num_decoder_layers": [1],
    "intermediate_size": [40],
    "moe_intermediate_size": [40],
    "hidden_act": ["relu", "gelu", "gelu_pytorch_tanh", "gelu_fast", "mish"],
    "hidden_activation": ["relu", "silu", "gelu_fast", "mish"],
    "activation_function": ["relu", "gelu", "mish"],
    "feed_forward_proj": ["gated-gelu", "gated-silu", "gelu"],
    "dense_act_fn": ["gelu"],
    "max_position_embeddings": [32],
    "n_positions": [32],
    "original_max_position_embeddings": [16],
    "rms_norm_eps": [0.1],
    "layer_norm_eps": [0.1],
    "layer_norm_epsilon": [0.1],
    "sliding_window": [3, None],
    "max_window_layers": [0],
    "layer_types": [
        ["full_attention"] * 2, ["sliding_attention"] * 2, ["full_attention", "sliding_attention"],
        ["chunked_attention"] * 2,
    ],
    "no_rope_layers": [[0, 1], [1, 1], [0, 0]],
    "no_rope_layer_interval": [1],
    "query_pre_attn_scalar": [8],
    "final_logit_softcapping": [3.0, None],
    "attn_logit_softcapping": [2.0, None],
    "use_bidirectional_attention": [True],
    "clip_qkv": [0.3],
    "attention_multiplier": [0.7],
    "num_experts_per_tok": [1],
    "num_local_experts": [2],
    "num_experts": [2],
    "decoder_sparse_step": [2],
    "mlp_only_layers": [[0]],
    "initializer_range": [0.25],
    "initializer_factor": [1.25],
    "pad_token_id": [3],
    "bos_token_id": [3],
    "eos_token_id": [3],
    "vocab_size": [70],
    "type_vocab_size": [3],
    "image_size": [12],
    "patch_size": [2],
    "num_channels": [1],
    "relative_attention_num_buckets": [6],
    "relative_attention_max_distance": [9],
    "id2label": [{0: "a", 1: "b", 2: "c"}],
    "label2id": [{"a": 0, "b": 1, "c": 2}],
    "problem_type": ["regression"],
    "summary_type": ["mean"],
    "summary_activation": ["tanh"],
    "dtype": [],  # the files' own; see the tests of dtypes
    "model_type": [],
    "transformers_version": ["4.40.0"],
    "architectures": [],  # transformers writes its own
    "_name_or_path": ["x"],
}  # fmt: skip
"""Other values of keys that can't take any value of their type; the first keys are shapes."""
STRAY: dict[str, Any] = {
    "attention_bias": True, "mlp_bias": True, "sliding_window": 3, "hidden_act": "relu",
    "hidden_activation": "relu", "layer_types": ["sliding_attention"] * 2, "logit_scale": 2.0,
    "embedding_multiplier": 3.0, "use_parallel_residual": True, "clip_qkv": 0.1,
    "final_logit_softcapping": 2.0, "norm_topk_prob": False, "query_pre_attn_scalar": 5,
    "partial_rotary_factor": 0.5, "rms_norm_eps": 0.2, "layer_norm_eps": 0.2, "rope_theta": 77.0,
    "is_causal": False, "position_embedding_type": "relative_key", "head_dim": 16,
}  # fmt: skip
"""Keys that some families have, given to those that have not."""


def base(kind: str) -> dict[str, Any]:
    given = FAMILY[kind]
    return given if kind in ("t5", "bert", "roberta") else SMALL | given


def flips(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each key, and the configuration with another value of it alone."""
    usual = transformers.AutoConfig.for_model(kind, **base(kind)).to_dict()
    for key, value in usual.items():
        if key == "rope_parameters":
            nested = KINDS if set(KINDS) <= set(value) else [None]
            for at in nested:
                for rope in ROPES:
                    old = value if at is None else value[at]
                    new = {**old, **rope}
                    yield key, base(kind) | {key: new if at is None else {**value, at: new}}
            continue
        if key in VALUES:
            others = VALUES[key]
        elif isinstance(value, bool):
            others = [not value]
        elif isinstance(value, int | float):
            others = [value * 2 + 1]
        else:
            others = [True] if value is None else []
        assert others or key in VALUES, f"no other value of {kind}'s {key} is known"
        yield from ((key, base(kind) | {key: other}) for other in others if other != value)
    for key, value in STRAY.items():
        if key not in usual:
            yield key, base(kind) | {key: value}


def oracle(kind: str, given: dict[str, Any]) -> Any:
    """A tiny model in torch, whose weights are drawn by `Weights`."""
    config = transformers.AutoConfig.for_model(kind, **given)
    made = transformers.AutoModelForCausalLM
    if kind in ("bert", "roberta"):
        made = transformers.AutoModelForMaskedLM
    elif kind == "t5":
        made = transformers.AutoModelForSeq2SeqLM
    elif "vision" in kind:
        made = transformers.AutoModel
    return made.from_config(config, attn_implementation="eager").eval()


Outline = tuple[tuple[str, tuple[int, ...], str], ...]


def outline(model: Any) -> Outline:
    """The names and shapes of its tensors, and which are one: what its file depends on."""
    tensors, first = model.state_dict(), {}
    for name, tensor in tensors.items():
        first.setdefault(tensor.data_ptr(), name)
    return tuple((n, tuple(t.shape), first[t.data_ptr()]) for n, t in tensors.items())


class Shared:
    """What the flips of a family share, since most of them leave the tensors as they are.

    Weights are drawn and written once for each outline, and our function is computed once for each
    of our configurations with the same weights: it depends on nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.drawn: dict[Outline, tuple[Path, Any]] = {}
        self.computed: dict[tuple[Outline, Any], np.ndarray] = {}

    def give(self, model: Any) -> Path:
        """Gives a model in torch the weights of its outline; the file in which they are stored."""
        shapes = outline(model)
        if shapes not in self.drawn:
            torch.manual_seed(0)
            folder = self.folder / f"weights-{len(self.drawn)}"
            perturb(model).save_pretrained(folder)
            self.drawn[shapes] = (folder / "model.safetensors", model.state_dict())
        file, state = self.drawn[shapes]
        model.load_state_dict(state)
        return file

    def apply(self, model: models.Model, weights: Outline, batch: dict[str, Any]) -> np.ndarray:
        """What a loaded model gives."""
        same = (weights, model.config)
        if same not in self.computed:
            given = {k: jnp.asarray(v) for k, v in batch.items()}
            with jax.disable_jit():  # most configurations differ, and an operation compiles once
                self.computed[same] = np.asarray(model.apply(model.params, given))
        return self.computed[same]


def judge(kind: str, key: str, given: dict[str, Any], folder: Path, shared: Shared) -> str | None:
    """What is wrong with a flipped configuration, or None."""
    folder.mkdir()
    try:
        model = oracle(kind, given)
    except Exception as error:  # transformers itself can't: anything but a sentence is wrong
        (folder / "config.json").write_text(json.dumps({"model_type": kind, **given}))
        try:
            models.shapes(folder)
        except ValueError:
            return None
        except Exception as ours:
            return f"{type(ours).__name__}: {ours}, where transformers says {error}"
        return None
    (folder / "model.safetensors").symlink_to(shared.give(model))
    model.config.save_pretrained(folder)
    said = json.loads((folder / "config.json").read_text())
    if key not in said and key in given:  # what transformers wouldn't write may be written by hand
        (folder / "config.json").write_text(json.dumps({**said, key: given[key]}))
    refused, loaded = None, None
    try:
        loaded = models.load(folder)
    except ValueError as error:
        if key in str(error) or key in NAMED:
            return None
        refused = f"refused without its name: {error}"
    batch = batch_of(kind, model.config)
    try:
        theirs = answer(kind, model, batch)
    except Exception:  # it can't either
        return None
    if loaded is None:
        return refused
    ours = shared.apply(loaded, outline(model), batch)
    off = np.abs(ours - theirs).max() / np.abs(theirs).max()
    return None if off <= 1e-5 else f"{off:.1%} off"


NAMED = {"hidden_act", "hidden_activation", "activation_function"}
"""Keys whose refusal names what they mean: the activation."""


def wrongs(kind: str, folder: Path) -> dict[str, str]:
    made, shared = {}, Shared(folder)
    for i, (key, given) in enumerate(flips(kind)):
        said = judge(kind, key, given, folder / str(i), shared)
        if said is not None:
            made[f"{key}={given[key]!r}"] = said
    return made


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILY)
def test_every_key_is_honoured_or_refused(kind: str, tmp_path: Path) -> None:
    assert wrongs(kind, tmp_path) == {}


def test_every_family_has_a_tiny_configuration() -> None:
    assert set(FAMILY) == set(FAMILIES)
