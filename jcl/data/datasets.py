"""Documents from data sets on disk: Hugging Face's parquet and arrow, and TensorFlow Datasets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jcl.data.documents import Document, Documents, Field, Paths, files_of, pick
from jcl.data.packages import needed
from jcl.method import check


def read_dataset(paths: Paths, field: Field = "text", split: str | None = None) -> Documents:
    """Documents from a Hugging Face dataset on disk: parquet and arrow files.

    The folder may be laid out as on the hub (`data/train-00000-of-00002.parquet`), as
    `Dataset.save_to_disk` writes it, or as `datasets` caches it. No code in it is run.

    Args:
      paths: the folder, or parquet and arrow files themselves.
      field: see `Field`.
      split: the name of the split, if the folder has several.

    Raises:
      ValueError: if the folder doesn't have exactly one such split and one configuration; when it
        is read, if a column isn't there or a file is broken.
      ImportError: if pyarrow isn't installed; the message says how to install it.
    """
    with needed("read_dataset", "pyarrow", "text"):
        import pyarrow  # noqa: F401
    if isinstance(paths, str | Path) and Path(paths).is_dir():
        files = _choose(Path(paths), split)
    else:
        check(split is None, "split", split, "None where files are given")
        files = files_of(paths, ("parquet", "arrow"))

    def read() -> Iterator[Document]:
        for path in files:
            for row in _table(path, [field] if isinstance(field, str) else list(field)):
                try:
                    document = pick(row, field)
                except ValueError as error:
                    raise ValueError(f"a row of {path} can't be used: {error}") from error
                if document is not None:
                    yield document

    return Documents(read)


def read_tfds(
    name: str | Path,
    split: str = "train",
    field: Field = "text",
    data_dir: str | Path | None = None,
) -> Documents:
    """Documents from TensorFlow Datasets; TensorFlow itself isn't needed.

    Args:
      name: the name of a dataset, which is downloaded and prepared the first time; or the folder
        of a prepared one, with its `dataset_info.json`.
      split: the split, such as `train` or `train[:10%]`.
      field: see `Field`.
      data_dir: the folder of all datasets; None is TFDS's default.

    Raises:
      ValueError: if there is no such dataset, split or field.
      ImportError: if tensorflow_datasets isn't installed; the message says how to install it.
    """
    with needed("read_tfds", "tensorflow_datasets", "tfds"):
        import tensorflow_datasets as tfds
    if Path(name).is_dir():
        builder = tfds.builder_from_directory(name)
    else:
        try:
            # array_record is the format that is read without TensorFlow
            builder = tfds.builder(str(name), data_dir=data_dir, file_format="array_record")
        except tfds.core.registered.DatasetNotFoundError as error:
            raise ValueError(
                f"name is {str(name)!r}, but must be a dataset of TensorFlow Datasets or the "
                "folder of a prepared one"
            ) from error
        builder.download_and_prepare()
    for wanted in [field] if isinstance(field, str) else field:
        there = sorted(builder.info.features)
        check(wanted in there, "field", wanted, f"one of {there}")
    source = builder.as_data_source(split=split)

    def read() -> Iterator[Document]:
        for i in range(len(source)):
            document = pick(source[i], field)
            if document is not None:
                yield document

    return Documents(read)


def _choose(folder: Path, split: str | None) -> list[Path]:
    """The data files of one split of a dataset's folder, in order."""
    groups: dict[tuple[str, str], list[Path]] = {}  # by configuration and split
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if any(p.startswith((".", "cache-")) for p in inside.parts):
            continue  # the own files of `datasets`
        if path.suffix not in (".parquet", ".arrow") or not path.is_file():
            continue
        name = re.sub(r"-\d{5}-of-\d{5}(-[0-9a-f]+)?$", "", path.stem)
        above = [p for p in inside.parts[:-1] if p != "data"]
        if name == "data" or name.isdigit():  # train/data-00000-of-00001.arrow, train/0000.parquet
            name = above.pop() if above else ""
        groups.setdefault(("/".join(above), name), []).append(path)
    check(bool(groups), "folder", str(folder), "one with files *.parquet or *.arrow")
    configurations = sorted({c for c, _ in groups})
    if len(configurations) > 1:
        raise ValueError(
            f"folder is {str(folder)!r}, which has several configurations, but must be that of "
            f"one: {configurations}"
        )
    splits = [name for _, name in groups]
    # names of a cached dataset's files begin with its own: wikitext-train.arrow
    fits = [s for s in splits if split is None or s == split or s.endswith(f"-{split}")]
    check(len(fits) == 1, "split", split, f"one of {splits}")
    return groups[configurations[0], fits[0]]


def _table(path: Path, names: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of a parquet or arrow file, with the columns `names`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def batches() -> Iterator[Any]:
        if path.suffix == ".parquet":
            file = pq.ParquetFile(path)
            present(file.schema_arrow.names)
            yield from file.iter_batches(batch_size=1024, columns=names)
            return
        with pa.memory_map(str(path)) as source:
            whole = source.read(6) == b"ARROW1"  # else a stream, which is what `datasets` writes
            source.seek(0)
            if whole:
                reader = pa.ipc.open_file(source)
                present(reader.schema.names)
                for i in range(reader.num_record_batches):
                    yield reader.get_batch(i).select(names)
            else:
                reader = pa.ipc.open_stream(source)
                present(reader.schema.names)
                for batch in reader:
                    yield batch.select(names)

    def present(columns: list[str]) -> None:
        for name in names:
            check(name in columns, f"column of {path}", name, f"one of {columns}")

    try:
        for batch in batches():
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} can't be read: {str(error).splitlines()[0]}") from error
