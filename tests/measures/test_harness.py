"""The lm-eval adapter against lm-eval's own Hugging Face model, on the same weights."""

import json
import random

import numpy as np
import pytest

lm_eval = pytest.importorskip("lm_eval", reason="pip install 'jcl-kit[lm-eval]'")
torch = pytest.importorskip("torch")

import jax  # noqa: E402
import optax  # noqa: E402
import tokenizers  # noqa: E402
import transformers  # noqa: E402

import jcl  # noqa: E402
from jcl import losses, methods, models, probes  # noqa: E402
from jcl.measures import harness  # noqa: E402
from jcl.measures.probes import Item, Probe  # noqa: E402

STORY = "the sun was low and she said that it was a day like no other in the old town"
WORDS = STORY.split()
LENGTH = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        initializer_range=0.4, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator([STORY], trainer)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pair(folder):
    from lm_eval.models.huggingface import HFLM

    model = models.load(folder)
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder)
    reference = HFLM(
        pretrained=theirs, tokenizer=model.tokenizer, batch_size=3, max_length=LENGTH, device="cpu"
    )
    return harness.adapter(model, length=LENGTH, rows=3), reference


def ask(kind, *arguments):
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def text(rng, number):
    return " ".join(rng.choices(WORDS, k=number))


def test_likelihoods_are_lm_evals(pair):
    adapter, reference = pair
    rng = random.Random(0)
    asked = [
        ask("loglikelihood", text(rng, rng.randint(1, 60)), " " + text(rng, rng.randint(1, 8)))
        for _ in range(10)
    ]
    asked += [ask("loglikelihood", "", "a day"), ask("loglikelihood", "it was   ", " low")]
    expected = reference.loglikelihood(asked, disable_tqdm=True)
    found = adapter.loglikelihood(asked)
    np.testing.assert_allclose([f for f, _ in found], [e for e, _ in expected], rtol=1e-4)
    assert [f for _, f in found] == [e for _, e in expected]
    context = reference.tok_encode("the sun")
    with torch.no_grad():
        order = reference.model(torch.tensor([context])).logits[0, -1].argsort(descending=True)
    asked = [(("", ""), context, [token]) for token in order[:3].tolist()]
    likeliest = [likeliest for _, likeliest in adapter._loglikelihood_tokens(asked)]
    assert likeliest == [True, False, False]


def test_rolling_likelihoods_take_every_token_once(pair):
    adapter, reference = pair
    rng = random.Random(1)
    asked = [ask("loglikelihood_rolling", text(rng, n)) for n in (1, 12, 200)]
    expected = reference.loglikelihood_rolling(asked, disable_tqdm=True)
    np.testing.assert_allclose(adapter.loglikelihood_rolling(asked), expected, rtol=1e-4)


def test_continuations_are_cut_at_the_first_stop(pair):
    adapter, reference = pair
    options = {"max_gen_toks": 12, "do_sample": False}
    whole = adapter.generate_until([ask("generate_until", "the old town", options)])[0]
    middle = whole[len(whole) // 2]
    asked = [
        ask("generate_until", "the old town", {**options, "until": [middle]}),
        ask("generate_until", text(random.Random(2), 90), options),
        ask("generate_until", "she", {**options, "until": "zzz"}),
        ask("generate_until", "a", {**options, "max_gen_toks": 3}),
    ]
    found = adapter.generate_until(asked)
    assert found == reference.generate_until(asked, disable_tqdm=True)
    assert middle not in found[0] and whole.startswith(found[0])
    with pytest.raises(ValueError, match="do_sample is True, but must be False"):
        adapter.generate_until([ask("generate_until", "a", {"do_sample": True})])


def test_methods_have_a_say(folder, pair):
    model = models.load(folder)
    program = jcl.make(methods.naive(), model.apply, losses.next_token, optax.sgd(0.1))
    example = {"tokens": np.zeros((1, 4), np.int32)}
    state = program.init(model.params, example, jax.random.key(0))
    state = state._replace(params=jax.tree.map(lambda x: 0 * x, state.params))
    adapter = harness.adapter(model, length=LENGTH, call=program.predict, tree=state)
    (found, _), = adapter.loglikelihood([ask("loglikelihood", "the", " sun")])  # fmt: skip
    size = len(model.tokenizer(" sun")["input_ids"])
    assert found == pytest.approx(-size * np.log(300), rel=1e-5)


def test_a_task_of_lm_evals_gets_the_score_of_our_probe(folder, pair, tmp_path):
    from lm_eval.api.task import ConfigurableTask

    rng = random.Random(3)
    rows = [
        {"goal": text(rng, 5), "choices": [text(rng, rng.randint(1, 4)) for _ in range(3)],
         "label": rng.randrange(3)}
        for _ in range(40)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = ConfigurableTask(config={
        "task": "toy", "dataset_path": "json", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test", "doc_to_text": "Question: {{goal}}\nAnswer:",
        "doc_to_target": "label", "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    })  # fmt: skip
    results = lm_eval.simple_evaluate(model=pair[0], tasks=[task], bootstrap_iters=0)["results"]
    items = tuple(
        Item(f"Question: {r['goal']}\nAnswer:", tuple(f" {c}" for c in r["choices"]), r["label"])
        for r in rows
    )
    model = models.load(folder)
    encoded = probes.encode([Probe("toy", items)], model.tokenizer)
    program = jcl.make(methods.naive(), model.apply, losses.next_token, optax.sgd(0.1))
    example = {"tokens": np.zeros((1, 4), np.int32)}
    state = program.init(model.params, example, jax.random.key(0))
    for metric, normalise in (("acc", "none"), ("acc_norm", "bytes")):
        ours = float(probes.evaluator(encoded, normalise)(program, state)[0])
        assert ours == pytest.approx(results["toy"][f"{metric},none"])


@pytest.mark.quick
def test_what_cannot_be_asked_is_refused(folder):
    model = models.load(folder)
    with pytest.raises(ValueError, match="tokenizer is None"):
        harness.adapter(model._replace(tokenizer=None), length=10)
    with pytest.raises(ValueError, match="length is 1"):
        harness.adapter(model, length=1)
    with pytest.raises(ValueError, match="rows is 0"):
        harness.adapter(model, length=10, rows=0)
