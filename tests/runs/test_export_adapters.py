"""`jcl export --adapters`: what a run learned beside its base, as peft itself loads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from test_export import script, trained

from jcl import cli, trees
from jcl.mechanisms import adapters
from jcl.runs import experiment, export, export_adapters, expression, reading

__all__ = ["script"]
pytest.importorskip("transformers")


def ended(script: Path, folder: Path, method: str) -> export.Ended:
    """A run that ends in random numbers, two stages after its start, without any training."""
    module = experiment.load(script)
    built = module.build(module.Config())
    setup = experiment.setup(built, expression.parse(method))
    example = reading.first_batches(setup.stream)[0]
    state = setup.program.init(setup.params, example, setup.key)
    draw = np.random.default_rng(0)

    def stirred(path: Any, x: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.arange(x.size, dtype=x.dtype)  # the last stage of each task
        new = draw.normal(size=x.shape).astype(np.float32)
        return x + (0.5 * new if adapters.is_adapter(trees.path_name(path)) or kept else 0.0)

    kept = False  # only adapters are stirred, and not the pair that a next stage would train
    params = state.params
    if not method.startswith("olora"):
        params = jax.tree_util.tree_map_with_path(stirred, params)
    kept = True
    states = jax.tree_util.tree_map_with_path(stirred, state.methods)
    state = state._replace(params=params, methods=states, stage=jnp.int32(2))
    names = {"stages": ("low", "high"), "tasks": ("low", "high"), "stage_tasks": (0, 1)}
    run = tiny_run.write(folder / "run", tiny_run.R[:, :3, :2], **names)
    settings = {"config": {}, "versions": {"jax": "1"}, "command": "jcl run tiny.py"}
    return export.Ended(
        built, setup, state, {**run.summary, "method": method}, settings, [0, 1], []
    )


def predicted(end: Any, tokens: np.ndarray, task: int) -> np.ndarray:
    """The logits of the run's own program for rows of a known task."""
    setup, state = experiment.unrouted(end.built, end.setup, end.state)
    rows = {"tokens": jnp.asarray(tokens), "task": jnp.full(len(tokens), task)}
    return np.asarray(jax.jit(setup.program.predict)(state, rows))


def by_peft(folder: Path, tokens: np.ndarray, *more: Path) -> np.ndarray:
    """The logits of one adapter, or of the sum of several, over the base that the first names."""
    import peft
    import torch
    import transformers

    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    served = peft.PeftModel.from_pretrained(model, folder, adapter_name=folder.name)
    for other in more:
        served.load_adapter(other, adapter_name=other.name)
    if more:
        served.base_model.set_adapter([folder.name, *(other.name for other in more)])
    with torch.no_grad():
        return served.eval()(torch.tensor(tokens)).logits.numpy()[:, -tokens.shape[1] :]


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def tokens_of(end: Any) -> np.ndarray:
    return np.asarray(reading.first_batches(end.setup.stream)[0]["tokens"])


def test_a_pair_for_each_task_with_the_keys_that_infer_it(script: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from safetensors.numpy import load_file

    method = "inclora(stages=2, rank=2, predict='task') + infer_task(tasks=2)"
    run, out = trained(script, tmp_path, "--method", method), tmp_path / "out"
    assert cli.main(["export", str(run), "--adapters", "--to", str(out)]) == 0
    end = export._load(run, "")
    tokens = tokens_of(end)
    served = [by_peft(out / name, tokens) for name in ("low", "high")]
    for task, found in enumerate(served):
        close(found, predicted(end, tokens, task))
    assert np.abs(served[0] - served[1]).max() > 1e-3 * np.abs(served[0]).max()
    card = (out / "README.md").read_text()
    for word in ("`low`, `high`", "router.json", str(out / "base"), "Scores"):
        assert word in card
    # the keys lead each row to its task, as in the run
    said = json.loads((out / "router.json").read_text())
    keys = load_file(out / "router.safetensors")["total"]
    assert said["tasks"] == ["low", "high"] and said["tensors"] == {"total": [2, 16]}
    assert "argmax_t cos(f(row)" in said["use"] and "mean of the embeddings" in said["use"]
    table = np.asarray(end.state.params["embed"]["table"])
    for task, batch in enumerate(reading.first_batches(end.setup.stream)):
        mean = table[np.asarray(batch["tokens"])].mean(1)
        cosines = mean @ keys.T / np.linalg.norm(keys, axis=-1)
        assert (cosines.argmax(-1) == task).all()


def test_pairs_whose_sum_is_the_model(script: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    end = ended(script, tmp_path, "olora(stages=3, rank=2)")
    out = export_adapters.write(end, tmp_path / "out")
    assert {p.name for p in out.iterdir()} == {"low", "high", "base", "README.md"}
    tokens = tokens_of(end)
    wanted = predicted(end, tokens, 1)
    close(by_peft(out / "low", tokens, out / "high"), wanted)
    assert np.abs(by_peft(out / "low", tokens) - wanted).max() > 1e-3 * np.abs(wanted).max()
    assert 'model.base_model.set_adapter(["low", "high"])' in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("method", "folders"),
    [
        ("prompt_tuning(length=2)", [""]),
        ("prefix_tuning(length=2)", [""]),
        ("progressive_prompts(stages=2, length=2)", ["low", "high"]),
    ],
)
def test_adapters_prompts_and_prefixes_are_served_as_they_predict(
    method: str, folders: list[str], script: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    end = ended(script, tmp_path, method)
    out = export_adapters.write(end, tmp_path / "out")
    tokens = tokens_of(end)
    for task, name in enumerate(folders):
        found = by_peft(out / name, tokens)
        close(found, predicted(end, tokens, task))
        plain = end.built.apply(end.built.model.params, {"tokens": tokens})
        assert np.abs(found - plain).max() > 1e-3 * np.abs(found).max()


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("naive()", r"one with adapters, which naive\(\) leaves none of"),
        ("moelora(experts=2, rank=4)", r"adapters is \['blocks/query/lora/router'"),
        ("bottleneck(width=2)", r"adapter is \['attention_adapter', 'mlp_adapter'\], but must be"),
    ],
)
def test_what_has_no_place_in_peft_is_refused(
    method: str, words: str, script: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        export_adapters.write(ended(script, tmp_path, method), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.quick
def test_joined_pairs_come_apart_in_the_order_of_the_stages() -> None:
    kernel = jnp.zeros((4, 3))
    pairs = [
        {"a": jnp.full((4, 2), k + 1.0), "b": jnp.full((2, 3), 10.0 * (k + 1))} for k in range(3)
    ]
    tree = {"x": {"kernel": kernel, "lora": pairs[2]}}
    kept = adapters.bank(tree, 2)
    for k in range(2):
        kept = adapters.store_pairs(kept, {"x": {"lora": pairs[k]}}, k)
    joined = trees.by_path(adapters.join_pairs(tree, kept))
    joined = {path: np.asarray(x) for path, x in joined.items() if "lora" in path}
    found = export_adapters._pairs(joined, trees.by_path(tree))
    for pair, wanted in zip(found, pairs, strict=True):
        np.testing.assert_array_equal(pair["x/lora/a"], wanted["a"])
        np.testing.assert_array_equal(pair["x/lora/b"], wanted["b"])
    assert export_adapters._folders(["a b", "a/b", "base", "…"]) == ["a-b", "a-b+", "base+", "task"]
