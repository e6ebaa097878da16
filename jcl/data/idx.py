"""MNIST's file format, `idx`: bytes with a header that says their shape."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np

from jcl.data.stream import Arrays
from jcl.method import check

_GZIP = b"\x1f\x8b"


def read_idx(path: str | Path) -> np.ndarray:
    """Reads an array of bytes in MNIST's `idx` format, gzipped or not.

    Raises:
      ValueError: if the file isn't in this format, or is cut short.
    """
    raw = Path(path).read_bytes()
    if raw[:2] == _GZIP:
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError) as error:
            raise ValueError(f"{path} can't be read as gzip: {error}") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} begins with {raw[:4].hex()}, but must with 000008: idx of bytes")
    start = 4 + 4 * raw[3]
    check(len(raw) >= start, f"bytes in {path}", len(raw), f"at least {start}, its header")
    shape = tuple(np.frombuffer(raw[4:start], ">i4").tolist())
    check(min(shape, default=0) >= 0, f"shape in {path}", shape, "of numbers that aren't negative")
    found = np.frombuffer(raw, np.uint8, offset=start)
    check(len(found) == math.prod(shape), f"bytes in {path}", len(found), f"{math.prod(shape)}")
    return found.reshape(shape)


def read_digits(folder: Path, split: str, ending: str = "") -> Arrays:
    """The images and labels of a folder like MNIST's: `image` uint8 [n, 28, 28], `y` int32 [n].

    Args:
      folder: the folder with the four files, such as `train-images-idx3-ubyte`.
      split: `train` or `t10k`, as the files are called.
      ending: what follows their names, such as `.gz`.

    Raises:
      ValueError: if a file isn't `idx`, is cut short, or holds other shapes or labels than these.
      FileNotFoundError: if a file isn't there.
    """
    at = folder / f"{split}-images-idx3-ubyte{ending}"
    image = read_idx(at)
    check(image.shape[1:] == (28, 28), f"shape in {at}", image.shape, "images of 28 × 28 pixels")
    of = folder / f"{split}-labels-idx1-ubyte{ending}"
    label = read_idx(of)
    check(label.shape == image.shape[:1], f"shape in {of}", label.shape, f"({len(image)},)")
    top = int(label.max(initial=0))
    check(top <= 9, f"largest label in {of}", top, "at most 9")
    return {"image": image, "y": label.astype(np.int32)}
