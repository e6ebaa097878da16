"""What people's files, labels and optimizers must give: issue 15, by its numbers.

A case that is marked gives something wrong today, without a word or by the wrong error. Its mark
fails as soon as that is mended, and then goes. Oracles are transformers in torch on the same
files, optax by itself, and what the files say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import data, losses, methods, models
from jcl.measures.evaluation import accuracy, bits_per_byte, evaluator
from jcl.models import decoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
}
IDS = np.arange(5, 45)[None]


def wrong(number: str, reason: str, raises: type[BaseException] = AssertionError) -> Any:
    """The mark of what goes wrong today in the way that `raises` says, and in no other."""
    return pytest.mark.xfail(strict=True, raises=raises, reason=f"issue 15, {number}: {reason}")


def theirs(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.tensor(IDS)).logits.float().numpy()


def read_by_transformers(folder: Path) -> np.ndarray:
    return theirs(transformers.AutoModelForCausalLM.from_pretrained(folder))


def ours(path: Path, **options: Any) -> np.ndarray:
    model = models.load(path, **options)
    return np.asarray(model.apply(model.params, {"tokens": jnp.asarray(IDS)}), np.float32)


def off(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference of logits, as a share of the largest logit."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def refused(call: Callable[[], Any], words: str) -> bool:
    """Whether a call ends with a ValueError that says these words; another error is raised."""
    try:
        call()
    except ValueError as error:
        if re.search(words, str(error)):
            return True
        raise
    return False


def same_or_refused(path: Path, wanted: np.ndarray, words: str) -> bool:
    """Whether a file gives the logits that are wanted, or isn't loaded for the reason given."""
    return refused(lambda: models.load(path), words) or off(ours(path), wanted) < 1e-5


def llama(seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY | options))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# 01, 02: options of a configuration


def test_a_gemma_3_that_reads_both_ways_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.Gemma3TextConfig(
        **TINY, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8,
        use_bidirectional_attention=True,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.save_pretrained(tmp_path)
    assert off(ours(tmp_path), theirs(model)) < 1e-5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale_attn_by_inverse_layer_idx", False),  # as it is by default
        ("scale_attn_by_inverse_layer_idx", True),
        ("scale_attn_weights", False),
    ],
)
def test_how_gpt2_scales_its_attention(name: str, value: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=64, initializer_range=0.3,
        bos_token_id=None, eos_token_id=None, **{name: value},
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel._from_config(config, attn_implementation="eager")
    model.save_pretrained(tmp_path)
    assert same_or_refused(tmp_path, theirs(model), name)


def test_gemmas_activation_is_hidden_activation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        **TINY, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8,
        hidden_activation="silu", hidden_act="gelu_pytorch_tanh",
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.save_pretrained(tmp_path)
    assert same_or_refused(tmp_path, theirs(model), "hidden_act")


# 03: GGUF

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(model: Any, path: Path, extra: Callable[[Any], None] = lambda writer: None) -> Path:
    """A Llama of torch as llama.cpp's convert_hf_to_gguf.py writes it, in float32."""
    gguf = pytest.importorskip("gguf")
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "ab", *(f"t{i}" for i in range(3, config.vocab_size))])
    writer.add_token_scores([0.0] * config.vocab_size)
    writer.add_token_types([1] * config.vocab_size)
    writer.add_token_merges(["a b"])
    for name, weight in model.state_dict().items():
        value = weight.numpy()
        if "q_proj" in name or "k_proj" in name:  # its rotary positions are interleaved
            halves = value.reshape(config.num_attention_heads, 2, -1, *value.shape[1:])
            value = halves.swapaxes(1, 2).reshape(value.shape)
        stem, end = name.rsplit(".", 1)
        layer = re.match(r"model\.layers\.(\d+)\.", stem)
        short = GGUF_NAMES[stem.removeprefix(layer[0]) if layer else stem]
        writer.add_tensor(f"{f'blk.{layer[1]}.' if layer else ''}{short}.{end}", value)
    extra(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rotary(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **more}}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="plain"),
        pytest.param(
            rotary(
                "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=16,
            ),
            id="rope_freqs",
        ),
        pytest.param(
            rotary("linear", factor=8.0),
            id="linear",
        ),
        pytest.param(
            rotary("yarn", factor=4.0, original_max_position_embeddings=16),
            id="yarn",
        ),
        pytest.param(
            {"attention_bias": True}, id="bias"
        ),
    ],
)  # fmt: skip
def test_gguf_gives_the_logits_of_what_was_written(options: Any, tmp_path: Path) -> None:
    model = llama(**options)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.normal_()
    scaling = model.config.rope_parameters

    def extra(writer: Any) -> None:
        import gguf

        if scaling["rope_type"] == "llama3":  # by what each frequency is divided
            plain = 10_000.0 ** (-np.arange(0, 8, 2) / 8)
            factors = plain / model.model.rotary_emb.inv_freq.numpy()
            writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
        elif scaling["rope_type"] != "default":
            writer.add_rope_scaling_type(gguf.RopeScalingType(scaling["rope_type"]))
            writer.add_rope_scaling_factor(scaling["factor"])
        if scaling["rope_type"] == "yarn":
            writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])

    path = write_gguf(model, tmp_path / "model.gguf", extra)
    assert off(ours(path), theirs(model)) < 1e-5


def test_a_tensor_of_gguf_that_is_not_known_is_refused(tmp_path: Path) -> None:
    sinks = np.ones(4, np.float32)
    path = write_gguf(
        llama(), tmp_path / "model.gguf", lambda w: w.add_tensor("blk.0.attn_sinks.weight", sinks)
    )
    assert refused(lambda: models.load(path), "attn_sinks")


# 04, 05, 06: safetensors


def quantise(folder: Path, kind: str) -> np.ndarray:
    """Stores the projections in 8 bits, as a library does; returns the logits of what is stored."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    stored: dict[str, Any] = {}
    meant: dict[str, Any] = {}
    for name, weight in load_file(path).items():
        stored[name] = meant[name] = weight
        if "proj" not in name:
            continue
        row = weight.abs().amax(1, keepdim=True)
        if kind == "fp8":
            scale, suffix = weight.abs().max().reshape(1) / 448, "_scale"
            stored[name] = (weight / scale).to(torch.float8_e4m3fn)
            stored[name + suffix], step = scale, scale
        elif kind == "bitsandbytes":
            step = row / 127
            stored[name] = (weight / step).round().to(torch.int8)
            stored[name.removesuffix("weight") + "SCB"] = row[:, 0].clone()
        else:
            step = row / 127
            stored[name] = (weight / step).round().to(torch.int8)
            stored[name + "_scale"] = step
        meant[name] = stored[name].float() * step
    save_file(stored, path, metadata={"format": "pt"})
    said = {
        "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_8bit": True},
        "int8": compressed("int-quantized", type="int", strategy="channel"),
        "fp8": compressed("float-quantized", type="float", strategy="tensor"),
    }
    if kind in said:
        change_config(folder, quantization_config=said[kind])
    model = llama(tie_word_embeddings=True)
    model.load_state_dict(meant, strict=False)
    return theirs(model)


def compressed(form: str, **weights: Any) -> dict[str, Any]:
    group = {
        "targets": ["Linear"],
        "weights": {"num_bits": 8, "symmetric": True, "dynamic": False, **weights},
        "input_activations": None,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


@pytest.mark.parametrize(
    "kind",
    [
        "int8",
        "bitsandbytes",
        "fp8",
    ],
)
def test_quantised_safetensors_are_read_dequantised(kind: str, tmp_path: Path) -> None:
    llama(tie_word_embeddings=True).save_pretrained(tmp_path)
    wanted = quantise(tmp_path, kind)
    assert off(ours(tmp_path, dtype=jnp.float32), wanted) < 1e-5


def test_a_scale_that_no_configuration_speaks_of_is_used_or_refused(tmp_path: Path) -> None:
    llama(tie_word_embeddings=True).save_pretrained(tmp_path)
    assert same_or_refused(tmp_path, quantise(tmp_path, "unsaid"), "weight_scale")


def test_a_stored_head_is_used_as_transformers_does(tmp_path: Path) -> None:
    llama(tie_word_embeddings=False).save_pretrained(tmp_path)
    change_config(tmp_path, tie_word_embeddings=True)
    assert same_or_refused(tmp_path, read_by_transformers(tmp_path), "lm_head.weight")


def test_the_whole_file_goes_before_an_index(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    llama(0, tie_word_embeddings=True).save_pretrained(folder, max_shard_size="20KB")
    llama(1, tie_word_embeddings=True).save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "model.safetensors").rename(folder / "model.safetensors")
    wanted = read_by_transformers(folder)
    assert off(wanted, theirs(llama(1, tie_word_embeddings=True))) < 1e-5
    assert off(ours(folder), wanted) < 1e-5


def test_another_file_beside_the_model_is_left_alone_or_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    llama(0, tie_word_embeddings=True).save_pretrained(folder)
    llama(1, tie_word_embeddings=True).save_pretrained(tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").rename(folder / "old.safetensors")
    assert same_or_refused(folder, read_by_transformers(folder), "old.safetensors")


# 07, 08, 14: what comes with a checkpoint


def test_how_a_model_generates_is_saved_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    llama().save_pretrained(folder)
    said = {"eos_token_id": [2, 9], "repetition_penalty": 1.05}
    (folder / "generation_config.json").write_text(json.dumps(said))
    model = models.load(folder)
    out = models.save(model, model.params, tmp_path / "out")
    for path in (folder, out):
        found = transformers.AutoModelForCausalLM.from_pretrained(path).generation_config
        assert (found.eos_token_id, found.repetition_penalty) == ([2, 9], 1.05), path


def test_float16_runs_on_cpu(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**TINY)).half()
    model.save_pretrained(tmp_path)
    # half a unit in the last place of float16 is 5e-4 of a logit
    assert off(ours(tmp_path), theirs(model.float())) < 1e-3


def test_a_checkpoint_in_bfloat16_learns_as_one_in_float32_does(tmp_path: Path) -> None:
    config = decoder.Config(layers=1, width=32, heads=2, kv_heads=2, hidden=64)
    params = decoder.init(jax.random.key(0), config)
    stream = data.from_text(
        {"a": (["hello world "] * 20, ["hello"])}, length=16, batch=4, steps=20, cache=False
    )
    moved = []
    for dtype in (jnp.bfloat16, jnp.float32):
        folder = tmp_path / jnp.dtype(dtype).name
        models.save(models.of(config, params), params, folder, dtype=dtype)
        model = models.load(folder)
        program = jcl.make(
            methods.naive(), model.apply, losses.fused_next_token(), optax.adamw(1e-5)
        )
        before = np.asarray(model.params["norm"]["scale"], np.float32)
        state = jcl.fit(program, model.params, jax.random.key(1), stream).state
        moved.append(np.abs(np.asarray(state.params["norm"]["scale"], np.float32) - before).max())
    assert moved[1] > 1e-4
    np.testing.assert_allclose(moved[0], moved[1], rtol=0.1)


# 09: rows that a model has no room for


def fit_text(train: str, test: str, **options: Any) -> Any:
    """Scores of a tiny decoder of bytes."""
    config = decoder.Config(layers=1, width=16, heads=2, kv_heads=2, hidden=32, **options)
    stream = data.from_text(
        {"a": ([train] * 20, [test])}, None, length=32, batch=4, steps=5, cache=False
    )
    program = jcl.make(
        methods.naive(), decoder.apply_fn(config), losses.fused_next_token(), optax.adam(1e-2)
    )
    params = decoder.init(jax.random.key(0), config)
    judge = evaluator(stream.test, bits_per_byte(), losses.with_targets)
    return jcl.fit(program, params, jax.random.key(1), stream, evaluate=judge).scores


LEARNED = {"rope": None, "norm": "layer", "gated": False}


def test_rows_that_fit_are_scored() -> None:
    assert np.isfinite(fit_text("hello world " * 3, "au lait", vocabulary=128)).all()
    assert np.isfinite(fit_text("hello " * 6, "hello", vocabulary=256, context=32, **LEARNED)).all()


def test_ids_of_the_test_beyond_the_vocabulary_are_refused() -> None:
    def call() -> Any:
        return fit_text("hello world " * 3, "café au lait", vocabulary=128)

    assert refused(call, r"vocabulary.*\b128\b")


def test_ids_of_the_training_beyond_the_vocabulary_are_refused() -> None:
    assert refused(lambda: fit_text("hello", "hello", vocabulary=64), r"vocabulary.*\b64\b")


def test_rows_longer_than_learned_positions_are_refused() -> None:
    def call() -> Any:
        return fit_text("hello " * 6, "hello", vocabulary=256, context=8, **LEARNED)

    assert refused(call, r"(context|position).*\b8\b")


# 10, 11: labels


def fit_labels(labels: np.ndarray) -> Any:
    """Scores of a perceptron with three classes."""
    x = np.random.default_rng(0).normal(size=(len(labels), 4)).astype(np.float32)
    rows = {"x": x, "y": labels}
    stream = data.from_arrays([rows], [rows], batch=10, steps=20)
    program = jcl.make(methods.naive(), models.mlp.apply, losses.cross_entropy(), optax.adam(1e-2))
    params = models.mlp.init(jax.random.key(0), [4, 16, 3])
    judge = evaluator(stream.test, accuracy())
    return jcl.fit(program, params, jax.random.key(1), stream, evaluate=judge).scores


CLASSES = np.arange(60) % 3


def test_labels_inside_the_head_are_scored() -> None:
    assert 0 <= fit_labels(CLASSES)[-1, 0] <= 1


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        pytest.param(
            CLASSES + 10, r"\by\b.*\b1[0-2]\b", id="beyond the head",
        ),
        pytest.param(
            CLASSES[:, None], r"\by\b.*, 1[)\]]", id="a column",
        ),
        pytest.param(
            np.eye(3, dtype=np.float32)[CLASSES], r"\by\b.*, 3[)\]]", id="one-hot",
        ),
        pytest.param(
            np.array(list("abc") * 20), r"\by\b.*(str|text|<U1)", id="text",
        ),
    ],
)  # fmt: skip
def test_labels_that_are_no_class_of_the_head_are_refused(labels: np.ndarray, words: str) -> None:
    assert refused(lambda: fit_labels(labels), words)


@pytest.mark.parametrize(
    "groups",
    [12, 2],
)
def test_a_memory_by_class_is_balanced_or_its_groups_are_refused(groups: int) -> None:
    labels = np.array([10] * 400 + [11] * 40)
    x = np.random.default_rng(0).normal(size=(440, 4)).astype(np.float32)
    rows = {"x": x, "y": labels}
    stream = data.from_arrays([rows], [rows], batch=10, epochs=1)
    replay = methods.er(capacity=40, rows=4, policy="class", groups=groups)
    program = jcl.make(replay, models.mlp.apply, losses.cross_entropy(), optax.adam(1e-3))
    params = models.mlp.init(jax.random.key(0), [4, 8, 12])

    def kept() -> list[int]:
        state = jcl.fit(program, params, jax.random.key(1), stream).state
        leaves = jax.tree_util.tree_leaves_with_path(state)
        (found,) = [np.asarray(v) for path, v in leaves if "'y'" in jax.tree_util.keystr(path)]
        return np.bincount(found)[10:].tolist()

    assert refused(kept, "groups") or kept() == [20, 20]


# 12: conversations


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Bytes and a few merges of them; of each conversation the template is its own."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE

    bare = Tokenizer(BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["</s>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bare.train_from_iterator(["hello world"], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bare, eos_token="</s>", additional_special_tokens=["<|im_end|>"]
    )


TURNS = """{% for m in messages %}{% set c = m.content or '' %}{{'<'+m.role+'>\\n'}}{{c}}\
{% if m.tool_calls %}CALL{% endif %}<|im_end|>
{% endfor %}"""
THOUGHTS = TURNS.replace("{{c}}", "{{c.split('</think>')[-1]}}") + (
    "{% if add_generation_prompt %}{{'<assistant>\\n<think>\\n'}}{% endif %}"
)


def says(content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


@pytest.mark.parametrize(
    ("template", "turns", "learned"),
    [
        pytest.param(TURNS, [says("world")], "world<|im_end|>", id="plain"),
        pytest.param(
            THOUGHTS, [says("<think>why</think>world")], "world<|im_end|>",
            id="a thought is opened by the prompt",
        ),
        pytest.param(
            THOUGHTS, [says("a")], "a<|im_end|>",
            id="occurs in the header",
        ),
        pytest.param(
            TURNS,
            [
                says(None, tool_calls=[{"function": {"name": "f"}}]),
                {"role": "tool", "content": "None"},
                says("ok"),
            ],
            "CALL<|im_end|>ok<|im_end|>",
            id="a call of a tool",
        ),
    ],
)  # fmt: skip
def test_what_an_assistant_says_is_learned_and_nothing_else(
    template: str, turns: list[Mapping[str, Any]], learned: str, tokenizer: Any
) -> None:
    tokenizer.chat_template = template
    tokens, mask = data.chat(tokenizer, [{"role": "user", "content": "hello"}, *turns])
    assert tokenizer.decode(tokens[1:][mask > 0]) == learned


@pytest.mark.parametrize(
    "prompt",
    [
        "\U0001f44d" * 10 + " say: ",
        "\ud83d\udc4d" * 10 + " say: ",
    ],
    ids=["characters", "surrogates"],
)
def test_an_answer_after_surrogate_pairs_is_learned_whole(prompt: str, tokenizer: Any) -> None:
    tokens, mask = data.pair(tokenizer, prompt, "hello world")
    assert tokenizer.decode(tokens[1:][mask > 0]) in ("hello world</s>", " hello world</s>")


# 13: optimizers


def fit_with(tx: optax.GradientTransformation, rows: dict[str, Any], steps: int) -> Any:
    """Parameters of a linear model after steps that each see all rows."""
    stream = data.from_arrays([rows], [rows], batch=len(rows["y"]), steps=steps)
    program = jcl.make(methods.naive(), models.mlp.apply, losses.cross_entropy(), tx)
    params = models.mlp.init(jax.random.key(0), [4, 2])
    return jcl.fit(program, params, jax.random.key(1), stream).state.params


ROWS = {
    "x": np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32),
    "y": np.arange(20) % 2,
}


@pytest.mark.parametrize(
    "wants_value",
    [False, True],
)
def test_an_optimizer_that_wants_the_loss_gets_it(wants_value: bool) -> None:
    tx = optax.adam(1e-1)
    if wants_value:  # nothing is an improvement of 90 %, so that the rate is halved again and again
        plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0.9, cooldown=0)
        tx = optax.chain(tx, plateau)
    tx = optax.with_extra_args_support(tx)
    params = models.mlp.init(jax.random.key(0), [4, 2])
    state = tx.init(params)

    def loss(params: Any) -> jax.Array:
        logits = models.mlp.apply(params, {"x": jnp.asarray(ROWS["x"])})
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, ROWS["y"]).mean()

    for _ in range(6):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, value=value)
        params = optax.apply_updates(params, updates)
    found = fit_with(tx, ROWS, 6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, params)


def test_a_line_search_is_refused() -> None:
    assert refused(lambda: fit_with(optax.lbfgs(), ROWS, 2), "line search")
