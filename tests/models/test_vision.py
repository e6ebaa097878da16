"""Vision towers against CLIP's and SigLIP's in torch, on the same tiny random weights."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from perturbed import perturb

from jcl import models, taps, trees
from jcl.models import vision

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 12,
    "patch_size": 4,
}
TEXT: dict[str, Any] = SMALL | {
    "vocab_size": 30, "num_hidden_layers": 1, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 1,
}  # fmt: skip
CASES = ["CLIPVisionModel", "SiglipVisionModel", "CLIPModel", "SiglipModel"]
IMAGES = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)


def oracle(case: str) -> Any:
    """A tiny random model in torch, float32, with norms and biases that are not at their start."""
    if case.endswith("VisionModel"):
        kind = "clip_vision_model" if case.startswith("CLIP") else "siglip_vision_model"
        config = transformers.AutoConfig.for_model(kind, **SMALL)
    else:
        kind = "clip" if case.startswith("CLIP") else "siglip"
        config = transformers.AutoConfig.for_model(kind, vision_config=SMALL, text_config=TEXT)
    torch.manual_seed(0)
    model = getattr(transformers, case)(config)
    return perturb(model).eval()


def answer(reference: Any, hidden: int = -1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Last features, pooled, and the features after some block."""
    tower = getattr(reference, "vision_model", reference)
    with torch.no_grad():
        out = tower(torch.tensor(IMAGES.transpose(0, 3, 1, 2)), output_hidden_states=True)
    return tuple(
        x.numpy() for x in (out.last_hidden_state, out.pooler_output, out.hidden_states[hidden])
    )


@pytest.fixture(scope="module", params=CASES)
def pair(request: Any, tmp_path_factory: Any) -> tuple[Any, models.Model]:
    reference = oracle(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    reference.save_pretrained(folder)
    return reference, models.load(folder)


def near(ours: Any, theirs: np.ndarray) -> None:
    assert np.abs(np.asarray(ours) - theirs).max() < 1e-5 * np.abs(theirs).max()


def test_features_and_pooling_are_those_of_transformers(pair: Any) -> None:
    reference, model = pair
    wanted, pooled, _ = answer(reference)
    apply = vision.apply_fn(model.config, keep_class=True)
    ours = jax.jit(apply)(model.params, {"image": jnp.asarray(IMAGES)})
    near(ours, wanted)
    near(vision.pool(model.config, model.params, ours), pooled)
    patches = model.apply(model.params, {"image": jnp.asarray(IMAGES)})
    assert patches.shape == (2, 9, 32)
    near(patches, wanted[:, -9:])


def test_features_of_an_earlier_block_as_llava_reads_them(pair: Any) -> None:
    reference, model = pair
    apply = vision.apply_fn(model.config, select=-2)
    near(apply(model.params, {"image": jnp.asarray(IMAGES)}), answer(reference, -2)[2][:, -9:])


def test_saved_again_transformers_reads_it(pair: Any, tmp_path: Any) -> None:
    model = pair[1]
    scaled = jax.tree.map(lambda x: 1.1 * x, model.params)
    folder = models.save(model, scaled, tmp_path / "saved")
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    assert kind in ("clip_vision_model", "siglip_vision_model")
    name = "CLIPVisionModel" if kind.startswith("clip") else "SiglipVisionModel"
    again, told = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    ours = vision.apply_fn(model.config, keep_class=True)(scaled, {"image": jnp.asarray(IMAGES)})
    wanted, pooled, _ = answer(again.eval())
    near(ours, wanted)
    near(vision.pool(model.config, scaled, ours), pooled)
    loaded = models.load(folder).params
    jax.tree.map(np.testing.assert_array_equal, loaded, scaled)


def test_a_tower_without_pooling_is_read(tmp_path: Any) -> None:
    config = transformers.AutoConfig.for_model(
        "siglip_vision_model", **SMALL, vision_use_head=False
    )
    torch.manual_seed(1)
    reference = transformers.SiglipVisionModel(config).eval()
    reference.save_pretrained(tmp_path)
    model = models.load(tmp_path)
    assert not model.config.probe and "pool" not in model.params
    with torch.no_grad():
        wanted = reference(torch.tensor(IMAGES.transpose(0, 3, 1, 2))).last_hidden_state.numpy()
    near(model.apply(model.params, {"image": jnp.asarray(IMAGES)}), wanted)
    with pytest.raises(ValueError, match="class_token is False, but must be True, or probe"):
        vision.pool(model.config, model.params, jnp.asarray(wanted))


CONFIG = vision.Config(image=8, patch=4, layers=2, width=16, heads=2, hidden=24)


def test_sites_are_paths_of_the_tree() -> None:
    params = vision.init(jax.random.key(0), CONFIG)
    batch = {"image": jnp.zeros((2, 8, 8, 1))}
    paths = {trees.path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)}
    sites = taps.dense_sites(vision.apply_fn(CONFIG), params, batch)
    assert set(sites) == {p.removesuffix("/kernel") for p in paths if p.endswith("/kernel")}


def test_integers_are_read_as_0_to_255() -> None:
    params = vision.init(jax.random.key(0), CONFIG)
    apply = vision.apply_fn(CONFIG)
    whole = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 1)).astype(np.uint8)
    scaled = apply(params, {"image": jnp.asarray(whole / 255, jnp.float32)})
    np.testing.assert_allclose(apply(params, {"image": jnp.asarray(whole)}), scaled, atol=1e-6)


def test_a_classifier_reads_the_mean_and_remat_changes_nothing() -> None:
    config = vision.Config(image=8, patch=4, layers=2, width=16, heads=2, hidden=24, classes=3)
    params = vision.init(jax.random.key(0), config)
    image = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    logits = vision.apply_fn(config)(params, {"image": image})
    body = {k: v for k, v in params.items() if k != "classifier"}
    mean = vision.apply_fn(config)(body, {"image": image}).mean(axis=1)
    head = params["classifier"]
    np.testing.assert_allclose(logits, mean @ head["kernel"] + head["bias"], atol=1e-5)
    again = vision.apply_fn(config, remat="block")(params, {"image": image})
    np.testing.assert_allclose(again, logits, atol=1e-6)


@pytest.mark.quick
def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="patch is 3, but must be a divisor of 8, the image"):
        vision.Config(image=8, patch=3)
    with pytest.raises(ValueError, match="width is 10, but must be a multiple of 4, the heads"):
        vision.Config(width=10)
    with pytest.raises(ValueError, match="select is -3, but must be from -2 to -1"):
        vision.apply_fn(CONFIG, select=-3)
    params = vision.init(jax.random.key(0), CONFIG)
    with pytest.raises(ValueError, match=r"shape of an image is \(9, 8, 1\), but must be \(8, 8"):
        vision.apply_fn(CONFIG)(params, {"image": jnp.zeros((2, 9, 8, 1))})
