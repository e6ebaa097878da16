"""What a model's folder may hold, and how what is wrong with it is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stored_decoder import SMALL

from jcl import models
from jcl.models import decoder
from jcl.models.tensors import open_folder

pytest.importorskip("transformers")


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path | str, *words: str) -> None:
    with pytest.raises(ValueError) as error:
        models.load(folder)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_round_trip(folder: Path) -> None:
    model = models.load(folder)
    wanted = decoder.init(jax.random.key(0), SMALL)
    jax.tree.map(np.testing.assert_array_equal, model.params, wanted)
    assert model.tokenizer is None


@pytest.mark.quick
def test_an_unknown_architecture_lists_the_known(folder: Path) -> None:
    edit(folder, model_type="mamba")
    refused(folder, "'mamba'", "'llama'", "'gemma2'")


def test_a_shape_that_does_not_fit_names_tensor_shapes_and_file(folder: Path) -> None:
    edit(folder, intermediate_size=64)
    refused(folder, "down_proj", "(32, 48)", "(32, 64)", "model.safetensors")


def test_a_missing_tensor_is_named(folder: Path) -> None:
    edit(folder, num_hidden_layers=3)
    refused(folder, "model.layers.2.")


def test_a_truncated_file_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, str(path), "damaged")


def test_what_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no folder")
    refused(tmp_path, "config.json")
    (tmp_path / "config.json").write_text('{"model_type": "llama"')
    refused(tmp_path, "no JSON")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    refused(tmp_path, "safetensors")
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(40))
    refused(tmp_path, "model.gguf", "damaged")


def test_what_was_fetched_is_loaded_by_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[Path | None] = [None, folder]
    monkeypatch.setattr(models.pretrained, "fetched", lambda name: there.pop(0))
    refused("glassllm", "'glassllm' isn't on this machine yet", "jcl fetch glassllm")
    assert models.load("glassllm").config == models.load(folder).config


def test_a_folder_of_a_fetched_name_goes_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.rename(folder.parent / "glassllm")
    monkeypatch.chdir(folder.parent)
    assert models.load("glassllm").config.vocabulary == SMALL.vocabulary


def test_code_in_the_folder_is_never_run(folder: Path) -> None:
    mark = folder / "ran"
    evil = f"open({str(mark)!r}, 'w')\nclass Evil: pass\n"
    (folder / "modeling_evil.py").write_text(evil)
    edit(folder, auto_map={"AutoConfig": "modeling_evil.Evil", "AutoModel": "modeling_evil.Evil"})
    models.load(folder)
    assert not mark.exists()


def test_the_form_of_transformers_4_is_read(folder: Path) -> None:
    path = folder / "config.json"
    given = json.loads(path.read_text())
    del given["rope_parameters"]
    scaling = {"type": "linear", "factor": 2.0}
    path.write_text(json.dumps(given | {"rope_theta": 5e5, "rope_scaling": scaling}))
    rope = models.load(folder).config.rope
    assert rope is not None and (rope.theta, rope.kind, rope.factor) == (5e5, "linear", 2.0)


def test_dtypes_are_chosen_or_held_in_32_bits(folder: Path, tmp_path: Path) -> None:
    model = models.load(folder, dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(model.params)} == {jnp.dtype("bfloat16")}
    half = models.save(model, model.params, tmp_path / "half")
    assert json.loads((half / "config.json").read_text())["dtype"] == "bfloat16"
    back = models.load(half)
    assert {x.dtype for x in jax.tree.leaves(back.params)} == {jnp.dtype("float32")}
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, np.asarray(b, np.float32)),
        back.params, model.params,
    )  # fmt: skip
    # the outputs are those of the 16 bits all the same
    batch = {"tokens": jnp.arange(9)[None]}
    np.testing.assert_array_equal(back.apply(back.params, batch), model.apply(model.params, batch))
    again = models.save(back, back.params, tmp_path / "again", dtype=jnp.bfloat16)
    whole = (again / "model.safetensors").read_bytes()
    assert whole == (half / "model.safetensors").read_bytes()


def test_a_tensor_in_two_files_is_refused(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    for name in ("a", "b"):
        (folder / f"{name}.safetensors").write_bytes(whole)
    refused(folder, "a.safetensors and in", "b.safetensors, but must be in one file")


def test_an_index_that_is_none_is_said(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    for said in ("[]", '{"weight_map": 3}', "{"):
        (folder / "model.safetensors.index.json").write_text(said)
        refused(folder, "is no index of tensors")


def test_shards_have_an_index(tmp_path: Path) -> None:
    params = decoder.init(jax.random.key(0), SMALL)
    out = models.save(models.of(SMALL, params), params, tmp_path / "m", shard_gb=2e-5)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert open_folder(out).names == set(index["weight_map"])
    jax.tree.map(np.testing.assert_array_equal, models.load(out).params, params)
    (out / sorted(set(index["weight_map"].values()))[0]).unlink()
    refused(out, "is missing")


@pytest.mark.quick
def test_saving_refuses_what_would_be_lost(folder: Path, tmp_path: Path) -> None:
    model = models.load(folder)
    with pytest.raises(ValueError, match="new or empty"):
        models.save(model, model.params, folder)
    grown = {**model.params, "extra": {"kernel": jnp.ones(2)}}
    with pytest.raises(ValueError, match="extra/kernel"):
        models.save(model, grown, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    capped = decoder.Config(vocabulary=61, layers=2, width=32, heads=4, logit_cap=3.0)
    with pytest.raises(ValueError, match="Llama"):
        models.of(capped, decoder.init(jax.random.key(0), capped))


@pytest.mark.quick
def test_a_model_of_ones_own_is_not_saved_as_a_folder(tmp_path: Path) -> None:
    mine = models.Model(None, {"w": jnp.ones(2)}, None, lambda params, batch: params["w"], {})
    with pytest.raises(ValueError, match=r"model_type is None, but must be one of \['bert', .*own"):
        models.save(mine, mine.params, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_weights_are_sharded_as_they_are_read(folder: Path) -> None:
    from jcl import mesh

    model = models.load(folder, mesh=mesh.make(fsdp=1))
    assert model.params["blocks"]["up"]["kernel"].sharding.mesh.axis_names == mesh.AXES


def test_no_leaf_is_held_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled: set[int] = set()
    empty = models.weights._aligned

    def noted(shape: Any, dtype: np.dtype) -> np.ndarray:
        out = empty(shape, dtype)
        filled.add(out.ctypes.data)
        return out

    monkeypatch.setattr(models.weights, "_aligned", noted)
    params = models.load(folder).params
    assert {x.unsafe_buffer_pointer() for x in jax.tree.leaves(params)} == filled
