"""Data sets on disk, in the layouts that the hub, `datasets` and TensorFlow Datasets write."""

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jcl import data

pytestmark = pytest.mark.quick

TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def parquet(path, texts, column="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": list(range(len(texts))), column: texts}), path)


def arrow(path, texts, kind=pa.ipc.new_stream):
    table = pa.table({"text": texts})
    path.parent.mkdir(parents=True, exist_ok=True)
    with kind(str(path), table.schema) as writer:
        for batch in table.to_batches(max_chunksize=2):
            writer.write_batch(batch)


def test_parquet_as_the_hub_has_it(tmp_path):
    parquet(tmp_path / "data" / "train-00001-of-00002.parquet", ["c", None, " "])
    parquet(tmp_path / "data" / "train-00000-of-00002.parquet", ["a", "b"])
    parquet(tmp_path / "data" / "test-00000-of-00001-0123456789abcdef.parquet", ["t"])
    (tmp_path / "README.md").write_text("a card")
    parquet(tmp_path / ".cache" / "validation.parquet", ["hidden"])
    train = data.read_dataset(tmp_path, split="train")
    assert list(train) == list(train) == ["a", "b", "c"]
    assert list(data.read_dataset(tmp_path, split="test")) == ["t"]
    with pytest.raises(ValueError, match=r"split is None, but must be one of \['test', 'train'\]"):
        data.read_dataset(tmp_path)


def test_parquet_as_the_hub_converts_it(tmp_path):
    parquet(tmp_path / "small" / "train" / "0000.parquet", ["a"])
    parquet(tmp_path / "small" / "train" / "0001.parquet", ["b"])
    parquet(tmp_path / "large" / "train" / "0000.parquet", ["c"])
    assert list(data.read_dataset(tmp_path / "small", split="train")) == ["a", "b"]
    assert list(data.read_dataset(tmp_path / "small" / "train")) == ["a", "b"]
    with pytest.raises(ValueError, match=r"several configurations.*\['large', 'small'\]"):
        data.read_dataset(tmp_path, split="train")


def test_arrow_as_save_to_disk_and_as_the_cache_have_it(tmp_path):
    saved = tmp_path / "saved"
    arrow(saved / "train" / "data-00000-of-00002.arrow", ["a", "b", "c"])
    arrow(saved / "train" / "data-00001-of-00002.arrow", ["d"])
    arrow(saved / "train" / "cache-0123.arrow", ["what map() kept"])
    arrow(saved / "test" / "data-00000-of-00001.arrow", ["t"])
    (saved / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    assert list(data.read_dataset(saved, split="train")) == ["a", "b", "c", "d"]
    assert list(data.read_dataset(saved / "test")) == ["t"]
    cached = tmp_path / "cached"
    arrow(cached / "wikitext-train.arrow", ["a"], pa.ipc.new_file)
    arrow(cached / "wikitext-test.arrow", ["t"], pa.ipc.new_file)
    assert list(data.read_dataset(cached, split="test")) == ["t"]


def test_files_themselves_pairs_and_conversations(tmp_path):
    path = tmp_path / "any.parquet"
    pq.write_table(pa.table({"q": ["1?", "2?"], "a": ["1", ""], "talk": [TALK, []]}), path)
    assert list(data.read_dataset(path, ("q", "a"))) == [("1?", "1")]
    assert list(data.read_dataset([path], "talk")) == [TALK]
    with pytest.raises(ValueError, match="split is 'train', but must be None where files"):
        data.read_dataset(path, split="train")


def test_a_broken_file_and_a_missing_column_are_named(tmp_path):
    parquet(tmp_path / "train.parquet", ["a"], "content")
    with pytest.raises(ValueError, match=r"column of .*train\.parquet is 'text', but .*'content'"):
        list(data.read_dataset(tmp_path))
    whole = (tmp_path / "train.parquet").read_bytes()
    (tmp_path / "train.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"train\.parquet can't be read"):
        list(data.read_dataset(tmp_path, "content"))
    pq.write_table(pa.table({"text": [3]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"a row of .*train\.parquet can't be used.*is int"):
        list(data.read_dataset(tmp_path))
    arrow(tmp_path / "cut" / "a.arrow", ["a" * 1000, "b"])
    cut = (tmp_path / "cut" / "a.arrow").read_bytes()[:900]
    (tmp_path / "cut" / "a.arrow").write_bytes(cut)
    with pytest.raises(ValueError, match=r"a\.arrow can't be read"):
        list(data.read_dataset(tmp_path / "cut"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"one with files \*\.parquet or \*\.arrow"):
        data.read_dataset(tmp_path / "empty")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    tfds = pytest.importorskip("tensorflow_datasets")

    class Poems(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "n": np.int64})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, manager):
            return {"train": self._generate_examples(4), "test": self._generate_examples(2)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"text": "" if i == 2 else f"vers {i} ü", "n": i}

    builder = Poems(data_dir=tmp_path_factory.mktemp("tfds"), file_format="array_record")
    builder.download_and_prepare()
    return builder.data_dir


def test_tensorflow_datasets_without_tensorflow(prepared):
    assert list(data.read_tfds(prepared)) == ["vers 0 ü", "vers 1 ü", "vers 3 ü"]
    assert list(data.read_tfds(prepared, "test")) == ["vers 0 ü", "vers 1 ü"]
    assert list(data.read_tfds(prepared, "train[:50%]")) == ["vers 0 ü", "vers 1 ü"]
    assert "tensorflow" not in sys.modules
    with pytest.raises(ValueError, match=r"field is 'label', but must be one of \['n', 'text'\]"):
        data.read_tfds(prepared, field="label")
    with pytest.raises(ValueError, match="valid"):
        data.read_tfds(prepared, "valid")


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="name is 'no_such_set', but must be a dataset of"):
        data.read_tfds("no_such_set", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("read", "package", "extra"),
    [(data.read_dataset, "pyarrow", "text"), (data.read_tfds, "tensorflow_datasets", "tfds")],
)
def test_a_missing_package_is_named_with_its_extra(read, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}.*pip install 'jcl-kit\[{extra}\]'"):
        read("folder")
