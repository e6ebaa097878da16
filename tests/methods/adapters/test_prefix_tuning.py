"""Prefix tuning: the prefix is what a cache in transformers would hold before the first token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_decoder as tiny

from jcl import losses, methods, models

BATCH = jax.tree.map(lambda x: x[0, 0], tiny.stream())
SMALL: dict[str, Any] = {
    "vocab_size": 16, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_it_is_a_cache_that_was_there_before(kind: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    reference = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(kind, **SMALL), attn_implementation="eager"
    ).eval()
    reference.save_pretrained(tmp_path)
    model = models.load(tmp_path)
    method = methods.prefix_tuning(length=3)
    program = tiny.jcl.make(method, model.apply, losses.next_token, tiny.optax.sgd(1.0))
    state = program.init(model.params, BATCH, jax.random.key(0))
    prefix = jax.tree.map(lambda x: 40 * x, state.params["blocks"]["prefix"])
    params = {**state.params, "blocks": {**state.params["blocks"], "prefix": prefix}}
    ours = jax.jit(program.predict)(state._replace(params=params), BATCH)

    cache = transformers.DynamicCache()
    for layer in range(2):
        heads = [
            np.repeat(np.asarray(prefix[k][layer]).reshape(1, 3, -1, 8), tiny.ROWS, axis=0)
            for k in ("key", "value")
        ]
        cache.update(*(torch.tensor(x.transpose(0, 2, 1, 3)) for x in heads), layer)
    with torch.no_grad():
        wanted = reference(
            torch.tensor(np.array(BATCH["tokens"])), past_key_values=cache,
            position_ids=torch.arange(tiny.LENGTH)[None],
        ).logits.numpy()  # fmt: skip
    np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
    assert (
        np.abs(jax.jit(model.apply)(model.params, BATCH) - wanted).max()
        > 0.01 * np.abs(wanted).max()
    )


def test_the_prefix_alone_learns_and_every_document_of_a_row_sees_it() -> None:
    after, _ = tiny.run(methods.prefix_tuning(length=3))
    tiny.same_base(after.params, tiny.base())
    assert after.optimizer[0].mu["blocks"]["prefix"]["key"].shape == (2, 3, 8)
    segments = jnp.ones(BATCH["tokens"].shape, jnp.int32).at[:, 7:].set(2)
    packed = tiny.CALL(after.params, {**BATCH, "segments": segments})
    alone = tiny.CALL(after.params, {"tokens": BATCH["tokens"][:, 7:]})
    np.testing.assert_allclose(packed[:, 7:], alone, rtol=1e-4, atol=1e-4)
    bare = tiny.CALL(tiny.base(), {"tokens": BATCH["tokens"][:, 7:]})
    assert np.abs(bare - alone).max() > 0.1


@pytest.mark.quick
def test_a_model_without_blocks_is_refused() -> None:
    program = tiny.program(methods.prefix_tuning())
    with pytest.raises(ValueError, match=r"parameters is \[\], but must be with blocks/key"):
        program.init({"dense_0": {"kernel": jnp.ones((2, 2))}}, BATCH, jax.random.key(0))
