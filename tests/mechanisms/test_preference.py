"""Preference losses, beside torch: the formulas of DPO's and IPO's authors, on the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import methods, models, preference
from jcl.data.preferences import Pair, from_pairs
from jcl.losses import TokenScores

torch = pytest.importorskip("torch")
RNG = np.random.default_rng(0)


def authors(
    policy: Any, reference: Any, beta: float, smoothing: float = 0.0, ipo: bool = False
) -> Any:
    """`preference_loss` as DPO's authors and TRL have it, of log-probabilities [2, B]."""
    log_ratios = policy[0] - policy[1]
    reference_ratios = reference[0] - reference[1]
    h = log_ratios - reference_ratios
    if ipo:
        return (h - 1 / (2 * beta)) ** 2
    sure = torch.nn.functional.logsigmoid(beta * h)
    doubtful = torch.nn.functional.logsigmoid(-beta * h)
    return -sure * (1 - smoothing) - doubtful * smoothing


def as_scores(log_probs: Any) -> TokenScores:
    """Scores [N, 2] whose one predicted token has these log-probabilities [N]."""
    chosen = jnp.stack([log_probs, jnp.zeros_like(log_probs)], axis=1)
    return TokenScores(chosen, jnp.zeros_like(chosen), jnp.zeros_like(chosen))


@pytest.mark.parametrize(
    ("form", "smoothing"), [("logistic", 0.0), ("logistic", 0.2), ("ipo", 0.0)]
)
def test_loss_and_gradient_are_those_of_the_authors(form: Any, smoothing: float) -> None:
    policy, reference = RNG.normal(-20, 5, (2, 2, 7))
    beta = 0.3
    given = torch.tensor(policy, dtype=torch.float32, requires_grad=True)
    old = torch.tensor(reference, dtype=torch.float32)
    torch_loss = authors(given, old, beta, smoothing, form == "ipo").mean()
    torch_loss.backward()
    ask = preference.ranking(form, smoothing)

    def loss(log_probs: jax.Array) -> jax.Array:
        def apply(params: Any, batch: Any) -> TokenScores:
            both = jnp.concatenate([log_probs[0], log_probs[1]])
            other = jnp.asarray(reference.reshape(-1), jnp.float32)
            return preference.implicit_rewards(as_scores(both), as_scores(other), beta)

        batch = {"weight": jnp.ones(7), "task": jnp.zeros(7, jnp.int32)}
        for side in ("", "rejected_"):
            batch[f"{side}tokens"] = batch[f"{side}segments"] = jnp.ones((7, 2), jnp.int32)
            batch[f"{side}answer"] = jnp.ones((7, 1))
        return ask(apply, None, batch)[0]

    scale = beta**-2 if form == "ipo" else 1.0  # IPO's loss is ours over β²
    value, slope = jax.value_and_grad(loss)(jnp.asarray(policy, jnp.float32))
    np.testing.assert_allclose(scale * value, torch_loss.item(), rtol=1e-5)
    np.testing.assert_allclose(scale * slope, given.grad.numpy(), rtol=1e-4, atol=1e-7)


def without_reference(form: str, policy: Any, lengths: Any) -> Any:
    """SimPO's and ORPO's losses as TRL's CPO and ORPO trainers have them, of log-probs [2, B]."""
    mean = policy / lengths
    if form == "simpo":  # loss_type "simpo" with beta 2 and simpo_gamma .5: γ here is their product
        return -torch.nn.functional.logsigmoid(2.0 * (mean[0] - mean[1] - 0.5))
    odds = (mean[0] - mean[1]) - (
        torch.log1p(-torch.exp(mean[0])) - torch.log1p(-torch.exp(mean[1]))
    )
    return -mean[0] - 0.3 * torch.nn.functional.logsigmoid(odds)


@pytest.mark.parametrize("form", ["simpo", "orpo"])
def test_losses_without_a_reference_are_those_of_trl(form: str) -> None:
    tokens = RNG.uniform(-5, -0.1, (2, 7, 4))
    lengths = RNG.integers(1, 5, (2, 7))
    answer = (np.arange(4) < lengths[..., None]).astype(np.float32)
    given = torch.tensor(tokens, dtype=torch.float32, requires_grad=True)
    summed = (given * torch.tensor(answer)).sum(-1)
    wanted = without_reference(form, summed, torch.tensor(lengths)).mean()
    wanted.backward()
    ask = {"simpo": preference.simpo(beta=2.0, gamma=1.0), "orpo": preference.orpo(0.3)}[form]
    batch: dict[str, Any] = {"weight": jnp.ones(7), "task": jnp.zeros(7, jnp.int32)}
    for i, side in enumerate(("", "rejected_")):
        batch[f"{side}tokens"] = batch[f"{side}segments"] = jnp.ones((7, 5), jnp.int32)
        batch[f"{side}answer"] = jnp.asarray(answer[i])

    def loss(log_probs: jax.Array) -> jax.Array:
        def apply(params: Any, rows: Any) -> TokenScores:
            chosen = jnp.pad(log_probs.reshape(14, 4), ((0, 0), (0, 1)))
            return TokenScores(chosen, jnp.zeros_like(chosen), jnp.zeros_like(chosen))

        return ask(apply, None, batch)[0]

    value, slope = jax.value_and_grad(loss)(jnp.asarray(tokens, jnp.float32))
    np.testing.assert_allclose(value, wanted.item(), rtol=1e-5)
    np.testing.assert_allclose(slope, given.grad.numpy(), rtol=1e-4, atol=1e-7)


def test_odds_of_a_certain_answer_are_finite() -> None:
    value, slope = jax.value_and_grad(preference.log_odds)(jnp.float32(0))
    assert np.isfinite(value) and np.isfinite(slope)
    np.testing.assert_allclose(preference.log_odds(jnp.log(0.25)), -np.log(3), rtol=1e-6)


PAIRS = [
    Pair("what is two and two? ", "four", "it is five"),
    Pair("name a colour: ", "red and blue", "seven"),
    Pair("say yes ", "yes", "no, never"),
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: Any) -> tuple[Any, Any]:
    """Two tiny random Llamas in torch, the policy and its reference, and ours of the same."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        tie_word_embeddings=True,
    )  # fmt: skip
    made = []
    for seed, name in enumerate(("policy", "reference")):
        torch.manual_seed(seed)
        one = transformers.LlamaForCausalLM._from_config(config, attn_implementation="eager")
        with torch.no_grad():
            for p in one.parameters():
                p.add_(0.1 * torch.randn_like(p))
        folder: Path = tmp_path_factory.mktemp(name)
        one.save_pretrained(folder)
        made.append((one.eval(), models.load(folder)))
    return made[0], made[1]


def in_torch(model: Any, batch: Any) -> Any:
    """log π of both answers [2, B], as the authors' `_get_batch_logps` sums them."""
    found = []
    for side in ("", "rejected_"):
        ids = torch.tensor(np.asarray(batch[f"{side}tokens"]), dtype=torch.long)
        there = torch.tensor(np.asarray(batch[f"{side}segments"]), dtype=torch.long)
        learned = torch.tensor(np.asarray(batch[f"{side}answer"]))
        logits = model(ids, attention_mask=there).logits[:, :-1]
        chosen = torch.gather(logits.log_softmax(-1), 2, ids[:, 1:, None]).squeeze(2)
        found.append((chosen * learned).sum(-1))
    return torch.stack(found)


@pytest.mark.parametrize("length", [48, 20])  # with the whole prompt, and cut
def test_on_a_llama_loss_and_gradient_are_those_of_torch(llama: Any, length: int) -> None:
    (policy, ours), (reference, base) = llama
    stream = from_pairs({"a": (PAIRS, PAIRS)}, length=length, batch=3, steps=1)
    rows = jax.tree.map(lambda x: x[0], stream.chunk(0, 0, 1))
    batch = stream.fetch(stream.source, rows)
    policy.zero_grad()
    with torch.no_grad():
        old = in_torch(reference, batch)
    expected = authors(in_torch(policy, batch), old, 0.1).mean()
    expected.backward()

    program = jcl.make(methods.dpo(beta=0.1), ours.apply, preference.ranking(), optax.sgd(1.0))
    state = program.init(ours.params, batch, jax.random.key(0))
    held = state.references["initial"]._replace(params=base.params)
    after, aux = jax.jit(program.step)(state._replace(references={"initial": held}), batch)
    np.testing.assert_allclose(aux["loss"], expected.item(), rtol=2e-5)
    assert abs(expected.item() - np.log(2)) > 0.01  # the two models differ
    moved = jax.tree.map(lambda a, b: np.asarray(a - b), ours.params, after.params)
    layers = policy.model.layers
    for name, at in (("query", "q_proj"), ("value", "v_proj"), ("output", "o_proj")):
        grads = [getattr(layer.self_attn, at).weight.grad.numpy().T for layer in layers]
        np.testing.assert_allclose(
            moved["blocks"][name]["kernel"], np.stack(grads), rtol=2e-3, atol=2e-6
        )
    table = policy.model.embed_tokens.weight.grad.numpy()
    np.testing.assert_allclose(moved["embed"]["table"], table, rtol=2e-3, atol=2e-6)


def test_imitation_is_the_mean_log_probability_of_the_preferred_answers(llama: Any) -> None:
    (policy, ours), _ = llama
    stream = from_pairs({"a": (PAIRS, PAIRS)}, length=48, batch=3, steps=1)
    batch = stream.fetch(stream.source, jax.tree.map(lambda x: x[0], stream.chunk(0, 0, 1)))
    with torch.no_grad():
        expected = in_torch(policy, batch)[0].numpy()
    value, outputs = preference.imitation(ours.apply, ours.params, batch)
    np.testing.assert_allclose(outputs.values, expected, rtol=1e-4)
    np.testing.assert_allclose(value, -expected.mean(), rtol=1e-5)


def test_without_a_method_answers_are_ranked_by_their_log_probabilities(llama: Any) -> None:
    (policy, ours), (reference, _) = llama
    stream = from_pairs({"a": (PAIRS, PAIRS)}, length=48, batch=3, steps=1)
    batch = stream.fetch(stream.source, jax.tree.map(lambda x: x[0], stream.chunk(0, 0, 1)))
    with torch.no_grad():
        given, old = in_torch(policy, batch).numpy(), in_torch(reference, batch).numpy()
    value, found = preference.ranking()(ours.apply, ours.params, batch)
    np.testing.assert_allclose(np.stack(found[:2]), given, rtol=1e-4)
    np.testing.assert_allclose(value, np.log1p(np.exp(given[1] - given[0])).mean(), rtol=1e-4)

    weight = jnp.array([1.0, 2.0, 0.0])
    asked = ours.apply(ours.params, preference.pair_rows(batch))
    right, total = preference.accuracy(asked, {**batch, "weight": weight})
    np.testing.assert_allclose(right, ((given[0] > given[1]) * [1, 2, 0]).sum())
    assert total == 3
    rows = {**batch, "weight": weight}
    test = jax.tree.map(lambda x: jnp.asarray(x)[None, None], rows)
    program = jcl.make(methods.naive(), ours.apply, preference.ranking(), optax.sgd(0.1))
    state = program.init(ours.params, batch, jax.random.key(0))
    share = jcl.evaluator(test, preference.accuracy, preference.pair_rows)(program, state)
    np.testing.assert_allclose(share, right / 3, rtol=1e-6)
    margins = {**batch, "weight": weight, "reference": jnp.asarray(old[0] - old[1])}
    gained, _ = preference.margin(asked, margins)
    expected = (given[0] - given[1] - old[0] + old[1]) @ [1, 2, 0]
    np.testing.assert_allclose(gained, expected, rtol=1e-3)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("arguments", "says"),
    [({"form": "hinge"}, "form is 'hinge'"), ({"smoothing": 0.5}, "smoothing is 0.5")],
)
def test_refused(arguments: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        preference.ranking(**arguments)
