"""Masks and spans: what is hidden, how often, that it can be put together again."""

from __future__ import annotations

import collections
import itertools
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import data, losses, methods
from jcl.data import masking
from jcl.measures.evaluation import evaluator, masked_nll
from jcl.models import encoder, t5

LENGTH, MASK, VOCABULARY = 40, 256, 257
TEXT = bytes(range(97, 123)) * 40
DOMAINS = {"a": (TEXT, TEXT[:200]), "b": (TEXT[::-1], TEXT[:300])}
ENCODER = encoder.Config(
    vocabulary=VOCABULARY, layers=1, width=8, heads=2, hidden=16, context=LENGTH, masked=True
)


def plain(**given: Any) -> data.Stream:
    return data.from_bytes(DOMAINS, LENGTH, 4, 3, **{"boundary_batches": 2, **given})


def masked(**given: Any) -> data.Stream:
    return data.masked(plain(), **{"mask": MASK, "vocabulary": VOCABULARY, **given})


def drawn(stream: data.Stream, stage: int = 0, start: int = 0, stop: int = 3) -> Any:
    return jax.tree.map(np.asarray, stream.fetch(stream.source, stream.chunk(stage, start, stop)))


@pytest.mark.quick
def test_what_was_hidden_is_the_target_and_the_rest_is_as_it_was() -> None:
    rows, before = drawn(masked()), drawn(plain())
    np.testing.assert_array_equal(rows["targets"], before["tokens"])
    kept = rows["mask"] == 0
    np.testing.assert_array_equal(rows["tokens"][kept], before["tokens"][kept])
    assert "bytes" not in rows and rows["mask"].dtype == np.float32
    assert rows["weight"].shape == (3, 4)
    # 15 % of 40 tokens is exactly six in each row
    np.testing.assert_array_equal(rows["mask"].sum(-1), 6)


def many(**given: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens before, after, and what was chosen, of 4,000 rows of 20 tokens."""
    rows = np.random.default_rng(0).integers(0, 200, (1, 1, 4000, 20)).astype(np.int32)
    leaves = {
        "tokens": rows,
        "weight": np.ones((1, 1, 4000), np.float32),
        "task": np.zeros((1, 1, 4000), np.int32),
    }
    stream = data.masked(data.from_leaves(leaves), mask=200, vocabulary=201, **given)
    got = drawn(stream, 0, 0, 1)
    return rows[0], got["tokens"], got["mask"] > 0


def test_shares_are_those_of_bert_within_five_standard_deviations() -> None:
    before, after, chosen = many(share=0.13)  # 2.6 of 20: two or three, with odds of .4 and .6
    counts = chosen.sum(-1)
    assert set(np.unique(counts)) == {2, 3}

    def near(found: np.ndarray, share: float) -> None:
        assert abs(found.mean() - share) < 5 * np.sqrt(share * (1 - share) / found.size)

    near(counts == 3, 0.6)
    near(after[chosen] == 200, 0.8 + 0.1 / 201)
    near(after[chosen] == before[chosen], 0.1 + 0.1 / 201)
    for place in range(20):
        near(chosen[..., place], 0.13)


def test_only_places_with_odds_are_chosen_even_if_too_few() -> None:
    before, _, chosen = many(share=0.5, where=masking.phrases([[7], [9, 11]]))
    tokens = before[0]
    wanted = tokens == 7
    pair = (tokens[:, :-1] == 9) & (tokens[:, 1:] == 11)
    wanted[:, :-1] |= pair
    wanted[:, 1:] |= pair
    np.testing.assert_array_equal(chosen[0], wanted)  # never as many as ten in a row of twenty
    special = many(share=1.0, special=(3, 5))[2]
    np.testing.assert_array_equal(special, ~np.isin(before, (3, 5)))


def test_phrases_come_before_others_by_their_odds() -> None:
    before, _, chosen = many(share=0.1, where=masking.phrases([[i] for i in range(50)], 1e-6))
    likely = (before < 50).sum(-1)
    np.testing.assert_array_equal((chosen & (before < 50)).sum(-1), np.minimum(likely, 2))


def test_draws_depend_on_seed_stage_and_step_alone() -> None:
    stream = masked(seed=3)
    whole, later = drawn(stream, 1), drawn(stream, 1, 2, 3)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[2:], b), whole, later)
    part = stream.chunk(1, 0, 3, rows=slice(1, 3))  # a process that reads only its own rows
    np.testing.assert_array_equal(part["draw"], stream.chunk(1, 0, 3)["draw"][:, 1:3])
    for other in (drawn(masked(seed=4), 1), drawn(stream, 0)):
        assert (other["mask"] != whole["mask"]).any()
    first, second, *_ = whole["mask"]
    assert (first != second).any()
    np.testing.assert_array_equal(stream.test["mask"], masked(seed=3).test["mask"])
    assert (stream.test["weight"] == plain().test["weight"]).all()


def test_bounds_have_the_mask_so_that_a_model_without_room_is_refused() -> None:
    stream = masked()
    assert stream.fetch.bounds("tokens") == (0, 256)  # type: ignore[attr-defined]
    assert stream.fetch.bounds("task") == plain().fetch.bounds("task")  # type: ignore[attr-defined]


@cache
def trained(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Log perplexity of masked tokens after two stages and before, by a method."""
    made = {
        "naive": methods.naive, "er": lambda: methods.er(capacity=8, rows=2),
        "ewc": lambda: methods.ewc(10.0), "lwf": lambda: methods.lwf(1.0),
        "der": lambda: methods.der(capacity=8, rows=2, top_k=4),
    }[name]()  # fmt: skip
    text = data.from_bytes(DOMAINS, LENGTH, 4, 20, boundary_batches=2)
    stream = data.masked(text, mask=MASK, vocabulary=VOCABULARY)
    program = jcl.make(made, encoder.apply_fn(ENCODER), losses.masked_token, optax.adam(1e-2))
    params = encoder.init(jax.random.key(0), ENCODER)
    score = evaluator(stream.test, masked_nll())
    result = jcl.fit(program, params, jax.random.key(0), stream, evaluate=score)
    return result.scores[-1], result.scores[0]


@pytest.mark.parametrize("name", ["naive", "er", "ewc", "lwf", "der"])
def test_methods_learn_masked_language_models(name: str) -> None:
    after, before = trained(name)
    assert (after < before - 0.5).all()
    if name != "naive":
        assert (after != trained("naive")[0]).any()


def test_the_loss_is_that_of_transformers(tmp_path: Path) -> None:
    torch, transformers = (pytest.importorskip(name) for name in ("torch", "transformers"))
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=LENGTH,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(config).eval()
    rows = jax.tree.map(lambda x: x[0], drawn(masked()))
    labels = np.where(rows["mask"] > 0, rows["targets"], -100)
    with torch.no_grad():
        wanted = model(
            input_ids=torch.tensor(rows["tokens"]).long(), labels=torch.tensor(labels).long()
        ).loss.item()
    model.save_pretrained(tmp_path)
    ours = jcl.models.load(tmp_path)
    loss, outputs = losses.masked_token(ours.apply, ours.params, rows)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    assert outputs.counted.shape == (4, LENGTH)


def test_rows_of_one_objective_are_refused_by_another() -> None:
    rows = jax.tree.map(lambda x: jnp.asarray(x[0]), drawn(masked()))
    params = encoder.init(jax.random.key(0), ENCODER)
    with pytest.raises(
        ValueError, match=r"mask is float32 \[4, 40\], but must be \[4, 39\] for wh"
    ):
        losses.next_token(lambda p, b: jnp.zeros((4, LENGTH, VOCABULARY)), params, rows)
    bare = jax.tree.map(lambda x: jnp.asarray(x[0]), drawn(plain()))
    with pytest.raises(ValueError, match="must include mask and targets for masked_token"):
        losses.masked_token(encoder.apply_fn(ENCODER), params, bare)


# Spans

SENTINELS = range(300, 280, -1)


def spanned(stream: data.Stream | None = None, **given: Any) -> data.Stream:
    stream = plain() if stream is None else stream
    return data.spans(stream, **{"sentinels": SENTINELS, "end": 1, **given})


def together(inputs: np.ndarray, targets: np.ndarray) -> list[int]:
    """The text of which spans were cut out, from what is read and what is to be written."""
    pieces: dict[int, list[int]] = {}
    for token in targets[1:]:
        if token in SENTINELS:
            pieces[int(token)] = own = []
        elif token == 1:
            break
        else:
            own.append(int(token))
    text: list[int] = []
    for token in inputs:
        if token == 1:
            break
        text += pieces.pop(int(token)) if token in SENTINELS else [int(token)]
    assert not pieces
    return text


def test_spans_put_back_are_the_text() -> None:
    rows, before = drawn(spanned()), drawn(plain())
    assert set(rows) == {
        "inputs", "input_segments", "tokens", "segments", "mask", "weight", "task",
    }  # fmt: skip
    for i, row in itertools.product(range(3), range(4)):
        text = together(rows["inputs"][i, row], rows["tokens"][i, row])
        assert text == before["tokens"][i, row].tolist()
    assert (rows["tokens"][..., 0] == 0).all() and (rows["inputs"][..., 0] > 1).all()
    # 6 of 40 tokens as two spans: 34 + 2 + the end; the start + 6 + 2 + the end
    assert rows["inputs"].shape[-1] == 37 and rows["tokens"].shape[-1] == 10
    assert (rows["mask"] == 1).all() and (rows["input_segments"] == 1).all()


def test_lengths_are_those_that_t5_was_trained_on() -> None:
    text = bytes(range(97, 123)) * 100
    stream = data.from_bytes({"a": (text, text)}, 568, 1, 1)
    rows = drawn(data.spans(stream, sentinels=range(300, 400), end=1), 0, 0, 1)
    # 114 with the end; before it here the decoder's start
    assert rows["inputs"].shape[-1] == 512 and rows["tokens"].shape[-1] == 1 + 114


def test_a_text_of_any_length_is_cut_out_of_its_padding() -> None:
    lengths = np.arange(LENGTH + 1)
    tokens = np.where(np.arange(LENGTH) < lengths[:, None], np.arange(2, LENGTH + 2), 0)
    segments = (tokens > 0).astype(np.int32)
    leaves = {"tokens": tokens.astype(np.int32), "segments": segments}
    leaves |= {
        "weight": np.ones(len(lengths), np.float32),
        "task": np.zeros(len(lengths), np.int32),
    }
    stream = data.from_leaves({k: v[None, None] for k, v in leaves.items()})
    rows = jax.tree.map(lambda x: x[0], drawn(spanned(stream, share=0.5, mean=1.5), 0, 0, 1))
    np.testing.assert_array_equal(rows["weight"], lengths >= 2)
    for n in lengths[2:]:
        text = together(rows["inputs"][n], rows["tokens"][n])
        assert text == list(range(2, n + 2))
        cut = max(round(n * 0.5), 1)
        spans = max(round(cut / 1.5), 1)
        assert rows["segments"][n].sum() == 2 + cut + spans == rows["mask"][n].sum() + 1
        assert rows["input_segments"][n].sum() == n - cut + spans + 1


def test_all_ways_to_cut_are_equally_likely() -> None:
    count = 6000
    rows = {
        "tokens": np.tile(np.arange(2, 10, dtype=np.int32), (1, 1, count, 1)),
        "weight": np.ones((1, 1, count), np.float32),
        "task": np.zeros((1, 1, count), np.int32),
    }
    stream = data.from_leaves(rows)
    got = drawn(spanned(stream, share=0.4, mean=1.5), 0, 0, 1)  # 3 of 8 tokens as 2 spans
    seen = collections.Counter(tuple(x.tolist()) for x in got["inputs"][0])
    # 5 kept as 2 pieces in 4 ways, 3 cut out in 2
    assert len(seen) == 8
    assert max(abs(n - count / 8) for n in seen.values()) < 5 * np.sqrt(count * 7 / 64)


def test_t5_learns_to_write_what_was_cut_out() -> None:
    config = t5.Config(
        vocabulary=301, layers=1, decoder_layers=1, width=16, heads=2, head_width=8, hidden=16
    )
    stream = data.spans(
        data.from_bytes(DOMAINS, LENGTH, 8, 30, boundary_batches=1), sentinels=SENTINELS, end=1
    )
    program = jcl.make(
        methods.er(capacity=8, rows=2), t5.apply_fn(config), losses.fused_next_token(),
        optax.adam(1e-2),
    )  # fmt: skip
    params = t5.init(jax.random.key(0), config)
    seen = []
    jcl.fit(
        program, params, jax.random.key(0), stream,
        on_event=lambda e: seen.append(float(e["loss"])) if "loss" in e else None,
    )  # fmt: skip
    assert seen[-1] < seen[0] - 1
