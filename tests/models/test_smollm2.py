"""SmolLM2-135M as people have it, beside transformers' own reading of the same GGUF file."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcl import losses, models
from jcl.data.registry.fetch import fetch

pytestmark = pytest.mark.network
PROMPTS = (
    "The capital of France is", "Once upon a time", "def fibonacci(n):", "Water boils at",
    "The quick brown fox", "In 1492,", "My favourite food is", "Albert Einstein was",
    "The largest planet", "To make bread, you need", "Python is a", "The opposite of hot is",
    "She opened the door and", "A triangle has", "The president of the United States",
    "Photosynthesis is the process", "1, 2, 3, 4,", "The French Revolution began",
    "Dear Sir or Madam,", "Machine learning is",
)  # fmt: skip


@pytest.fixture(scope="module")
def pair() -> tuple[models.Model, Any]:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = fetch("smollm2")
    (file,) = folder.glob("*.gguf")
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file.name, dtype=torch.float32
    )
    return models.load(folder), reference.eval()


def test_perplexity_of_a_fixed_text(pair: Any) -> None:
    import torch

    model, reference = pair
    text = (fetch("smollm2") / "LICENSE").read_text()[:3000]
    ids = np.array([model.tokenizer(text)["input_ids"]])
    batch = {"tokens": jnp.asarray(ids), "weight": jnp.ones(1)}
    ours = jax.jit(lambda p: losses.fused_next_token()(model.apply, p, batch)[0])(model.params)
    with torch.no_grad():
        theirs = reference(torch.tensor(ids), labels=torch.tensor(ids)).loss
    np.testing.assert_allclose(np.exp(ours), np.exp(theirs), rtol=1e-3)


def test_twenty_greedy_texts_token_for_token(pair: Any) -> None:
    import torch

    model, reference = pair
    ours = models.write(model, PROMPTS, steps=24)
    assert ours[0].startswith(" Paris.")
    tokenizer = model.tokenizer
    for prompt, text in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            found = reference.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False,
                pad_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
        wanted = tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)
        assert text == wanted


def test_saved_as_safetensors_transformers_gives_the_same_logits(pair: Any, tmp_path: Any) -> None:
    import torch
    import transformers

    model, reference = pair
    out = models.save(model, model.params, tmp_path / "smollm2")
    again = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    assert ids.tolist() == [[504, 3575, 282, 4649, 314]]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, reference(ids).logits, rtol=1e-5, atol=1e-4)
