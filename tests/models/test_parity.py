"""Every decoder family against transformers in torch, on the same tiny random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from perturbed import perturb

from jcl import losses, models
from jcl.models import decoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
BASE = {"rope_type": "default", "rope_theta": 10_000.0}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 4.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0], "original_max_position_embeddings": 16,
}  # fmt: skip
MIX = {"num_experts": 4, "num_experts_per_tok": 2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama3": ("llama", {"rope_parameters": LLAMA3, "head_dim": 16}),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "llama-linear": (
        "llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "llama-dynamic": (
        "llama",
        {
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
            "max_position_embeddings": 16,
        },
    ),
    "mistral": ("mistral", {"sliding_window": 5}),
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma2": (
        "gemma2", {"head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 24},
    ),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 24,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": BASE,
            },
        },
    ),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1], "attention_bias": True}),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 2.0, "logits_scaling": 3.0, "residual_multiplier": 0.5,
            "attention_multiplier": 0.4,
        },
    ),
    "stablelm": ("stablelm", {"use_qkv_bias": True}),
    "stablelm-parallel": ("stablelm", {"use_parallel_residual": True}),
    "gemma": ("gemma", {"head_dim": 16}),
    "cohere2": (
        "cohere2",
        {
            "sliding_window": 5, "attention_bias": True,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "olmo2": ("olmo2", {}),
    "olmo3": (
        "olmo3",
        {
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {"full_attention": YARN, "sliding_attention": BASE},
        },
    ),
    "phi3": ("phi3", {"sliding_window": 7}),
    "phi3-long": ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 16}),
    "gpt2": ("gpt2", {}),
    "gpt_neox": (
        "gpt_neox", {"rope_parameters": {**BASE, "partial_rotary_factor": 0.5}},
    ),
    "gpt_neox-serial": ("gpt_neox", {"use_parallel_residual": False}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmoe": ("olmoe", {**MIX, "clip_qkv": 0.5}),
    "qwen3_moe": (
        "qwen3_moe", {**MIX, "head_dim": 16, "moe_intermediate_size": 24, "norm_topk_prob": True},
    ),
}  # fmt: skip
LENGTH = 21


def oracle(case: str) -> Any:
    """A tiny random model in torch, float32, with norms and biases that are not at their start."""
    kind, more = CASES[case]
    config = transformers.AutoConfig.for_model(kind, **SMALL | more)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return perturb(model).eval()


@pytest.fixture(scope="module", params=list(CASES))
def pair(request: Any, tmp_path_factory: Any) -> tuple[Any, models.Model, Path]:
    reference = oracle(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    reference.save_pretrained(folder)
    return reference, models.load(folder), folder


def tokens(rows: int = 2, length: int = LENGTH, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SMALL["vocab_size"], (rows, length))


def theirs(reference: Any, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return reference(torch.tensor(ids)).logits.numpy()


def close(ours: Any, wanted: np.ndarray, relative: float) -> None:
    assert np.abs(np.asarray(ours) - wanted).max() <= relative * np.abs(wanted).max()


def test_logits(pair: Any) -> None:
    reference, model, _ = pair
    ids = tokens()
    ours = jax.jit(model.apply)(model.params, {"tokens": jnp.asarray(ids)})
    close(ours, theirs(reference, ids), 1e-5)


@pytest.mark.quick
def test_padded_and_packed_rows_are_the_documents_alone(pair: Any) -> None:
    reference, model, _ = pair
    if "longrope" in str(model.config.rope) or "dynamic" in str(model.config.rope):
        pytest.skip("its frequencies depend on the row's length, not on a document's")
    a, b = tokens(1, 12), tokens(1, 7, seed=1)
    row = np.concatenate([a, b, np.zeros((1, 2), int)], axis=1)
    segments = np.repeat([[1, 2, 0]], [12, 7, 2], axis=1)
    batch = {"tokens": jnp.asarray(row), "segments": jnp.asarray(segments, jnp.int32)}
    ours = np.asarray(jax.jit(model.apply)(model.params, batch))
    close(ours[:, :12], theirs(reference, a), 1e-5)
    close(ours[:, 12:19], theirs(reference, b), 1e-5)
    assert np.isfinite(ours).all()


def test_gradients(pair: Any, tmp_path: Path) -> None:
    reference, model, _ = pair
    ids = tokens()
    reference.zero_grad()
    out = reference(torch.tensor(ids), labels=torch.tensor(ids))
    # what a mixture adds to balance its experts is no part of the likelihood
    logits = out.logits[:, :-1].reshape(-1, SMALL["vocab_size"])
    torch.nn.functional.cross_entropy(logits, torch.tensor(ids[:, 1:]).reshape(-1)).backward()
    with torch.no_grad():  # the gradient is read back as a model's weights are
        grads = transformers.AutoModelForCausalLM.from_config(reference.config)
        for p, q in zip(grads.parameters(), reference.parameters(), strict=True):
            p.copy_(q.grad)
    grads.save_pretrained(tmp_path)
    wanted = models.load(tmp_path).params
    batch = {"tokens": jnp.asarray(ids), "weight": jnp.ones(2)}
    ours = jax.jit(jax.grad(lambda p: losses.fused_next_token()(model.apply, p, batch)[0]))(
        model.params
    )
    largest = max(float(jnp.abs(w).max()) for w in jax.tree.leaves(wanted))
    for (path, g), w in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(wanted), strict=True
    ):
        assert float(jnp.abs(g - w).max()) <= 1e-4 * largest, path
    reference.zero_grad()


def test_a_cache_gives_the_same_logits_piece_by_piece(pair: Any) -> None:
    reference, model, _ = pair
    if "longrope" in str(model.config.rope) or "dynamic" in str(model.config.rope):
        pytest.skip("its frequencies change as the context grows")
    ids = tokens()
    wanted = theirs(reference, ids)
    cache = decoder.empty_cache(model.config, 2, LENGTH + 3)
    # two pads on the left of the second row only
    short = np.concatenate([[[0, 0]], ids[1:, :-2]], axis=1)
    row = np.concatenate([ids[:1], short])
    segments = np.ones_like(row)
    segments[1, :2] = 0
    first = {
        "tokens": jnp.asarray(row[:, :15]),
        "segments": jnp.asarray(segments[:, :15], jnp.int32),
        "prefill": cache,
    }
    call = jax.jit(model.apply)
    logits, cache = call(model.params, first)
    close(logits[0], wanted[0, 14], 1e-5)
    close(logits[1], wanted[1, 12], 1e-5)
    for i in range(15, LENGTH):
        batch = {"tokens": jnp.asarray(row[:, i : i + 1]), "cache": cache}
        logits, cache = call(model.params, batch)
        close(logits[0], wanted[0, i], 1e-5)
        close(logits[1], wanted[1, i - 2], 1e-5)


def test_saved_again_transformers_gives_the_same_logits(pair: Any, tmp_path: Path) -> None:
    reference, model, _ = pair
    out = models.save(model, model.params, tmp_path / "saved", shard_gb=20e-6)
    again = transformers.AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager")
    ids = tokens()
    np.testing.assert_array_equal(theirs(again.eval(), ids), theirs(reference, ids))
    back = models.load(out)
    assert back.config == model.config
    jax.tree.map(np.testing.assert_array_equal, back.params, model.params)
