"""`jcl export`: a run's model, as its methods have it predict, in transformers' layout."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_life
from own_method import MINE, write_mine

import jcl
from jcl import cli, models, trees
from jcl.models import decoder
from jcl.runs import reading
from jcl.runs.life.life import Life

pytest.importorskip("transformers")
stored, born = tiny_life.stored, tiny_life.born

SCRIPT = '''
"""A tiny pretrained decoder through two byte texts, for tests."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
import optax

from jcl import data, losses, models
from jcl.measures.evaluation import evaluator, token_nll
from jcl.runs.experiment import Experiment

METHODS = ("naive()",)
BASE = Path(__file__).parent / "base"


@dataclass(frozen=True)
class Config:
    """Settings."""

    scenario: Literal["domain"] = "domain"
    """Which."""
    lr: float = 0.05
    """Learning rate."""


def build(config):
    model = models.load(BASE)
    rng = np.random.default_rng(0)
    texts = {n: (rng.integers(a, a + 9, 300, np.uint8),) * 2 for n, a in (("low", 0), ("high", 30))}

    def stream(seed):
        return data.from_bytes(texts, 12, 4, 6, seed, boundary_batches=2, test_rows=8)

    tests = evaluator(stream(0).test, token_nll(), losses.with_targets)
    return Experiment(
        name="tiny", scenario=config.scenario, stream=stream, init=lambda key: model.params,
        apply=model.apply, loss=losses.fused_next_token(), optimizer=optax.sgd, evaluate=tests,
        measure="log perplexity", higher_is_better=False, learning_rate=config.lr, model=model,
        probe_names=("guess",),
        probe=lambda program, state: jnp.exp(-tests(program, state)[..., :1]),
    )
'''
SMALL = decoder.Config(vocabulary=64, layers=2, width=16, heads=2, kv_heads=1, hidden=24)


@pytest.fixture(scope="module")
def script(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    params = decoder.init(jax.random.key(0), SMALL)
    models.save(models.of(SMALL, params), params, folder / "base")
    (folder / "tiny.py").write_text(SCRIPT)
    return folder / "tiny.py"


def trained(script: Path, tmp_path: Path, *args: str) -> Path:
    assert cli.main(["run", str(script), "--out", str(tmp_path / "run"), *args]) == 0
    return tmp_path / "run"


def log_perplexity(folder: Path, script: Path) -> list[float]:
    """Of the exported model on the run's tests, by transformers."""
    import torch
    import transformers

    from jcl.runs import experiment

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    module = experiment.load(script)
    found = []
    for tokens in module.build(module.Config()).stream(0).test["tokens"]:
        ids = torch.tensor(np.asarray(tokens).reshape(-1, 12)).long()
        with torch.no_grad():
            logits = model(ids).logits[:, :-1].reshape(-1, 64)
        loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].reshape(-1))
        found.append(float(loss))
    return found


@pytest.mark.parametrize("method", ["naive()", "lora(rank=2) + ewc()", "wise_ft(alpha=0.5)"])
def test_the_exported_model_scores_as_the_run_did(
    script: Path, tmp_path: Path, method: str
) -> None:
    pytest.importorskip("torch")
    run = trained(script, tmp_path, "--method", method)
    assert cli.main(["export", str(run), "--to", str(tmp_path / "out")]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["matrix"][-1] != summary["matrix"][0]
    found = log_perplexity(tmp_path / "out", script)
    np.testing.assert_allclose(found, summary["matrix"][-1], rtol=1e-4)
    card = (tmp_path / "out" / "README.md").read_text()
    for word in ("low, high", f"{summary['matrix'][-1][0]:.3f}", "guess", "jcl run", "jax"):
        assert word in card
    probes = summary["probes"]
    before, after = probes["matrix"][0][0], probes["matrix"][-1][0]
    assert probes["vertical_forgetting"]["mean"] == pytest.approx(before - after, abs=1e-6)
    np.testing.assert_allclose(after, np.exp(-summary["matrix"][-1][0]), rtol=1e-5)
    html = (run / "report.html").read_text()
    assert "vertical forgetting" in html and f"{100 * after:.1f}" in html


def test_a_model_that_a_users_own_method_trained_is_exported(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """From another folder than the run's, in which the file has no such path."""
    pytest.importorskip("torch")
    begun, elsewhere = tmp_path / "begun", tmp_path / "elsewhere"
    begun.mkdir()
    elsewhere.mkdir()
    path = write_mine(begun)
    monkeypatch.chdir(begun)
    run = trained(script, tmp_path, "--method", "lora(rank=2) + ./mine.py:pull(5.0)")
    monkeypatch.chdir(elsewhere)
    assert cli.main(["export", str(run), "--to", "out"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    found = log_perplexity(elsewhere / "out", script)
    np.testing.assert_allclose(found, summary["matrix"][-1], rtol=1e-4)
    card = (elsewhere / "out" / "README.md").read_text()
    assert "under `lora(rank=2) + mine.py:pull(strength=5.0)`" in card
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"`mine.py` are those of the file whose sha256 is `{digest}`" in card
    path.write_text(MINE + "\n")
    capsys.readouterr()
    assert cli.main(["export", str(run), "--to", "again"]) == 2
    assert "mine.py, which has changed since" in capsys.readouterr().err
    assert not (elsewhere / "again").exists()


@pytest.mark.quick
def test_one_of_several_runs_is_named(script: Path, tmp_path: Path, capsys: Any) -> None:
    both = ("--method", "naive()", "--method", "wise_ft()")
    run = trained(script, tmp_path, *both)
    assert cli.main(["export", str(run), "--to", str(tmp_path / "out")]) == 2
    assert str(run / "wise_ft") in capsys.readouterr().err
    assert cli.main(["export", str(run / "naive"), "--to", str(tmp_path / "out")]) == 0
    pytest.importorskip("gguf")
    file = tmp_path / "out.gguf"
    assert cli.main(["export", str(run / "naive"), "--to", str(file), "--gguf", "f32"]) == 0
    folder, written = (models.load(path).params for path in (tmp_path / "out", file))
    jax.tree.map(np.testing.assert_array_equal, folder, written)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--seeds", "2"), "2 members"),
        (("--method", "prompt_tuning(length=2)"), "adapter"),
    ],
)
def test_what_can_not_be_exported(
    script: Path, tmp_path: Path, capsys: Any, args: tuple[str, ...], words: str
) -> None:
    run = trained(script, tmp_path, *args)
    capsys.readouterr()
    assert cli.main(["export", str(run), "--to", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_adapters_alone_learn_where_a_method_brings_them(script: Path) -> None:
    from jcl.runs import experiment, expression

    module = experiment.load(script)
    built = module.build(module.Config())

    def changed(method: str) -> set[str]:
        setup = experiment.setup(built, expression.parse(method))
        rows = jax.tree.map(lambda x: x[0], setup.stream.chunk(0, 0, 1))
        batch = setup.stream.fetch(jnp.asarray(setup.stream.source), rows)
        before = setup.program.init(setup.params, batch, setup.key)
        after, _ = setup.program.step(before, batch)
        pairs = zip(
            jax.tree_util.tree_leaves_with_path(before.params),
            jax.tree.leaves(after.params),
            strict=True,
        )
        return {trees.path_name(p).split("/")[-2] for (p, x), y in pairs if (x != y).any()}

    assert {"embed", "query", "down"} <= changed("naive()")
    assert changed("lora(rank=2)") == {"lora"}


@pytest.mark.parametrize("method", ["naive()", "lora(rank=2)"])
def test_a_life_of_labels_is_exported_with_its_head_of_classes(
    born: Callable[..., Life], tmp_path: Path, method: str
) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    names = ("odd", "even")
    rows: Any = [{"text": f"row {i}", "label": names[i % 2]} for i in range(30)]
    life = born(rows, method=method, **tiny_life.SMALL)
    life.stage("jan", rows)
    assert cli.main(["export", str(life.folder), "--to", str(tmp_path / "out")]) == 0
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert [*theirs.config.id2label.values()] == life.book.labels and len(life.book.labels) == 2
    run = jcl.load_run(life.folder)
    batch = reading.first_batches(run.stream)[0]
    ours = np.asarray(run.program.predict(run.state, batch))[:, :2]
    for tokens, segments, wanted in zip(batch["tokens"], batch["segments"], ours, strict=True):
        ids = torch.tensor(np.asarray(tokens)[np.asarray(segments) > 0])[None].long()
        with torch.no_grad():
            found = theirs.eval()(ids).logits[0].numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)
    assert cli.main(["export", str(life.folder), "--to", str(tmp_path / "x.gguf")]) == 2
