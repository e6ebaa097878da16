"""Generation against transformers, and against what sampling must keep."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods, models
from jcl.models import decoder
from jcl.models.generation import _likeliest, generate, left_padded

SMALL = decoder.Config(vocabulary=61, layers=2, width=32, heads=4, kv_heads=2, hidden=48)
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5], [35], [8, 9, 7, 9, 3, 2, 3, 8]]


@pytest.fixture(scope="module")
def params() -> Any:
    # wide enough that the likeliest token changes from step to step
    return jax.tree.map(
        lambda x: 8 * x if x.ndim > 1 else x, decoder.init(jax.random.key(0), SMALL)
    )


APPLY = decoder.apply_fn(SMALL)


def test_greedy_is_that_of_transformers(params: Any, tmp_path: Any) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = models.save(models.of(SMALL, params), params, tmp_path / "m")
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ours = generate(APPLY, params, SMALL, PROMPTS, steps=12)
    for prompt, found in zip(PROMPTS, ours, strict=True):
        with torch.no_grad():
            ids = torch.tensor([prompt])
            wanted = reference.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False,
                pad_token_id=0,
            )  # fmt: skip
        assert found == wanted[0, len(prompt) :].tolist()
    assert len({tuple(f) for f in ours}) > 1 and len(set(ours[0])) > 1


class Letters:
    """A tokenizer of one character a token."""

    eos_token_id = 60

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) - 64 for c in text]}

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(i + 64) for i in ids)


@pytest.mark.quick
def test_a_model_stops_where_its_files_say(params: Any) -> None:
    model = models.of(SMALL, params, Letters())
    assert models.stop_ids(model) == (60,)
    (whole,) = models.write(model, ["CAD"], steps=12)
    ends = [ord(c) - 64 for c in whole[3:5]]
    said = model._replace(generation={"eos_token_id": ends})
    assert models.stop_ids(said) == (*ends, 60)
    first = min(whole.index(c) for c in whole[3:5])
    assert models.write(said, ["CAD"], steps=12) == [whole[:first]]
    older = model._replace(given={**model.given, "eos_token_id": 7}, tokenizer=None)
    assert models.stop_ids(older) == (7,)


@pytest.mark.quick
def test_a_stop_token_ends_its_row_alone(params: Any) -> None:
    whole = generate(APPLY, params, SMALL, PROMPTS, steps=12)
    stop = whole[1][4]
    cut = generate(APPLY, params, SMALL, PROMPTS, steps=12, stop=[stop])
    for full, short in zip(whole, cut, strict=True):
        assert short == (full[: full.index(stop)] if stop in full else full)
    assert len(cut[1]) <= 4


def test_a_low_temperature_is_greedy_and_a_high_one_is_not(params: Any) -> None:
    greedy = generate(APPLY, params, SMALL, PROMPTS, steps=8)
    key = jax.random.key(1)
    assert generate(APPLY, params, SMALL, PROMPTS, steps=8, key=key, temperature=1e-4) == greedy
    hot = generate(APPLY, params, SMALL, PROMPTS, steps=8, key=key, temperature=50.0)
    assert hot != greedy
    one = generate(APPLY, params, SMALL, PROMPTS, steps=8, key=key, temperature=50.0, top_k=1)
    assert one == greedy


def test_top_k_and_top_p_keep_what_transformers_keeps() -> None:
    torch = pytest.importorskip("torch")
    warpers = pytest.importorskip("transformers")
    logits = np.random.default_rng(0).normal(0, 3, (16, 50)).astype(np.float32)
    for k, p in ((5, None), (None, 0.7), (None, 0.05), (None, 1.0), (10, 0.9)):
        wanted = torch.tensor(logits)
        if k:
            wanted = warpers.TopKLogitsWarper(k)(None, wanted)
        if p:
            wanted = warpers.TopPLogitsWarper(p)(None, wanted)
        ours = _likeliest(jnp.asarray(logits), k, p)
        np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(wanted.numpy()))


def test_draws_follow_the_distribution(params: Any) -> None:
    rows = [[3, 1, 4]] * 2000
    drawn = generate(APPLY, params, SMALL, rows, steps=1, key=jax.random.key(0), temperature=2.0)
    counts = np.bincount([d[0] for d in drawn], minlength=SMALL.vocabulary)
    logits = APPLY(params, {"tokens": jnp.asarray([[3, 1, 4]])})[0, -1]
    expected = 2000 * np.asarray(jax.nn.softmax(logits / 2))
    likely = expected > 5
    chi = ((counts - expected) ** 2 / expected)[likely].sum()
    assert chi < 2 * likely.sum() + 20


def test_a_method_has_its_say_through_predict(params: Any) -> None:
    method = methods.wise_ft()
    program = jcl.make(method, APPLY, losses.next_token, optax.sgd(0.1))
    state = program.init(params, {"tokens": jnp.zeros((2, 5), jnp.int32)}, jax.random.key(0))
    assert generate(program.predict, state, SMALL, PROMPTS, steps=5) == generate(
        APPLY, params, SMALL, PROMPTS, steps=5
    )


def test_one_compilation_serves_prompts_of_any_length_in_a_bucket(params: Any) -> None:
    traces = []

    def counted(tree: Any, batch: Any) -> Any:
        traces.append(1)
        return APPLY(tree, batch)

    call = partial(generate, counted, params, SMALL, steps=3)
    call([[1, 2], [3]])
    first = len(traces)
    call([[1] * 20, [3] * 7])
    assert len(traces) == first


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompts": [[1, 61]]}, "token id in prompt 0 is 61"),
        ({"prompts": [[1], []]}, "length of prompt 1 is 0"),
        ({"prompts": []}, "number of prompts is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": 1.0, "key": None}, "key is None"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": 62}, "top_k is 62"),
    ],
)
def test_refusals(params: Any, arguments: dict[str, Any], words: str) -> None:
    given = {"prompts": [[1]], "steps": 2, "key": jax.random.key(0)} | arguments
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        generate(APPLY, params, SMALL, given.pop("prompts"), **given)


@pytest.mark.quick
def test_prompts_are_padded_on_the_left() -> None:
    tokens, segments = left_padded([[1, 2, 3], [4]], 10, multiple=4)
    np.testing.assert_array_equal(tokens, [[0, 1, 2, 3], [0, 0, 0, 4]])
    np.testing.assert_array_equal(segments, [[0, 1, 1, 1], [0, 0, 0, 1]])
