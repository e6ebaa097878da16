"""Images before text against transformers' LLaVA, and that what works on a decoder works here."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from perturbed import perturb

import jcl
from jcl import adapters, losses, methods, models, taps, trees
from jcl.models import decoder, multimodal, vision

CONFIG = multimodal.Config(
    vision.Config(image=8, patch=4, layers=2, width=12, heads=2, hidden=20),
    decoder.Config(vocabulary=16, layers=2, width=16, heads=2, kv_heads=1, hidden=24),
)
APPLY = multimodal.apply_fn(CONFIG)
PARAMS = multimodal.init(jax.random.key(0), CONFIG)
PARAMS = {**PARAMS, "embed": {"table": 20 * PARAMS["embed"]["table"]}}
DECODER = {k: v for k, v in PARAMS.items() if k not in ("vision", "projector")}


def batch(rows: int = 4, length: int = 6, seed: int = 0) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(seed), 2)
    tokens = jax.random.randint(keys[0], (rows, length), 0, 16)
    segments = jnp.ones_like(tokens).at[0, -2:].set(0)
    return {
        "image": jax.random.normal(keys[1], (rows, 8, 8, 1)),
        "tokens": tokens,
        "segments": segments,
        "mask": (segments[:, 1:] > 0).astype(jnp.float32),
    }


@pytest.mark.parametrize(
    ("projector", "select", "kind"),
    [("mlp", -2, "llama"), ("mlp", -1, "llama"), ("mlp", -2, "gemma2")],
)
def test_logits_are_those_of_llava_in_transformers(
    projector: str, select: int, kind: str, tmp_path: Any
) -> None:
    """Gemma scales its tokens' embeddings, but not what the projector makes of an image."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    small = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }  # fmt: skip
    config = transformers.LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model", **small, "image_size": 8, "patch_size": 4,
        },
        text_config={
            "model_type": kind, **small, "vocab_size": 50, "hidden_size": 40,
            "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 10,
            "final_logit_softcapping": None,  # LLaVA applies none
        },
        image_token_index=49, vision_feature_layer=select,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    torch.manual_seed(0)
    reference = transformers.LlavaForConditionalGeneration(config).eval()
    perturb(reference)
    inner = reference.model
    inner.vision_tower.save_pretrained(tmp_path / "vision")
    language = transformers.AutoModelForCausalLM.from_config(config.text_config)
    language.model = inner.language_model
    language.lm_head = reference.lm_head
    language.save_pretrained(tmp_path / "language")
    tower, text = models.load(tmp_path / "vision"), models.load(tmp_path / "language")

    def linear(layer: Any) -> Any:
        return {
            "kernel": jnp.asarray(layer.weight.detach().numpy().T),
            "bias": jnp.asarray(layer.bias.detach().numpy()),
        }

    theirs = inner.multi_modal_projector
    heads = {"first": linear(theirs.linear_1), "second": linear(theirs.linear_2)}
    params = {"vision": tower.params, "projector": heads, **text.params}
    ours = multimodal.Config(tower.config, text.config, projector, select)  # type: ignore[arg-type]

    draw = np.random.default_rng(0)
    images = draw.normal(size=(2, 8, 8, 3)).astype(np.float32)
    tokens = draw.integers(0, 48, (2, 7))
    ids = np.concatenate([np.full((2, 4), 49), tokens], axis=1)  # four patches before the text
    with torch.no_grad():
        wanted = reference(
            input_ids=torch.tensor(ids), pixel_values=torch.tensor(images.transpose(0, 3, 1, 2))
        ).logits.numpy()[:, 4:]
    asked = {"image": jnp.asarray(images), "tokens": jnp.asarray(tokens, jnp.int32)}
    found = multimodal.apply_fn(ours)(params, asked)
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_without_an_image_it_is_the_decoder() -> None:
    given = {k: v for k, v in batch().items() if k != "image"}
    plain = decoder.apply_fn(CONFIG.language)(DECODER, given)
    np.testing.assert_array_equal(APPLY(PARAMS, given), plain)
    # nor where a row has none, beside one that has
    mixed = APPLY(PARAMS, {**batch(), "has_image": jnp.array([1, 0, 1, 0])})
    np.testing.assert_allclose(mixed[1], plain[1], atol=1e-5)
    assert np.abs(mixed[2] - plain[2]).max() > 1e-3


def test_prompts_stand_before_the_image() -> None:
    given = {k: v for k, v in batch().items() if k != "segments"}
    prompt = jax.random.normal(jax.random.key(3), (4, 2, 16))
    hidden = {"embeddings": prompt, "embedding_segments": jnp.zeros((4, 2), jnp.int32)}
    same = APPLY(PARAMS, {**given, **hidden})
    np.testing.assert_allclose(same, APPLY(PARAMS, given), atol=1e-5)
    shown = APPLY(PARAMS, {**given, "embeddings": prompt})
    assert np.abs(shown - same).max() > 1e-3
    image = multimodal.project(
        PARAMS["projector"],
        vision.apply_fn(CONFIG.vision)(PARAMS["vision"], {"image": given["image"]}),
    )
    text = {k: v for k, v in given.items() if k != "image"}
    text["embeddings"] = jnp.concatenate([prompt, image], axis=1)
    wanted = decoder.apply_fn(CONFIG.language)(DECODER, text)
    np.testing.assert_allclose(shown, wanted, atol=1e-5)


def test_targets_and_a_linear_projector() -> None:
    config = multimodal.Config(CONFIG.vision, CONFIG.language, "linear")
    params = multimodal.init(jax.random.key(0), config)
    assert set(params["projector"]) == {"first"}
    apply, given = multimodal.apply_fn(config), batch()
    scores = apply(params, losses.with_targets(given))
    wanted = losses.next_token_nll(apply(params, given), given["tokens"])
    np.testing.assert_allclose(scores.nll[:, :-1], wanted, atol=1e-5)
    with pytest.raises(ValueError, match="projector is 'conv', but must be 'linear' or 'mlp'"):
        multimodal.Config(projector="conv")  # type: ignore[arg-type]


@pytest.mark.quick
def test_text_is_written_from_a_cache_that_holds_the_image() -> None:
    given = {k: v for k, v in batch().items() if k in ("image", "tokens")}
    cache = decoder.empty_cache(CONFIG.language, 4, 4 + 6 + 3)
    first = {**given, "tokens": given["tokens"][:, :4], "prefill": cache}
    logits, cache = APPLY(PARAMS, first)
    whole = APPLY(PARAMS, given)
    np.testing.assert_allclose(logits, whole[:, 3], atol=1e-5)
    for i in (4, 5):
        logits, cache = APPLY(PARAMS, {"tokens": given["tokens"][:, i : i + 1], "cache": cache})
        np.testing.assert_allclose(logits, whole[:, i], atol=1e-5)


def test_sites_are_paths_and_lora_finds_only_the_decoders() -> None:
    paths = {trees.path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(PARAMS)}
    sites = taps.dense_sites(APPLY, PARAMS, batch())
    assert set(sites) == {p.removesuffix("/kernel") for p in paths if p.endswith("/kernel")}
    program = jcl.make(methods.lora(rank=2), APPLY, losses.next_token, optax.sgd(0.1))
    state = program.init(PARAMS, batch(), jax.random.key(0))
    assert adapters.paths_with(state.params) == ["blocks/query", "blocks/value"]
    seen = taps.sites(APPLY, PARAMS, batch())
    assert seen["image"].shape == (4, 4, 12)


@pytest.mark.parametrize("name", ["er", "moelora", "lora"])
def test_methods_train_what_the_preset_says(name: str) -> None:
    made = {
        "er": methods.er(capacity=4, rows=2),
        "moelora": methods.moelora(experts=2, rank=2),
        "lora": methods.lora(rank=2),
    }[name]
    program = jcl.make(
        made, APPLY, losses.next_token, optax.adam(1e-2),
        trainable=multimodal.projector_and_adapters,
    )  # fmt: skip
    state = program.init(PARAMS, batch(), jax.random.key(0))
    step, first = jax.jit(program.step), state
    for seed in range(4):
        state, aux = step(state, batch(seed=seed))
    assert np.isfinite(aux["loss"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        before = adapters.subtree(first.params, trees.path_name(path))
        moved = float(jnp.abs(leaf - before).max()) > 0
        assert moved == multimodal.projector_and_adapters(trees.path_name(path)), path


@pytest.mark.quick
def test_the_second_stage_leaves_the_tower_alone() -> None:
    paths = [trees.path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(PARAMS)]
    learned = [p for p in paths if multimodal.all_but_vision(p)]
    assert set(paths) - set(learned) == {p for p in paths if p.startswith("vision/")}
