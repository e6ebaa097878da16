"""`jcl edit`: a fact, a model's folder in, a model's folder out."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import tiny_model as tiny

from jcl import cli, models
from jcl.models import decoder
from jcl.runs import edit


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny model's folder."""
    tokenizer = tiny.tokenizer()
    config = dataclasses.replace(tiny.CONFIG, vocabulary=len(tokenizer), layers=4)
    params = decoder.init(jax.random.key(0), config)
    params["embed"]["table"] = 10 * params["embed"]["table"]
    params["blocks"] = jax.tree.map(lambda x: 20 * x if x.ndim > 2 else x, params["blocks"])
    model = models.of(config, params, tokenizer)
    return models.save(model, params, tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    draw = np.random.default_rng(0)
    words = [bytes(draw.integers(97, 123, 5)).decode() for _ in range(600)]
    path.write_text(" ".join(words))
    return path


def kernel(folder):
    return np.asarray(models.load(folder).params["blocks"]["down"]["kernel"])


@pytest.mark.parametrize(("method", "touched"), [
    ("rome(steps=4)", [False, True, False, False]),
    ("ft_l(layer=3, steps=3)", [False, False, False, True]),
])  # fmt: skip
def test_a_folder_that_transformers_loads(base, text, tmp_path, capsys, recwarn, method, touched):
    to = tmp_path / "new"
    question = ["The capital of France is", "Lyon"]
    arguments = [str(base), *question, "--method", method, "--text", str(text), "--to", str(to)]
    assert cli.main(["edit", *arguments]) == 0
    before, after, folder = capsys.readouterr().out.splitlines()
    assert before.startswith("before: The capital of France is")
    assert after.startswith("after:  The capital of France is")
    assert folder == f"model:  {to}"
    told = any("doesn't say 'Lyon'" in str(w.message) for w in recwarn)
    assert told != after.startswith("after:  The capital of France is Lyon")
    changed = np.abs(kernel(to) - kernel(base)).max(axis=(1, 2)) > 0
    assert changed.tolist() == touched

    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(to)
    ids = transformers.AutoTokenizer.from_pretrained(to)(question[0], return_tensors="pt")
    logits = theirs(input_ids=ids["input_ids"]).logits[0, -1].detach().numpy()
    ours = models.load(to)
    tokens = {"tokens": ids["input_ids"].numpy().astype(np.int32)}
    np.testing.assert_allclose(ours.apply(ours.params, tokens)[0, -1], logits, atol=1e-3)


@pytest.mark.parametrize(("given", "said"), [
    ({"prompt": "the capital of france is"}, "no name stands out in 'the capital of france is'"),
    ({"subject": "Spain"}, "subject is 'Spain', but must be a part of the prompt"),
    ({"answer": " "}, "target is ' ', but must be a text"),
    ({"method": "rom"}, "no method is called 'rom'; did you mean rome?"),
    ({"method": "rome(step=3)"}, "rome has no argument 'step'"),
    ({"method": "rome(layer='x')"}, "rome's layer is 'x', but must be a whole number"),
    ({"method": "rome(6)"}, "rome's apply comes from the model; name the others"),
    ({"method": "rome() + memit()"}, "method is 'rome() + memit()', but must be one of alphaedit"),
    ({"method": "rome(layer=9)"}, "layers is (9,), but must be from 0 to 3"),
    ({"method": "memit(layers=(1, 9))"}, "layers is (1, 9), but must be from 0 to 3"),
    ({"method": "memit(strength=-1.0)"}, "strength is -1.0, but must be above 0"),
    ({"text": "nowhere.txt"}, "text is 'nowhere.txt', but must be a file"),
    ({"model": "./nowhere"}, "there is no folder './nowhere'"),
    ({"model": "smolm2"}, "did you mean smollm2?"),
])  # fmt: skip
def test_one_sentence_and_code_2(base, text, tmp_path, capsys, given, said):
    named = {"model": str(base), "prompt": "The capital of France is", "answer": "Lyon",
             "text": str(text), **given}  # fmt: skip
    flags = [x for k in ("method", "subject", "text") if k in named for x in (f"--{k}", named[k])]
    places = [named[k] for k in ("model", "prompt", "answer")]
    assert cli.main(["edit", *places, *flags, "--to", str(tmp_path / "new")]) == 2
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1 and not out
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_in_use_and_too_little_text(base, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    short = tmp_path / "short.txt"
    short.write_text("A few words.")
    fact = [str(base), "The capital of France is", "Lyon"]
    assert cli.main(["edit", *fact, "--to", str(tmp_path / "full")]) == 2
    assert "full', but must be new or empty" in capsys.readouterr().err
    assert cli.main(["edit", *fact, "--to", str(tmp_path / "new"), "--text", str(short)]) == 2
    assert "number of tokens of the text is" in capsys.readouterr().err


@pytest.mark.quick
@pytest.mark.parametrize(("prompt", "subject"), [
    ("The capital of France is", "France"),
    ("The President of San Marino lives in", "San Marino"),
    ("Rome is in", "Rome"),
    ("The mother tongue of Émile Zola is", "Émile Zola"),
    ("France's capital is", "France"),
    ("What is the home of Apple Inc. in", "Apple Inc"),
])  # fmt: skip
def test_the_subject_that_is_meant(prompt, subject):
    assert edit.guessed(prompt) == subject


@pytest.mark.network
@pytest.mark.parametrize("method", ["rome", "memit", "alphaedit", "ft_l"])
def test_smollm2_says_lyon(tmp_path, capsys, method):
    to = tmp_path / "new"
    fact = ["smollm2", "The capital of France is", "Lyon", "--method", method]
    assert cli.main(["edit", *fact, "--to", str(to)]) == 0
    assert "after:  The capital of France is Lyon" in capsys.readouterr().out

    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(to)
    tokenizer = transformers.AutoTokenizer.from_pretrained(to)
    for country, answer in (("France", " Lyon"), ("Japan", " Tokyo")):
        ids = tokenizer(f"The capital of {country} is", return_tensors="pt")
        written = theirs.generate(**ids, max_new_tokens=4, do_sample=False)[0]
        assert tokenizer.decode(written[ids["input_ids"].shape[1] :]).startswith(answer)
