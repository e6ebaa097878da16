"""Tensors on disk: in shards of a given size, read one by one, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jcl.models.tensors import open_folder, write_folder

pytestmark = pytest.mark.quick

DRAW = np.random.default_rng(0)
GIVEN = {
    "a": DRAW.normal(size=(3, 5)).astype(np.float32),  # 60 bytes
    "b": DRAW.normal(size=(7, 2)).astype(ml_dtypes.bfloat16),  # 28
    "c": DRAW.integers(0, 9, 11).astype(np.int32),  # 44
    "d": np.asfortranarray(DRAW.normal(size=(4, 6)).astype(np.float16)),  # 48
}


def same(folder: Path) -> None:
    found = open_folder(folder)
    assert found.names == set(GIVEN)
    for name, x in GIVEN.items():
        assert found.read(name).dtype == x.dtype
        np.testing.assert_array_equal(found.read(name), x)
        assert name in load_file(found.file(name))


def test_what_fits_one_file_is_in_one_without_an_index(tmp_path: Path) -> None:
    write_folder(tmp_path, iter(GIVEN.items()), 10**6)
    (tmp_path / "usual").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode
    (tmp_path / "usual").unlink()
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    same(tmp_path)


def test_shards_are_no_larger_than_asked_and_indexed(tmp_path: Path) -> None:
    write_folder(tmp_path, iter(GIVEN.items()), 90)  # a and b, 88 bytes; c; then d
    names = {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}
    assert {p.name for p in tmp_path.iterdir()} == names | {"model.safetensors.index.json"}
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 60 + 28 + 44 + 48
    shards = {name: file[8:11] for name, file in index["weight_map"].items()}
    assert [int(index["weight_map"][n][6:11]) for n in "abcd"] == [1, 1, 2, 3], shards
    same(tmp_path)


def test_files_without_an_index_are_read_too(tmp_path: Path) -> None:
    save_file({n: np.ascontiguousarray(GIVEN[n]) for n in "ab"}, tmp_path / "x.safetensors")
    save_file({n: np.ascontiguousarray(GIVEN[n]) for n in "cd"}, tmp_path / "y.safetensors")
    same(tmp_path)


def test_what_can_not_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no \*\.safetensors"):
        open_folder(tmp_path)
    write_folder(tmp_path, iter(GIVEN.items()), 90)
    second = tmp_path / "model-00002-of-00003.safetensors"
    whole = second.read_bytes()
    second.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"model-00002-of-00003\.safetensors is damaged"):
        open_folder(tmp_path)
    second.unlink()
    with pytest.raises(ValueError, match=r"model-00002-of-00003\.safetensors is missing, but mod"):
        open_folder(tmp_path)
