"""The encoder and its heads against transformers in torch, on the same tiny random weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from perturbed import perturb

import jcl
from jcl import adapters, losses, methods, models, taps, trees
from jcl.measures.evaluation import accuracy, evaluator
from jcl.models import attention, decoder, encoder

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_labels": 5,
}
TYPES = {
    "bert": {"max_position_embeddings": 64, "type_vocab_size": 3},
    "roberta": {"max_position_embeddings": 66, "type_vocab_size": 1, "pad_token_id": 1},
}
CASES = [
    "BertModel",
    "BertForMaskedLM",
    "BertForPreTraining",
    "BertForSequenceClassification",
    "RobertaModel",
    "RobertaForMaskedLM",
    "RobertaForSequenceClassification",
]
LENGTHS = [21, 13]


def oracle(case: str) -> Any:
    """A tiny random model in torch, float32, with norms and biases that are not at their start."""
    kind = "bert" if case.startswith("Bert") else "roberta"
    config = transformers.AutoConfig.for_model(kind, **SMALL | TYPES[kind])
    torch.manual_seed(0)
    model = getattr(transformers, case)(config)
    return perturb(model).eval()


@pytest.fixture(scope="module", params=CASES)
def pair(request: Any, tmp_path_factory: Any) -> tuple[Any, models.Model]:
    reference = oracle(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    reference.save_pretrained(folder)
    return reference, models.load(folder)


def rows(reference: Any) -> dict[str, np.ndarray]:
    """Two rows of different length; no token is the padding's."""
    rng = np.random.default_rng(0)
    pad = reference.config.pad_token_id
    tokens = rng.integers(2, SMALL["vocab_size"], (2, max(LENGTHS)))
    segments = np.arange(max(LENGTHS))[None] < np.array(LENGTHS)[:, None]
    types = rng.integers(0, reference.config.type_vocab_size, tokens.shape)
    return {"tokens": np.where(segments, tokens, pad), "segments": segments, "types": types}


def batch(given: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    return {k: jnp.asarray(v, jnp.int32) for k, v in given.items()}


def theirs(reference: Any, given: dict[str, np.ndarray]) -> Any:
    out = reference(
        torch.tensor(given["tokens"]),
        attention_mask=torch.tensor(given["segments"]).long(),
        token_type_ids=torch.tensor(given["types"]),
    )
    for name in ("logits", "prediction_logits", "last_hidden_state"):
        if name in out:
            return out[name]


def close(ours: Any, wanted: Any, relative: float = 1e-5) -> None:
    wanted = wanted.detach().numpy()
    assert ours.shape == wanted.shape
    assert np.abs(np.asarray(ours) - wanted).max() <= relative * np.abs(wanted).max()


def test_outputs_of_padded_rows(pair: Any) -> None:
    reference, model = pair
    given = rows(reference)
    ours, wanted = jax.jit(model.apply)(model.params, batch(given)), theirs(reference, given)
    if wanted.ndim == 2:
        close(ours, wanted)
    else:
        for i, length in enumerate(LENGTHS):
            close(ours[i, :length], wanted[i, :length])
    assert np.isfinite(np.asarray(ours)).all()


def test_without_segments_and_types_every_token_counts(pair: Any) -> None:
    reference, model = pair
    given = {k: v[:1] for k, v in rows(reference).items()}
    given["types"] = np.zeros_like(given["types"])
    close(model.apply(model.params, batch({"tokens": given["tokens"]})), theirs(reference, given))


def test_packed_rows_are_the_documents_alone(pair: Any) -> None:
    reference, model = pair
    if model.config.classes:
        pytest.skip("a classifier reads a whole row")
    given = rows(reference)
    alone = [
        theirs(reference, {k: v[i : i + 1, :n] for k, v in given.items()})
        for i, n in enumerate(LENGTHS)
    ]
    joined = {
        k: np.concatenate([v[i, :n] for i, n in enumerate(LENGTHS)] + [v[1, -3:]])[None]
        for k, v in given.items()
    }
    joined["segments"] = np.repeat([[1, 2, 0]], [*LENGTHS, 3], axis=1)
    ours = jax.jit(model.apply)(model.params, batch(joined))
    close(ours[:, : LENGTHS[0]], alone[0])
    close(ours[:, LENGTHS[0] : sum(LENGTHS)], alone[1])


def test_gradients(pair: Any, tmp_path: Path) -> None:
    reference, model = pair
    given = rows(reference)
    wanted = theirs(reference, given)
    pull = np.random.default_rng(1).normal(size=wanted.shape).astype(np.float32)
    if wanted.ndim == 3:
        pull *= given["segments"][..., None]
    reference.zero_grad()
    (wanted * torch.tensor(pull)).sum().backward()
    with torch.no_grad():  # the gradient is read back as a model's weights are
        grads = type(reference)(reference.config)
        for p, q in zip(grads.parameters(), reference.parameters(), strict=True):
            p.copy_(torch.zeros_like(p) if q.grad is None else q.grad)
    grads.save_pretrained(tmp_path)
    expected = models.load(tmp_path).params

    def loss(params: Any) -> jax.Array:
        return jnp.sum(model.apply(params, batch(given)) * pull)

    ours = jax.jit(jax.grad(loss))(model.params)
    if "bert" in reference.config.model_type:  # torch gives a table's padding row no gradient
        ours["embed"]["table"] = ours["embed"]["table"].at[reference.config.pad_token_id].set(0)
        expected["embed"]["table"] = (
            expected["embed"]["table"].at[reference.config.pad_token_id].set(0)
        )
    largest = max(float(jnp.abs(w).max()) for w in jax.tree.leaves(expected))
    for (path, g), w in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(expected), strict=True
    ):
        assert float(jnp.abs(g - w).max()) <= 1e-4 * largest, path


def test_saved_again_transformers_gives_the_same_outputs(pair: Any, tmp_path: Path) -> None:
    reference, model = pair
    out = models.save(model, model.params, tmp_path / "saved", shard_gb=20e-6)
    again, told = type(reference).from_pretrained(out, output_loading_info=True)
    if type(reference).__name__ != "BertForPreTraining":  # whose next-sentence head we leave
        assert not told["missing_keys"] and not told["unexpected_keys"]
    given = rows(reference)
    wanted = theirs(reference, given).detach().numpy()
    np.testing.assert_array_equal(theirs(again.eval(), given).detach().numpy(), wanted)
    back = models.load(out)
    assert back.config == model.config
    jax.tree.map(np.testing.assert_array_equal, back.params, model.params)


def test_every_dense_layer_is_visited_under_its_path(pair: Any) -> None:
    reference, model = pair
    given = batch(rows(reference))
    kernels = {
        trees.path_name(p).removesuffix("/kernel")
        for p, _ in jax.tree_util.tree_leaves_with_path(model.params)
        if trees.path_name(p).endswith("kernel")
    }
    unread = {"pooler"} if not model.config.classes else set()
    assert set(taps.dense_sites(model.apply, model.params, given)) == kernels - unread


def test_the_scores_of_targets_are_those_of_the_logits() -> None:
    config = encoder.Config(61, 2, 32, 4, 48, masked=True)
    params = encoder.init(jax.random.key(0), config)
    given = {"tokens": jnp.arange(14).reshape(2, 7), "targets": 3 * jnp.arange(14).reshape(2, 7)}
    scores = encoder.apply_fn(config, logits_limit=100)(params, given)
    logits = encoder.apply_fn(config)(params, {"tokens": given["tokens"]})
    wanted = -jnp.take_along_axis(jax.nn.log_softmax(logits), given["targets"][..., None], -1)
    np.testing.assert_allclose(scores.nll, wanted[..., 0], rtol=1e-5)


def test_rematerialisation_changes_no_gradient() -> None:
    config = encoder.Config(61, 2, 32, 4, 48, classes=3)
    params = encoder.init(jax.random.key(0), config)
    given = {"tokens": jnp.arange(14).reshape(2, 7)}

    def grad(apply: Any) -> Any:
        return jax.jit(jax.grad(lambda p: jnp.sum(apply(p, given)[:, 0] ** 2)))(params)

    for a, b in zip(
        jax.tree.leaves(grad(encoder.apply_fn(config, remat="dots"))),
        jax.tree.leaves(grad(encoder.apply_fn(config))),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


SMALL_OURS = encoder.Config(61, 2, 32, 4, 48, context=16)


def test_a_soft_prefix_of_tokens_is_those_tokens() -> None:
    params = encoder.init(jax.random.key(0), SMALL_OURS)
    apply = encoder.apply_fn(SMALL_OURS)
    tokens = jnp.asarray([[3, 1, 4, 1, 5, 9, 0]])
    segments = jnp.asarray([[1, 1, 1, 1, 1, 1, 0]])
    soft = params["embed"]["table"][tokens[:, :2]]
    short = {"tokens": tokens[:, 2:], "segments": segments[:, 2:], "embeddings": soft}
    whole = apply(params, {"tokens": tokens, "segments": segments})
    np.testing.assert_allclose(apply(params, short)[:, :4], whole[:, 2:6], atol=1e-6)
    # and is no part of what a classifier reads
    head = {"kernel": jax.random.normal(jax.random.key(1), (32, 3)), "bias": jnp.zeros(3)}
    logits = apply({**params, "classifier": head}, short)
    np.testing.assert_allclose(logits[0], whole[0, 2:6].mean(0) @ head["kernel"], atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_padding_on_the_left_is_padding(pooling: Any) -> None:
    config = replace(SMALL_OURS, classes=3, pooler=True, pooling=pooling)
    params, apply = encoder.init(jax.random.key(0), config), encoder.apply_fn(config)
    tokens, segments = jnp.asarray([[3, 1, 4, 0, 0]]), jnp.asarray([[1, 1, 1, 0, 0]])
    right = apply(params, {"tokens": tokens, "segments": segments})
    left = {"tokens": jnp.roll(tokens, 2, 1), "segments": jnp.roll(segments, 2, 1)}
    np.testing.assert_allclose(apply(params, left), right, rtol=1e-5)


def test_a_prefix_is_seen_by_every_token_and_bottlenecks_are_before_the_norm() -> None:
    params = encoder.init(jax.random.key(0), replace(SMALL_OURS, layers=1))
    apply = encoder.apply_fn(replace(SMALL_OURS, layers=1))
    given = {"tokens": jnp.asarray([[3, 1, 4, 1]]), "segments": jnp.asarray([[1, 1, 2, 0]])}
    p = jax.tree.map(lambda x: x[0], params["blocks"])
    # keys so large that every query looks at one of the two learned pairs alone
    pushed = adapters.with_subtree(
        params, "blocks/key", {"kernel": 0 * params["blocks"]["key"]["kernel"]}
    )
    pushed = adapters.with_subtree(
        pushed, "blocks/query", {"bias": jnp.ones((1, 32)), "kernel": jnp.zeros((1, 32, 32))}
    )
    learned = {"key": jnp.stack([jnp.full((1, 32), -50.0), jnp.full((1, 32), 50.0)], 1)}
    learned["value"] = jax.random.normal(jax.random.key(1), (1, 2, 32))
    seen: dict[str, jax.Array] = {}

    def note(site: str, layer: Any, h: jax.Array) -> jax.Array:
        jax.debug.callback(lambda h: seen.__setitem__(site, h), h)
        return h

    apply(adapters.with_subtree(pushed, "blocks/prefix", learned), given, note)
    jax.effects_barrier()
    wanted = learned["value"][0, 1] @ p["output"]["kernel"]
    np.testing.assert_allclose(seen["blocks:attention"][0], np.tile(wanted, (4, 1)), atol=1e-5)

    adapter = {
        "down": {"kernel": jnp.zeros((1, 32, 2)), "bias": jnp.ones((1, 2))},
        "up": {"kernel": jnp.zeros((1, 2, 32)), "bias": jnp.full((1, 32), 3.0)},
    }
    apply(params, given, note)
    jax.effects_barrier()
    before = np.asarray(seen["blocks:mlp"])
    apply(adapters.with_subtree(params, "blocks/mlp_adapter", adapter), given, note)
    jax.effects_barrier()
    np.testing.assert_allclose(seen["blocks:mlp"], before + 3, atol=1e-5)


def test_adapters_of_every_kind_learn_on_a_frozen_encoder() -> None:
    config = replace(SMALL_OURS, classes=3)
    params = encoder.init(jax.random.key(0), config)
    rng = np.random.default_rng(0)
    given = {"tokens": jnp.asarray(rng.integers(0, 61, (4, 9))), "y": jnp.asarray([0, 1, 2, 0])}
    apply, loss = encoder.apply_fn(config), losses.cross_entropy()

    def program(method: Any) -> Any:
        return jcl.make(method, apply, loss, optax.adam(0.05), trainable=adapters.is_adapter)

    for method in (
        methods.lora(rank=2), methods.ia3(), methods.bottleneck(width=2),
        methods.prefix_tuning(length=2),
    ):  # fmt: skip
        params = program(method).init(params, given, jax.random.key(0)).params
    last = program(methods.prompt_tuning(length=2))
    start = state = last.init(params, given, jax.random.key(0))
    step, costs = jax.jit(last.step), []
    for _ in range(6):
        state, aux = step(state, given)
        costs.append(float(aux["loss"]))
    assert costs[-1] < costs[0] - 0.05, costs
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), start.params, state.params)
    for path, changed in jax.tree_util.tree_leaves_with_path(moved):
        assert changed == adapters.is_adapter(trees.path_name(path)), path


def stream() -> tuple[Any, Any]:
    """Two tasks: which of two tokens, of the task's own, a row has more of."""
    rng = np.random.default_rng(0)

    def draw(task: int, *shape: int) -> Any:
        y = rng.integers(0, 2, shape)
        marks = 4 * task + 2 * y[..., None] + 1
        tokens = np.where(rng.random((*shape, 12)) < 0.5, marks, rng.integers(20, 61, (*shape, 12)))
        segments = np.arange(12) < rng.integers(6, 13, (*shape, 1))
        found = {"tokens": tokens, "segments": segments, "y": 2 * task + y}
        found["task"] = np.full(shape, task)
        return {k: jnp.asarray(v, jnp.int32) for k, v in found.items()}

    def stack(*shape: int) -> Any:
        return jax.tree.map(lambda *xs: jnp.stack(xs), *(draw(t, *shape) for t in range(2)))

    train, test = stack(20, 16), stack(1, 64)
    return train, {**test, "weight": jnp.ones(test["y"].shape)}


@pytest.mark.slow
def test_er_and_ewc_over_two_tasks_of_text() -> None:
    config = encoder.Config(61, 1, 32, 2, 64, classes=4)
    apply = encoder.apply_fn(config)
    train, test = stream()

    def outcome(method: Any) -> Any:
        program = jcl.make(method, apply, losses.cross_entropy(), optax.adam(0.02))
        score = evaluator(test, accuracy())

        def whole(key: jax.Array) -> Any:
            start = encoder.init(key, config)
            return jcl.run(program, start, key, train, evaluate=score, boundary_batches=4)

        return jax.jit(whole)(jax.random.key(0))

    method = jcl.chain(methods.er(capacity=64, rows=16), methods.ewc(strength=10.0))
    state, kept = outcome(method)
    assert kept["scores"][1, 0] > 0.9 and kept["scores"][2].min() > 0.9
    assert outcome(methods.naive())[1]["scores"][2, 0] < 0.6
    weighed = jax.tree.map(lambda f: float(f.max()) > 0, state.methods["ewc"].fisher)
    assert all(jax.tree.leaves(weighed))


def test_the_fisher_of_a_lone_classifier_has_a_closed_form() -> None:
    config = replace(SMALL_OURS, classes=4, pooler=True, pooling="first")
    apply = encoder.apply_fn(config)
    params = encoder.init(jax.random.key(0), config)
    given = jax.tree.map(lambda x: x[0, :1, :6], stream()[0])
    given["weight"] = jnp.ones(given["y"].shape)

    def fisher(trainable: trees.Trainable) -> Any:
        program = jcl.make(
            methods.ewc(strength=1.0), apply, losses.cross_entropy(), optax.sgd(0.1),
            trainable=trainable,
        )  # fmt: skip
        state = program.init(params, jax.tree.map(lambda x: x[0], given), jax.random.key(0))
        return jax.jit(program.consolidate)(state, given).methods["ewc"].fisher

    top = trees.match_path(r"(pooler|classifier)/.*")
    closed = trees.partition(fisher(top), top)[0]
    row_by_row = trees.partition(fisher(trees.every_leaf), top)[0]
    for a, b in zip(jax.tree.leaves(closed), jax.tree.leaves(row_by_row), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("case", ["BertForMaskedLM", "RobertaModel"])
@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_a_fresh_classifier_is_saved_and_loaded(case: str, pooling: Any, tmp_path: Path) -> None:
    reference = oracle(case)
    reference.save_pretrained(tmp_path / "given")
    model = models.load(tmp_path / "given")
    model = models.classifier(model, 7, jax.random.key(0), pooling)
    assert "masked" not in model.params
    params = jax.tree.map(lambda x: x + 0.1, model.params)
    out = models.save(model, params, tmp_path / "saved")
    given = rows(reference)
    ours = model.apply(params, batch(given))
    assert ours.shape == (2, 7)
    back = models.load(out)
    assert back.config == model.config
    np.testing.assert_array_equal(back.apply(back.params, batch(given)), ours)
    kind = "Bert" if case.startswith("Bert") else "Roberta"
    if pooling == "first":
        again = getattr(transformers, f"{kind}ForSequenceClassification").from_pretrained(out)
        close(ours, theirs(again.eval(), given))
    else:
        again = transformers.AutoModel.from_pretrained(out).eval()
        pooled = encoder.mean(jnp.asarray(theirs(again, given).detach().numpy()), given["segments"])
        wanted = pooled @ params["classifier"]["kernel"] + params["classifier"]["bias"]
        np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-4)


def test_a_norm_may_have_gamma_and_beta_as_bert_had(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    oracle("BertModel").save_pretrained(tmp_path)
    wanted = models.load(tmp_path).params
    path = tmp_path / "model.safetensors"
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = load_file(path)
    for new, then in old.items():
        tensors = {f"bert.{k}".replace("bert.bert", "bert"): v for k, v in tensors.items()}
        tensors = {k.replace(new, then): v for k, v in tensors.items()}
    save_file(tensors, path)
    jax.tree.map(np.testing.assert_array_equal, models.load(tmp_path).params, wanted)


def test_a_document_longer_than_the_context_is_told() -> None:
    params = encoder.init(jax.random.key(0), SMALL_OURS)
    apply = encoder.apply_fn(SMALL_OURS)
    with pytest.raises(ValueError, match="length is 17, but must be at most 16"):
        apply(params, {"tokens": jnp.zeros((1, 17), int)})
    segments = jnp.asarray([[1] * 17 + [2] * 13, [1] * 16 + [2] * 14])
    out = apply(params, {"tokens": jnp.zeros((2, 30), int), "segments": segments})
    assert np.isnan(out[0]).all() and np.isfinite(out[1]).all()


@pytest.mark.quick
def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="width is 33"):
        encoder.Config(width=33)
    with pytest.raises(ValueError, match="pooler is False"):
        encoder.Config(classes=3, pooling="first")
    with pytest.raises(ValueError, match="remat is 'all'"):
        encoder.apply_fn(SMALL_OURS, remat="all")  # type: ignore[arg-type]
    small = decoder.Config(61, 1, 32, 4, 4, hidden=48)
    llama = models.of(small, decoder.init(jax.random.key(0), small))
    with pytest.raises(ValueError, match=r"'llama'.*encoder"):
        models.classifier(llama, 3, jax.random.key(0))
    oracle("BertForMaskedLM").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    for name, value in (
        ("tie_word_embeddings", False), ("is_decoder", True),
        ("position_embedding_type", "relative_key"),
    ):  # fmt: skip
        given = json.loads(path.read_text())
        path.write_text(json.dumps({**given, name: value}))
        with pytest.raises(ValueError, match=name):
            models.load(tmp_path)
        path.write_text(json.dumps(given))


def test_splash_attention_sees_the_same() -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (1, 128, 2, 64)) for key in keys)
    segments = jnp.repeat(jnp.asarray([[1, 2, 0]]), jnp.asarray([70, 50, 8]), axis=1)
    options: dict[str, Any] = {"scale": 0.125, "segments": segments, "causal": False}
    ours = attention.attend(q, k, v, backend="splash", **options)
    wanted = attention.attend(q, k, v, backend="xla", **options)
    np.testing.assert_allclose(ours[:, :120], wanted[:, :120], atol=1e-5)


@pytest.mark.network
def test_minilm_embeds_as_transformers_does() -> None:
    from jcl.data.registry.fetch import fetch

    folder = fetch("minilm")
    model = models.load(folder)
    reference = transformers.AutoModel.from_pretrained(folder).eval()
    texts = ["A cat sat on the mat.", "Interest rates rose again, to nobody's surprise.", "No."]
    read = model.tokenizer(texts, padding=True, return_tensors="np")
    given = {
        "tokens": read["input_ids"],
        "segments": read["attention_mask"],
        "types": read["token_type_ids"],
    }
    features = jax.jit(model.apply)(model.params, batch(given))
    ours = encoder.mean(features, jnp.asarray(given["segments"]))
    mask = torch.tensor(given["segments"])[..., None]
    close(ours, (theirs(reference, given) * mask).sum(1) / mask.sum(1))
    unit = ours / jnp.linalg.norm(ours, axis=1, keepdims=True)
    assert float(unit[0] @ unit[1]) < 0.2
