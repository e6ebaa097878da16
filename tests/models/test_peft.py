"""Adapters against peft in torch, on the same tiny random weights, both ways."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from perturbed import perturb

import jcl
from jcl import adapters, losses, methods, models, trees

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

SMALL: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
LLAMA = ["self_attn.q_proj", "v_proj", "mlp.down_proj"]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("llama", {"kind": "Lora", "target_modules": LLAMA}),
    "rslora": ("llama", {"kind": "Lora", "target_modules": LLAMA, "use_rslora": True}),
    "dora": ("llama", {"kind": "Lora", "target_modules": LLAMA, "use_dora": True}),
    "biased": ("qwen2", {"kind": "Lora", "target_modules": ["q_proj"], "use_dora": True}),
    "ia3": (
        "qwen2",
        {
            "kind": "IA3", "target_modules": ["k_proj", "v_proj", "down_proj"],
            "feedforward_modules": ["down_proj"],
        },
    ),
    "prompt": ("llama", {"kind": "PromptTuning", "num_virtual_tokens": 5}),
    "gemma-prompt": ("gemma2", {"kind": "PromptTuning", "num_virtual_tokens": 5}),
    "prefix": ("llama", {"kind": "PrefixTuning", "num_virtual_tokens": 5}),
    "gpt2": ("gpt2", {"kind": "Lora", "target_modules": ["c_attn", "mlp.c_proj"]}),
    "gpt2-dora": ("gpt2", {"kind": "Lora", "target_modules": ["c_attn"], "use_dora": True}),
    "gpt2-ia3": (
        "gpt2",
        {
            "kind": "IA3", "target_modules": ["c_attn", "mlp.c_proj"],
            "feedforward_modules": ["mlp.c_proj"],
        },
    ),
    "phi3": ("phi3", {"kind": "Lora", "target_modules": ["qkv_proj", "gate_up_proj"]}),
    "gpt_neox": ("gpt_neox", {"kind": "Lora", "target_modules": ["query_key_value"]}),
}  # fmt: skip
PATTERNS = {
    "r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"],
    "rank_pattern": {"0.self_attn.q_proj": 2, "down_proj": 3}, "alpha_pattern": {"down_proj": 1.5},
    "layers_to_transform": [0],
}  # fmt: skip
OF_ONE_LAYER = ("llama", {"kind": "Lora", **PATTERNS})


def adapted(case: tuple[str, dict[str, Any]], folder: Path) -> tuple[Any, models.Model]:
    """A tiny random model with a random adapter in torch, saved, and our base."""
    kind, options = case
    config = transformers.AutoConfig.for_model(kind, **SMALL)
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    perturb(base)
    base.save_pretrained(folder / "base")
    options = dict(options)
    name = options.pop("kind")
    if name == "Lora":
        options = {"r": 4, "lora_alpha": 6, "fan_in_fan_out": kind == "gpt2"} | options
    elif name == "IA3":
        options |= {"fan_in_fan_out": kind == "gpt2"}
    model = peft.get_peft_model(
        base.eval(), getattr(peft, f"{name}Config")(task_type="CAUSAL_LM", **options)
    )
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(folder / "adapter")
    return model.eval(), models.load(folder / "base")


def ids(rows: int = 2, length: int = 13) -> np.ndarray:
    return np.random.default_rng(0).integers(0, SMALL["vocab_size"], (rows, length))


def theirs(model: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()[:, -tokens.shape[1] :]


def close(ours: Any, wanted: np.ndarray, relative: float) -> None:
    assert np.abs(np.asarray(ours) - wanted).max() <= relative * np.abs(wanted).max()


def started(model: models.Model, adapter: models.Adapter) -> tuple[jcl.Program, jcl.State, Any]:
    """A program that goes on from an adapter."""
    method = getattr(methods, adapter.method)(**adapter.settings)
    loss = losses.fused_next_token()
    program = jcl.make(method, model.apply, loss, optax.sgd(1.0), trainable=adapters.is_adapter)
    batch = {"tokens": jnp.asarray(ids(), jnp.int32)}
    return program, program.init(adapter.params, batch, jax.random.key(0)), batch


@pytest.mark.parametrize("name", [*CASES, "one-layer"])
def test_peft_to_us_and_back(name: str, tmp_path: Path) -> None:
    case = CASES.get(name, OF_ONE_LAYER)
    reference, model = adapted(case, tmp_path)
    adapter = models.load_adapter(tmp_path / "adapter", model)
    program, state, batch = started(model, adapter)
    jax.tree.map(np.testing.assert_array_equal, state.params, adapter.params)  # init keeps them
    wanted = theirs(reference, ids())
    plain = model.apply(model.params, batch)
    assert np.abs(plain - wanted).max() > 0.01 * np.abs(wanted).max()
    close(jax.jit(program.predict)(state, batch), wanted, 1e-5)

    given = {k: v for k, v in adapter.settings.items() if k in ("rank", "alpha", "rslora")}
    factor = adapters.scale(**given) if given else 1.0
    out = models.save_adapter(model, state.params, tmp_path / "again", scale=factor)
    base = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", attn_implementation="eager"
    )
    again = peft.PeftModel.from_pretrained(base, out).eval()
    close(theirs(again, ids()), wanted, 1e-5)
    if adapter.method not in ("prompt_tuning", "prefix_tuning"):
        merged = adapters.merge(state.params, factor)
        assert jax.tree.structure(merged) == jax.tree.structure(model.params)
        close(model.apply(merged, batch), wanted, 1e-5)


@pytest.mark.parametrize("name", ["lora", "rslora", "dora", "biased", "ia3", "prompt"])
def test_gradients(name: str, tmp_path: Path) -> None:
    reference, model = adapted(CASES[name], tmp_path)
    adapter = models.load_adapter(tmp_path / "adapter", model)
    program, state, batch = started(model, adapter)
    tokens = torch.tensor(ids())
    logits = reference(tokens).logits[:, -tokens.shape[1] :]
    torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, SMALL["vocab_size"]), tokens[:, 1:].reshape(-1)
    ).backward()
    with torch.no_grad():  # what a step of SGD leaves is read as an adapter
        for p in reference.parameters():
            if p.requires_grad:
                p -= p.grad
    reference.save_pretrained(tmp_path / "stepped")
    wanted = models.load_adapter(tmp_path / "stepped", model).params
    after, _ = jax.jit(program.step)(state, batch)
    moves = [
        trees.partition(trees.subtract(tree, state.params), adapters.is_adapter)[0]
        for tree in (after.params, wanted)
    ]
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(moves[1]))
    assert largest > 1e-3
    for ours, their in zip(*map(jax.tree.leaves, moves), strict=True):
        assert float(jnp.abs(ours - their).max()) <= 1e-4 * largest


def test_an_encoder_too(tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model("bert", **SMALL | {"pad_token_id": 0})
    torch.manual_seed(0)
    base = transformers.BertForMaskedLM(config).eval()
    base.save_pretrained(tmp_path / "base")
    options = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["query", "attention.output.dense"])
    reference = peft.get_peft_model(base, options).eval()
    with torch.no_grad():
        for p in reference.parameters():
            p.add_(0.1 * torch.randn_like(p) * p.requires_grad)
    reference.save_pretrained(tmp_path / "adapter")
    model = models.load(tmp_path / "base")
    adapter = models.load_adapter(tmp_path / "adapter", model)
    scaled = adapters.scale_pairs(adapter.params, 1.5)
    ours = model.apply(scaled, {"tokens": jnp.asarray(ids(), jnp.int32)})
    close(ours, theirs(reference, ids()), 1e-5)
    out = models.save_adapter(model, adapter.params, tmp_path / "again", scale=1.5)
    base = transformers.BertForMaskedLM.from_pretrained(tmp_path / "base")
    again = peft.PeftModel.from_pretrained(base, out).eval()
    close(theirs(again, ids()), theirs(reference, ids()), 1e-5)


@pytest.fixture(scope="module")
def written(tmp_path_factory: Any) -> tuple[Path, models.Model]:
    folder = tmp_path_factory.mktemp("written")
    return folder / "adapter", adapted(CASES["lora"], folder)[1]


@pytest.mark.quick
@pytest.mark.parametrize(
    "changed",
    [
        {"peft_type": "VERA"}, {"bias": "all"}, {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "pissa"}, {"lora_bias": True},
    ],
    ids=lambda c: next(iter(c)),
)  # fmt: skip
def test_what_we_do_not_have_is_refused_by_name(
    changed: dict[str, Any], written: tuple[Path, models.Model], tmp_path: Path
) -> None:
    folder, model = written
    shutil.copytree(folder, tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    key, value = next(iter(changed.items()))
    with pytest.raises(ValueError, match=rf"{key}.* is {re.escape(repr(value))}, but must be"):
        models.load_adapter(tmp_path / "adapter", model)


def test_a_damaged_missing_or_foreign_adapter_is_refused(
    written: tuple[Path, models.Model], tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    folder, model = written
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        copy = shutil.copytree(folder, tmp_path / f"cut-{name}")
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=r"damaged adapter"):
            models.load_adapter(copy, model)
        (copy / name).unlink()
        with pytest.raises(ValueError, match=rf"no {name}"):
            models.load_adapter(copy, model)
    other = model._replace(params=model.params | {"blocks": dict(model.params["blocks"])})
    other.params["blocks"]["query"] = {"kernel": jnp.ones((2, 24, 32))}
    with pytest.raises(ValueError, match=r"layers.0.self_attn.q_proj.lora_A.weight is \(4, 32\)"):
        models.load_adapter(folder, other)
    foreign = shutil.copytree(folder, tmp_path / "foreign")
    file = foreign / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.lm_head.lora_A.weight"] = np.ones((4, 32), np.float32)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"\['lm_head.lora_A.weight'\], but must be"):
        models.load_adapter(foreign, model)


@pytest.mark.quick
def test_what_peft_has_no_place_for_is_refused(
    written: tuple[Path, models.Model], tmp_path: Path
) -> None:
    folder, model = written
    params = models.load_adapter(folder, model).params
    more = adapters.with_subtree(params, "blocks/key", {"gain": jnp.ones((2, 16))})
    for tree, options, words in (
        (params, {}, "scale is None"),
        (model.params, {}, r"adapter is \[\]"),
        (more, {"scale": 1.0}, r"adapter is \['gain', 'lora'\]"),
        (
            adapters.with_subtree(
                params, "blocks/router", {"lora": params["blocks"]["query"]["lora"]}
            ),
            {"scale": 1.0},
            r"adapters is \['blocks/router/lora/a', 'blocks/router/lora/b'\]",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            models.save_adapter(model, tree, tmp_path / "out", **options)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(ValueError, match=r"folder is .*full.* must be new or empty"):
        models.save_adapter(model, params, tmp_path / "full", scale=1.0)
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


def test_a_base_that_has_learned_is_saved_whole_and_never_left_behind(tmp_path: Path) -> None:
    config = models.decoder.Config(
        vocabulary=31, layers=1, width=16, heads=2, kv_heads=1, hidden=24
    )
    model = models.of(config, models.decoder.init(jax.random.key(0), config))
    batch = {"tokens": jnp.array([[3, 1, 4, 1, 5, 9, 2, 6]])}
    program = jcl.make(
        methods.lora(rank=2), model.apply, losses.next_token, optax.sgd(1.0),
        trainable=trees.every_leaf,
    )  # fmt: skip
    state = program.init(model.params, batch, jax.random.key(1))
    models.save_adapter(model, state.params, tmp_path / "adapter", scale=8.0)  # not yet
    state = jax.jit(program.step)(state, batch)[0]
    with pytest.raises(
        ValueError, match=r"params at 'blocks/.*' are not the model's own, but a PE"
    ):
        models.save_adapter(model, state.params, tmp_path / "again", scale=8.0)
    merged = adapters.merge(state.params, 8.0)  # both the base and the pairs as they learned
    saved = models.load(models.save(model, merged, tmp_path / "whole"))
    close(saved.apply(saved.params, batch), np.asarray(program.predict(state, batch)), 1e-5)
