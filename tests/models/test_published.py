"""Configurations as published models have them: computed as in transformers, or refused by name.

The fields are those of the models' `config.json` as version 4 of transformers wrote them: those of
SmolLM3, Gemma 3, EmbeddingGemma, Granite, Phi-3.5 and Phi-4 mini looked up, the others from memory.
The sizes are made tiny, and the factors of `longrope`, one for each pair of dimensions, are the
first of every twelve or, where they are short or Phi-3's, like them. The weights are random.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from asked_models import answer, batch_of
from perturbed import perturb
from safetensors.numpy import save_file

from jcl import models

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096,
    "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "tie_word_embeddings": False, "torch_dtype": "float16", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
LLAMA3 = {
    **LLAMA, "bos_token_id": 128000, "eos_token_id": 128001, "intermediate_size": 14336,
    "max_position_embeddings": 8192, "num_key_value_heads": 8, "rope_theta": 500000.0,
    "torch_dtype": "bfloat16", "vocab_size": 128256,
}  # fmt: skip
LLAMA31 = {
    **LLAMA3, "max_position_embeddings": 131072, "mlp_bias": False,
    "rope_scaling": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    },
}  # fmt: skip
SMOLLM2 = {
    **LLAMA, "bos_token_id": 0, "eos_token_id": 0, "hidden_size": 576, "initializer_range": 0.041,
    "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192,
    "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
    "rope_interleaved": False, "rope_theta": 100000, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "vocab_size": 49152,
}  # fmt: skip
MISTRAL = {
    "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
    "vocab_size": 32000,
}  # fmt: skip
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
    "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24,
    "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "use_cache": True, "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072,
    "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
    "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
QWEN3_MOE = {
    **QWEN3, "architectures": ["Qwen3MoeForCausalLM"], "decoder_sparse_step": 1,
    "hidden_size": 2048, "intermediate_size": 6144, "max_window_layers": 48, "mlp_only_layers": [],
    "model_type": "qwen3_moe", "moe_intermediate_size": 768, "norm_topk_prob": True,
    "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
    "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": False,
    "router_aux_loss_coef": 0.001, "tie_word_embeddings": False,
}  # fmt: skip
GEMMA = {
    "architectures": ["GemmaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 2, "eos_token_id": 1, "head_dim": 256, "hidden_act": "gelu",
    "hidden_activation": None, "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 16384, "max_position_embeddings": 8192, "model_type": "gemma",
    "num_attention_heads": 8, "num_hidden_layers": 18, "num_key_value_heads": 1, "pad_token_id": 0,
    "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 10000.0, "torch_dtype": "bfloat16",
    "use_cache": True, "vocab_size": 256000,
}  # fmt: skip
GEMMA2 = {
    **GEMMA, "architectures": ["Gemma2ForCausalLM"], "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid", "final_logit_softcapping": 30.0,
    "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304, "intermediate_size": 9216, "model_type": "gemma2",
    "num_hidden_layers": 26, "num_key_value_heads": 4, "query_pre_attn_scalar": 256,
    "sliding_window": 4096, "torch_dtype": "float32",
}  # fmt: skip
GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": None, "bos_token_id": 2, "cache_implementation": "hybrid",
    "eos_token_id": [1, 106], "final_logit_softcapping": None, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "initializer_range": 0.02,
    "intermediate_size": 6912, "max_position_embeddings": 32768, "model_type": "gemma3_text",
    "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1, "pad_token_id": 0,
    "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512,
    "sliding_window_pattern": 6, "torch_dtype": "bfloat16", "use_cache": True,
    "vocab_size": 262144,
}  # fmt: skip
SIX = [*["sliding_attention"] * 5, "full_attention"]
GEMMA3_270M = {
    **{k: v for k, v in GEMMA3.items() if k != "sliding_window_pattern"},
    "_sliding_window_pattern": 6, "eos_token_id": 1, "hidden_size": 640, "intermediate_size": 2048,
    "layer_types": 3 * SIX, "num_hidden_layers": 18, "rope_local_base_freq": 10000.0,
    "rope_theta": 1000000.0, "use_bidirectional_attention": False,
}  # fmt: skip
OLMO2 = {
    "architectures": ["Olmo2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "eos_token_id": 100257, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "olmo2",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
    "pad_token_id": 100277, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 500000,
    "tie_word_embeddings": False, "torch_dtype": "float32", "use_cache": True,
    "vocab_size": 100352,
}  # fmt: skip
OLMO3 = {
    **OLMO2, "architectures": ["Olmo3ForCausalLM"], "max_position_embeddings": 65536,
    "layer_types": 8 * [*["sliding_attention"] * 3, "full_attention"], "model_type": "olmo3",
    "rope_scaling": {
        "attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0, "factor": 8.0,
        "original_max_position_embeddings": 8192, "rope_type": "yarn",
    },
    "sliding_window": 4096, "torch_dtype": "bfloat16", "vocab_size": 100278,
}  # fmt: skip
PHI3 = {
    "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "bos_token_id": 1,
    "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072,
    "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 4096,
    "model_type": "phi3", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 32, "original_max_position_embeddings": 4096, "pad_token_id": 32000,
    "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0,
    "sliding_window": 2047, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "use_cache": True, "vocab_size": 32064,
}  # fmt: skip
PHI35_FACTORS = [1.0800000429153442, 7.700000286102295, 50.340003967285156, 62.71000289916992]
"""The first of every twelve of Phi-3.5's 48."""
PHI4_MINI = {
    **PHI3, "bos_token_id": 199999, "eos_token_id": 199999, "full_attn_mod": 1,
    "interpolate_factor": 1, "lm_head_bias": False, "max_position_embeddings": 131072,
    "mlp_bias": False, "num_attention_heads": 24, "num_key_value_heads": 8,
    "pad_token_id": 199999, "partial_rotary_factor": 0.75,
    "rope_scaling": {
        "long_factor": [1, 11.70738129, 32.66], "short_factor": [1.0, 1.0, 1.0], "type": "longrope",
    },
    "sliding_window": 262144, "tie_word_embeddings": True, "vocab_size": 200064,
}  # fmt: skip
GRANITE = {
    "architectures": ["GraniteForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attention_multiplier": 0.0078125, "bos_token_id": 0, "embedding_multiplier": 12.0,
    "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 12800, "logits_scaling": 16.0, "max_position_embeddings": 131072,
    "mlp_bias": False, "model_type": "granite", "num_attention_heads": 32,
    "num_hidden_layers": 40, "num_key_value_heads": 8, "pad_token_id": 0,
    "residual_multiplier": 0.22, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "rope_theta": 10000000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "use_cache": True, "vocab_size": 49159,
}  # fmt: skip
STABLELM = {
    "architectures": ["StableLmForCausalLM"], "bos_token_id": 100257, "eos_token_id": 100257,
    "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 5632, "layer_norm_eps": 1e-05, "max_position_embeddings": 4096,
    "model_type": "stablelm", "num_attention_heads": 32, "num_hidden_layers": 24,
    "num_key_value_heads": 32, "partial_rotary_factor": 0.25, "rope_theta": 10000,
    "tie_word_embeddings": False, "torch_dtype": "float16", "use_cache": True,
    "use_qkv_bias": True, "vocab_size": 100352,
}  # fmt: skip
COHERE2 = {
    "architectures": ["Cohere2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 5, "cache_implementation": "hybrid", "eos_token_id": 255001, "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "layer_norm_eps": 1e-05, "layer_switch": 4, "logit_scale": 0.25,
    "max_position_embeddings": 132096, "model_type": "cohere2", "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8,
    "order_of_interleaved_layers": "local_attn_first", "pad_token_id": 0,
    "position_embedding_type": "rope_gptj", "rope_scaling": None, "rope_theta": 50000,
    "rotary_pct": 1.0, "sliding_window": 4096, "sliding_window_pattern": 4,
    "torch_dtype": "bfloat16", "use_cache": True, "use_embedding_sharing": True,
    "use_gated_activation": True, "use_parallel_block": True, "use_parallel_embedding": True,
    "vocab_size": 256000,
}  # fmt: skip
GPT2 = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
    "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12,
    "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": None,
    "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index",
    "summary_use_proj": True, "vocab_size": 50257,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}  # fmt: skip
PYTHIA = {
    "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0,
    "hidden_act": "gelu", "hidden_size": 512, "initializer_range": 0.02,
    "intermediate_size": 2048, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
    "model_type": "gpt_neox", "num_attention_heads": 8, "num_hidden_layers": 6,
    "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False,
    "torch_dtype": "float16", "use_cache": True, "use_parallel_residual": True,
    "vocab_size": 50304,
}  # fmt: skip
BERT = {
    "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1,
    "gradient_checkpointing": False, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
    "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
    "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
    "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0,
    "position_embedding_type": "absolute", "transformers_version": "4.6.0.dev0",
    "type_vocab_size": 2, "use_cache": True, "vocab_size": 30522,
}  # fmt: skip
MBERT = {
    **BERT, "directionality": "bidi", "pooler_fc_size": 768, "pooler_num_attention_heads": 12,
    "pooler_num_fc_layers": 3, "pooler_size_per_head": 128, "pooler_type": "first_token_transform",
    "vocab_size": 119547,
}  # fmt: skip
ROBERTA = {
    "architectures": ["RobertaForMaskedLM"], "attention_probs_dropout_prob": 0.1,
    "bos_token_id": 0, "eos_token_id": 2, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
    "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
    "layer_norm_eps": 1e-05, "max_position_embeddings": 514, "model_type": "roberta",
    "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1, "type_vocab_size": 1,
    "vocab_size": 50265,
}  # fmt: skip
T5 = {
    "architectures": ["T5ForConditionalGeneration"], "d_ff": 2048, "d_kv": 64, "d_model": 512,
    "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "initializer_factor": 1.0,
    "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "model_type": "t5", "n_positions": 512,
    "num_heads": 8, "num_layers": 6, "output_past": True, "pad_token_id": 0,
    "relative_attention_num_buckets": 32, "vocab_size": 32128,
    "task_specific_params": {"summarization": {"early_stopping": True, "num_beams": 4}},
}  # fmt: skip
T5_11 = {
    **T5, "d_ff": 1024, "feed_forward_proj": "gated-gelu", "num_decoder_layers": 8, "num_heads": 6,
    "num_layers": 8, "tie_word_embeddings": False, "use_cache": True,
}  # fmt: skip
CLIP = {
    "architectures": ["CLIPModel"], "initializer_factor": 1.0, "logit_scale_init_value": 2.6592,
    "model_type": "clip", "projection_dim": 512,
    "text_config": {
        "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2, "hidden_act": "quick_gelu",
        "hidden_size": 512, "intermediate_size": 2048, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": 8,
        "num_hidden_layers": 12, "vocab_size": 49408,
    },
    "vision_config": {
        "add_cross_attention": False, "attention_dropout": 0.0, "chunk_size_feed_forward": 0,
        "dropout": 0.0, "hidden_act": "quick_gelu", "hidden_size": 768, "image_size": 224,
        "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 3072,
        "is_decoder": False, "is_encoder_decoder": False, "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model", "num_attention_heads": 12, "num_hidden_layers": 12,
        "patch_size": 32, "projection_dim": 512, "temperature": 1.0, "top_k": 50,
    },
}  # fmt: skip
SIGLIP = {
    "architectures": ["SiglipModel"], "initializer_factor": 1.0, "model_type": "siglip",
    "text_config": {
        "hidden_size": 768, "intermediate_size": 3072, "model_type": "siglip_text_model",
        "num_attention_heads": 12, "num_hidden_layers": 12, "vocab_size": 32000,
    },
    "torch_dtype": "float32",
    "vision_config": {
        "hidden_size": 768, "image_size": 224, "intermediate_size": 3072,
        "model_type": "siglip_vision_model", "num_attention_heads": 12, "num_hidden_layers": 12,
        "patch_size": 16,
    },
}  # fmt: skip
GEMMA3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999,
    "eoi_token_index": 256000, "eos_token_id": [1, 106], "image_token_index": 262144,
    "initializer_range": 0.02, "mm_tokens_per_image": 256, "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
        "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
        # the file leaves these to the defaults, which are too large here
        "head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262208,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {
        "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304,
        "model_type": "siglip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 27,
        "patch_size": 14, "vision_use_head": False,
    },
}  # fmt: skip

LOADED: dict[str, dict[str, Any]] = {
    "Llama-2-7b": {**LLAMA, "max_length": 4096, "pad_token_id": 0},
    "vicuna-7b-v1.5": {**LLAMA, "pad_token_id": 0},
    "TinyLlama-1.1B": {
        **LLAMA, "hidden_size": 2048, "intermediate_size": 5632, "max_position_embeddings": 2048,
        "num_hidden_layers": 22, "num_key_value_heads": 4, "rope_theta": 10000.0,
    },
    "Yi-6B": {
        **LLAMA, "num_key_value_heads": 4, "rope_theta": 5000000.0, "vocab_size": 64000,
    },
    "Meta-Llama-3-8B": LLAMA3,
    "Llama-3.1-8B-Instruct": {**LLAMA31, "eos_token_id": [128001, 128008, 128009]},
    "Llama-3.2-1B": {
        **LLAMA31, "head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "tie_word_embeddings": True,
        "rope_scaling": {**LLAMA31["rope_scaling"], "factor": 32.0},
    },
    "DeepSeek-R1-Distill-Llama-8B": {**LLAMA31, "torch_dtype": "bfloat16"},
    "SmolLM2-135M": SMOLLM2,
    "SmolLM2-1.7B": {
        **SMOLLM2, "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
        "num_hidden_layers": 24, "num_key_value_heads": 32, "rope_theta": 130000,
        "transformers.js_config": {"dtype": "q4"},
    },
    "Falcon3-7B": {
        **LLAMA, "bos_token_id": 11, "eos_token_id": 11, "head_dim": 256, "hidden_size": 3072,
        "num_attention_heads": 12, "num_key_value_heads": 4, "rope_theta": 1000042,
    },
    "SmolLM3-3B": {
        **LLAMA, "architectures": ["SmolLM3ForCausalLM"], "hidden_size": 2048,
        "layer_types": 36 * ["full_attention"], "max_position_embeddings": 65536,
        "max_window_layers": 28, "mlp_bias": False, "model_type": "smollm3",
        "no_rope_layer_interval": 4, "no_rope_layers": 9 * [1, 1, 1, 0], "num_attention_heads": 16,
        "num_hidden_layers": 36, "num_key_value_heads": 4, "pad_token_id": 128004,
        "pretraining_tp": 2, "rms_norm_eps": 1e-06, "rope_theta": 5000000.0,
        "sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False,
    },
    "Mistral-7B-v0.1": MISTRAL,
    "Mistral-7B-v0.3": {
        **MISTRAL, "attention_dropout": 0.0, "rope_theta": 1000000.0, "sliding_window": None,
        "vocab_size": 32768,
    },
    "Codestral-22B": {
        **MISTRAL, "attention_dropout": 0.0, "head_dim": 128, "hidden_size": 6144,
        "num_attention_heads": 48, "num_hidden_layers": 56, "rope_theta": 1000000.0,
        "sliding_window": None,
    },
    "Mistral-Nemo-12B": {
        **MISTRAL, "head_dim": 128, "hidden_size": 5120, "rope_theta": 1000000.0,
        "sliding_window": None, "vocab_size": 131072,
    },
    "Ministral-8B": {
        **MISTRAL, "attention_dropout": 0.0, "head_dim": 128, "rope_theta": 100000000.0,
        "sliding_window": 32768, "vocab_size": 131072,
    },
    "Mixtral-8x7B": {
        **MISTRAL, "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0,
        "model_type": "mixtral", "num_experts_per_tok": 2, "num_local_experts": 8,
        "output_router_logits": False, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02,
        "sliding_window": None,
    },
    "Qwen2-0.5B": QWEN2,
    "Qwen2.5-7B-Instruct": {
        **QWEN2, "hidden_size": 3584, "intermediate_size": 18944, "max_window_layers": 28,
        "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
        "sliding_window": 131072, "tie_word_embeddings": False, "vocab_size": 152064,
    },
    "DeepSeek-R1-Distill-Qwen-1.5B": {
        **QWEN2, "eos_token_id": 151643, "hidden_size": 1536, "max_position_embeddings": 131072,
        "max_window_layers": 21, "num_attention_heads": 12, "num_hidden_layers": 28,
        "rope_theta": 10000, "sliding_window": 4096, "tie_word_embeddings": False,
    },
    "Qwen3-0.6B": QWEN3,
    "Qwen3-4B-128k": {
        **QWEN3, "hidden_size": 2560, "max_position_embeddings": 131072,
        "rope_scaling": {
            "factor": 4.0, "original_max_position_embeddings": 32768, "rope_type": "yarn",
        },
    },
    "Qwen3-30B-A3B": QWEN3_MOE,
    "gemma-2b": GEMMA,
    "gemma-7b": {
        **GEMMA, "hidden_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 16,
    },
    "gemma-2-2b": GEMMA2,
    "gemma-2-27b": {
        **GEMMA2, "head_dim": 128, "hidden_size": 4608, "num_attention_heads": 32,
        "num_key_value_heads": 16, "query_pre_attn_scalar": 144, "_attn_implementation": "eager",
    },
    "gemma-3-1b": GEMMA3,
    "gemma-3-270m": GEMMA3_270M,
    "gemma-3-4b": GEMMA3_4B,
    "embeddinggemma-300m": {
        **GEMMA3_270M, "architectures": ["Gemma3TextModel"], "hidden_size": 768,
        "intermediate_size": 1152, "layer_types": 4 * SIX, "max_position_embeddings": 2048,
        "num_attention_heads": 3, "num_hidden_layers": 24, "use_bidirectional_attention": True,
    },
    "OLMo-2-1124-7B": OLMO2,
    "OLMo-3-7B": OLMO3,
    "OLMoE-1B-7B": {
        **OLMO2, "architectures": ["OlmoeForCausalLM"], "clip_qkv": None, "hidden_size": 2048,
        "intermediate_size": 1024, "model_type": "olmoe", "norm_topk_prob": False,
        "num_attention_heads": 16, "num_experts": 64, "num_experts_per_tok": 8,
        "num_key_value_heads": 16, "output_router_logits": False, "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0, "router_aux_loss_coef": 0.01, "vocab_size": 50304,
    },
    "Phi-3-mini-4k": PHI3,
    "Phi-3.5-mini": {
        **PHI3, "max_position_embeddings": 131072, "sliding_window": 262144,
        "rope_scaling": {
            "long_factor": PHI35_FACTORS, "short_factor": [1.0, 1.01, 1.1, 2.8],
            "type": "longrope",
        },
    },
    "Phi-3-mini-128k": {
        **PHI3, "max_position_embeddings": 131072, "sliding_window": 262144,
        "rope_scaling": {
            "long_factor": PHI35_FACTORS, "short_factor": [1.05, 1.1, 1.5, 2.8],
            "type": "longrope",
        },
    },
    "Phi-4-mini": PHI4_MINI,
    "granite-3.1-8b": GRANITE,
    "stablelm-2-1_6b": STABLELM,
    "stablelm-3b-4e1t": {
        **STABLELM, "hidden_size": 2560, "num_hidden_layers": 32, "use_qkv_bias": False,
        "vocab_size": 50304,
    },
    "c4ai-command-r7b-12-2024": COHERE2,
    "gpt2": GPT2,
    "gpt2-xl": {**GPT2, "n_embd": 1600, "n_head": 25, "n_layer": 48, "output_past": True},
    "distilgpt2": {**GPT2, "_num_labels": 1, "n_layer": 6, "id2label": {"0": "LABEL_0"}},
    "DialoGPT-medium": {
        **GPT2, "n_embd": 1024, "n_head": 16, "n_layer": 24,
        "task_specific_params": {"conversational": {"max_length": 1000}},
    },
    "pythia-70m": PYTHIA,
    "RedPajama-INCITE-3B": {
        **PYTHIA, "hidden_size": 2560, "intermediate_size": 10240, "num_attention_heads": 32,
        "num_hidden_layers": 32, "rotary_pct": 1.0, "use_parallel_residual": False,
    },
    "bert-base-uncased": BERT,
    "bert-base-cased": {**BERT, "vocab_size": 28996},
    "bert-base-multilingual-cased": MBERT,
    "all-MiniLM-L6-v2": {
        **BERT, "architectures": ["BertModel"], "hidden_size": 384, "intermediate_size": 1536,
        "num_hidden_layers": 6, "transformers_version": "4.8.2",
    },
    "roberta-base": ROBERTA,
    "distilroberta-base": {**ROBERTA, "num_hidden_layers": 6},
    "t5-small": T5,
    "t5-v1_1-small": T5_11,
    "flan-t5-small": {**T5_11, "architectures": ["T5ForConditionalGeneration"], "n_positions": 512},
    "flan-ul2": {
        **T5_11, "d_ff": 16384, "d_kv": 256, "d_model": 4096, "dropout_rate": 0.0,
        "feed_forward_proj": "gated-silu", "num_decoder_layers": 32, "num_heads": 16,
        "num_layers": 32, "bos_token_id": 0,
    },
    "clip-vit-base-patch32": CLIP,
    "clip-vit-large-patch14": {
        **CLIP, "projection_dim": 768,
        "vision_config": {
            **CLIP["vision_config"], "hidden_size": 1024, "intermediate_size": 4096,
            "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14,
            "projection_dim": 768,
        },
    },
    "siglip-base-patch16-224": SIGLIP,
}  # fmt: skip
"""What is loaded, by the name that it is published under."""

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "falcon-7b": ({"model_type": "falcon", "multi_query": True, "parallel_attn": True}, "falcon"),
    "mpt-7b": ({"model_type": "mpt", "attn_config": {"alibi": True}, "d_model": 4096}, "mpt"),
    "bloom-560m": ({"model_type": "bloom", "n_layer": 24, "hidden_size": 1024}, "bloom"),
    "opt-125m": ({"model_type": "opt", "do_layer_norm_before": True, "ffn_dim": 3072}, "opt"),
    "gpt-j-6b": ({"model_type": "gptj", "rotary_dim": 64, "n_embd": 4096}, "gptj"),
    "phi-2": ({"model_type": "phi", "partial_rotary_factor": 0.4}, "phi"),
    "starcoder2-3b": ({"model_type": "starcoder2", "use_bias": True}, "starcoder2"),
    "command-r-v01": ({"model_type": "cohere", "logit_scale": 0.0625}, "cohere"),
    "Qwen1.5-MoE-A2.7B": ({"model_type": "qwen2_moe", "num_experts": 60}, "qwen2_moe"),
    "DeepSeek-V3": (
        {"model_type": "deepseek_v3", "kv_lora_rank": 512, "n_routed_experts": 256}, "deepseek_v3",
    ),
    "mamba-130m-hf": ({"model_type": "mamba", "state_size": 16, "hidden_size": 768}, "mamba"),
    "Llama-4-Scout": ({"model_type": "llama4", "text_config": {"num_local_experts": 16}}, "llama4"),
    "Llama-3.2-11B-Vision": ({"model_type": "mllama", "text_config": {}}, "mllama"),
    "llava-1.5-7b-hf": ({"model_type": "llava", "text_config": {}}, "llava"),
    "gemma-3n-E2B": ({"model_type": "gemma3n", "text_config": {"laurel_rank": 64}}, "gemma3n"),
    "gpt-oss-20b": (
        {"model_type": "gpt_oss", "num_local_experts": 32, "sliding_window": 128}, "gpt_oss",
    ),
    "xlm-roberta-base": ({**ROBERTA, "model_type": "xlm-roberta"}, "xlm-roberta"),
    "distilbert-base": ({"model_type": "distilbert", "dim": 768, "n_layers": 6}, "distilbert"),
    "deberta-v3-base": ({"model_type": "deberta-v2", "relative_attention": True}, "deberta-v2"),
    "mt5-small": ({**T5_11, "model_type": "mt5"}, "mt5"),
    "bart-base": ({"model_type": "bart", "d_model": 768}, "bart"),
    "stablelm-2-12b": (
        {**STABLELM, "qk_layernorm": True, "use_parallel_residual": True}, "qk_layernorm",
    ),
    "Phi-3-mini-128k of April 2024": (  # which transformers 5 refuses for the same reason
        {**PHI3, "rope_scaling": {"type": "su", "long_factor": [1.0], "short_factor": [1.0]}},
        "original_max_position_embeddings",
    ),
    "bert-relative": (
        {**BERT, "position_embedding_type": "relative_key_query"}, "position_embedding_type",
    ),
}  # fmt: skip
"""What isn't, and what the sentence that says so must name: a type, or else a key."""

SIZES = {
    "hidden_size": 32, "n_embd": 32, "d_model": 32, "intermediate_size": 48, "d_ff": 48,
    "moe_intermediate_size": 24, "vocab_size": 61, "projection_dim": 16, "image_size": 8,
    "patch_size": 4, "sliding_window": 5, "mm_tokens_per_image": 4,
}  # fmt: skip
"""What each width becomes where a configuration has it."""
DEPTHS = {"gemma3_text": 6, "cohere2": 4, "olmo3": 4, "smollm3": 4}
"""How many layers it takes to have each kind; 2 elsewhere."""


def tiny(fields: dict[str, Any]) -> dict[str, Any]:
    """A published configuration with other sizes and ids, in the same proportions."""
    small = {k: SIZES[k] if k in SIZES and v is not None else v for k, v in fields.items()}
    for key in {"num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers"} & small.keys():
        small[key] = DEPTHS.get(fields["model_type"], 2)
    for key in {"layer_types", "no_rope_layers"} & small.keys():
        small[key] = small[key][: small["num_hidden_layers"]]
    count = next((k for k in ("num_attention_heads", "n_head", "num_heads") if k in small), None)
    if count is not None:
        width = next(fields[k] for k in ("hidden_size", "n_embd", "d_model") if k in fields)
        small[count] = 4
        if "num_key_value_heads" in small:
            small["num_key_value_heads"] = max(1, 4 * small["num_key_value_heads"] // fields[count])
        for head in {"head_dim", "d_kv"} & small.keys():
            small[head] = 8 if fields[head] * fields[count] == width else 16
    for key in {"num_experts", "num_local_experts"} & small.keys():
        small |= {key: 4, "num_experts_per_tok": 2}
    for key in {"bos_token_id", "eos_token_id", "pad_token_id", "image_token_index"} & small.keys():
        ids = small[key]
        small[key] = [min(i, 60) for i in ids] if isinstance(ids, list) else min(ids, 60)
    for part in {"text_config", "vision_config"} & small.keys():
        small[part] = tiny(small[part])
    return small


def draw(fields: dict[str, Any], folder: Path) -> tuple[Any, Any]:
    """A random model in torch, stored in a folder beside its configuration as published."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    torch.manual_seed(0)
    made = getattr(transformers, fields["architectures"][0])
    config._attn_implementation = "eager"
    model = perturb(made(config).float()).eval()
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(fields))
    return model, config


def compared(model: Any, kind: str, loaded: models.Model) -> tuple[np.ndarray, np.ndarray]:
    """What both give for the same batch."""
    if kind in ("clip", "siglip"):  # of both towers, that of images
        model, kind = model.vision_model, f"{kind}_vision_model"
    batch = batch_of(kind, model.config)
    theirs = answer(kind, model, batch)
    if kind == "gemma3_text" and theirs.shape[-1] != model.config.vocab_size:
        table = model.get_input_embeddings().weight.detach()
        theirs = theirs @ table.numpy().T  # our decoder has its tied head
    with jax.disable_jit():  # an operation is compiled once for all that have it
        ours = loaded.apply(loaded.params, {k: jnp.asarray(v) for k, v in batch.items()})
    return np.asarray(ours), theirs


@pytest.mark.parametrize("name", LOADED)
def test_published_configuration_computes_as_transformers_does(name: str, tmp_path: Path) -> None:
    fields = tiny(LOADED[name])
    model, _ = draw(fields, tmp_path / "model")
    ours, theirs = compared(model, fields["model_type"], models.load(tmp_path / "model"))
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("name", REFUSED)
def test_other_published_configuration_is_refused_by_name(name: str, tmp_path: Path) -> None:
    fields, named = REFUSED[name]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    save_file({"some.weight": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    for read in (models.load, models.shapes):
        with pytest.raises(ValueError, match=rf"\b{named}\b") as caught:
            read(tmp_path)
        said = str(caught.value)
        assert "\n" not in said and ". " not in said


def test_enough_are_published() -> None:
    assert len(LOADED) >= 40
    assert len(REFUSED) >= 10
