"""Files in idx format, whole ones and damaged ones."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from tiny_archives import idx

from jcl.data.idx import read_idx


@pytest.mark.quick
def test_what_was_written_is_read(tmp_path: Path) -> None:
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / "pixels.gz"
    path.write_bytes(idx(pixels))
    np.testing.assert_array_equal(read_idx(path), pixels)


@pytest.mark.quick
def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.gz"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bad\.gz begins with 6e6f7468, but must with 000008"):
        read_idx(path)
    path.write_bytes(idx(np.zeros(9, np.uint8))[:-9])
    with pytest.raises(ValueError, match=r"bad\.gz can't be read as gzip"):
        read_idx(path)
    path.write_bytes(gzip.compress(b"\0\0\x0d\x01"))
    with pytest.raises(ValueError, match=r"bad\.gz begins with 00000d01, but must with 000008"):
        read_idx(path)
    path.write_bytes(gzip.compress(gzip.decompress(idx(np.zeros(9, np.uint8)))[:-1]))
    with pytest.raises(ValueError, match=r"bytes in .*bad\.gz is 8, but must be 9"):
        read_idx(path)
