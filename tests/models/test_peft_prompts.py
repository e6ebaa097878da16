"""Prompts and prefixes in PEFT's form; what peft makes of them is in `test_peft`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcl import adapters, models
from jcl.models import decoder, peft_prompts
from jcl.models.rope import Rope

pytestmark = pytest.mark.quick

SMALL: dict[str, Any] = {
    "vocabulary": 16, "layers": 2, "width": 16, "heads": 4, "kv_heads": 2, "hidden": 8,
}  # fmt: skip


def model(**options: Any) -> models.Model:
    config = decoder.Config(**SMALL | options)
    params = decoder.init(jax.random.key(0), config)
    return models.Model(config, params, None, decoder.apply_fn(config), {"model_type": "llama"})


def with_prefix(base: models.Model, length: int = 3) -> Any:
    keys, values = jax.random.normal(jax.random.key(1), (2, 2, length, 8))
    return adapters.with_subtree(base.params, "blocks/prefix", {"key": keys, "value": values})


def test_a_prefix_is_a_cache_of_tokens_that_stand_before_the_first(tmp_path: Path) -> None:
    base = model()
    params = with_prefix(base)
    folder = models.save_adapter(base, params, tmp_path / "prefix")
    found = models.load_adapter(folder, base)
    assert (found.method, found.settings) == ("prefix_tuning", {"length": 3})
    for name, wanted in params["blocks"]["prefix"].items():
        np.testing.assert_allclose(found.params["blocks"]["prefix"][name], wanted, atol=1e-6)
    leaves = {f"blocks/prefix/{k}": np.asarray(v) for k, v in params["blocks"]["prefix"].items()}
    given, tensors = peft_prompts.write_prefix(base, leaves)
    assert not leaves
    stored = tensors["prompt_embeddings"].reshape(3, 2, 2, 2, 4)  # P, layer, key or value, K, D
    values = np.asarray(params["blocks"]["prefix"]["value"]).reshape(2, 3, 2, 4)
    np.testing.assert_array_equal(stored[:, :, 1], values.swapaxes(0, 1))
    pair = np.asarray(params["blocks"]["prefix"]["key"])[1, 0, :4]  # turned by 3: by 3 and .03 rad
    for i, rate in enumerate((1.0, 0.01)):
        turned = complex(pair[i], pair[i + 2]) * np.exp(3j * rate)
        np.testing.assert_allclose(stored[0, 1, 0, 0, [i, i + 2]], [turned.real, turned.imag], 1e-5)
    assert (given["token_dim"], given["num_attention_heads"], given["num_layers"]) == (8, 2, 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rope": None}, "positions is 'learned', but must be rotary"),
        ({"rope": Rope(kind="dynamic", factor=2.0)}, "positions is 'dynamic', but must be"),
        ({"window": 4}, "window is 4, but must be None"),
    ],
)
def test_a_prefix_that_peft_would_read_otherwise_is_refused(
    options: Any, words: str, tmp_path: Path
) -> None:
    base = model(**options)
    with pytest.raises(ValueError, match=words):
        models.save_adapter(base, with_prefix(base), tmp_path / "prefix")
    assert not (tmp_path / "prefix").exists()


def test_a_prompt_is_stored_as_the_model_scales_it(tmp_path: Path) -> None:
    base = model(embed_scale=4.0)
    table = jnp.arange(32.0).reshape(2, 16)
    params = adapters.with_subtree(base.params, "prompt", {"table": table})
    folder = models.save_adapter(base, params, tmp_path / "prompt")
    found = models.load_adapter(folder, base)
    np.testing.assert_array_equal(found.params["prompt"]["table"], table)
    _, tensors = peft_prompts.write_prompt(base, {"prompt/table": np.asarray(table)})
    np.testing.assert_array_equal(tensors["prompt_embeddings"], 4 * table)
    with pytest.raises(ValueError, match=r"prompt_embeddings is \(2, 16\), but must be \(3, 16\)"):
        peft_prompts.load_prompt({"num_virtual_tokens": 3}, dict(tensors), base)
