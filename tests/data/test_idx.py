"""MNIST's files: what is read, and odd ones that are refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from jcl.data.idx import read_digits, read_idx


def idx(array: np.ndarray) -> bytes:
    head = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return head + array.astype(np.uint8).tobytes()


@pytest.mark.quick
def test_an_array_comes_back_zipped_or_not(tmp_path: Path) -> None:
    given = np.arange(24).reshape(2, 3, 4)
    for content in (idx(given), gzip.compress(idx(given))):
        (tmp_path / "a").write_bytes(content)
        np.testing.assert_array_equal(read_idx(tmp_path / "a"), given)


@pytest.mark.quick
def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.gz"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bad\.gz begins with 6e6f7468, but must with 000008"):
        read_idx(path)
    path.write_bytes(gzip.compress(idx(np.zeros(9)))[:-9])
    with pytest.raises(ValueError, match=r"bad\.gz can't be read as gzip"):
        read_idx(path)
    path.write_bytes(gzip.compress(b"\0\0\x0d\x01"))
    with pytest.raises(ValueError, match=r"bad\.gz begins with 00000d01, but must with 000008"):
        read_idx(path)
    path.write_bytes(gzip.compress(idx(np.zeros(9))[:-1]))
    with pytest.raises(ValueError, match=r"bytes in .*bad\.gz is 8, but must be 9"):
        read_idx(path)


@pytest.mark.quick
def test_odd_files_are_refused_with_a_sentence(tmp_path: Path) -> None:
    for name, count in (("train", 12), ("t10k", 3)):
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(idx(np.zeros((count, 28, 28))))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.arange(count) % 10))
    image, label = (tmp_path / f"t10k-{n}-ubyte" for n in ("images-idx3", "labels-idx1"))
    good = image.read_bytes()
    for path, content, sentence in (
        (image, b"", "begins with , but must with 000008: idx of bytes"),
        (image, b"<html>", "begins with 3c68746d, but must with 000008"),
        (image, good[:9], "bytes in .* is 9, but must be at least 16, its header"),
        (image, good[:-1], "is 2351, but must be 2352"),
        (image, idx(np.zeros((3, 8, 8))), r"is \(3, 8, 8\), but must be images of 28"),
        (label, idx(np.zeros(4)), r"is \(4,\), but must be \(3,\)"),
        (label, idx(np.full(3, 12)), "largest label in .* is 12, but must be at most 9"),
    ):
        kept = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            read_digits(tmp_path, "t10k")
        path.write_bytes(kept)
    assert len(read_digits(tmp_path, "t10k")["y"]) == 3
