"""Documents as one array of tokens, which is made once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jcl.data.bounds import range_of
from jcl.data.chats import joined, render
from jcl.data.documents import Document
from jcl.data.encode import Passage, check_tokenizer, encode, largest_id
from jcl.data.registry import caches
from jcl.records import record

_FORMAT = 1  # the version of the cached files; another one makes them anew
_BATCH = 1 << 20  # how many characters are tokenised at once, with one progress event

OnEvent = Callable[[dict[str, Any]], None]


@record
class Tokens(NamedTuple):
    """Documents one after another, on disk (memory-mapped) or in memory.

    Args:
      tokens: [N], in the smallest unsigned dtype that holds the vocabulary.
      bytes: int32 [N], how many bytes of text each token stands for; they add up to the document's.
      learn: bool [N], whether a token is learned: False in prompts.
      offsets: int64 [documents + 1], where each document begins, and N.
      largest: the largest id among `tokens`, noted as they were made so that nobody has to read
        them for it; None if nobody noted it.
    """

    tokens: np.ndarray
    bytes: np.ndarray
    learn: np.ndarray
    offsets: np.ndarray
    largest: int | None = None


_ARRAYS = ("tokens", "bytes", "learn", "offsets")


def largest_token(tokens: Tokens) -> int:
    """The largest id, which is read only if it wasn't noted as the tokens were made."""
    found = range_of(tokens.tokens) if tokens.largest is None else (0, tokens.largest)
    return 0 if found is None else found[1]


def tokenise(
    documents: Iterable[Document],
    tokenizer: Any = None,
    *,
    cache: bool = True,
    on_event: OnEvent | None = None,
) -> Tokens:
    """The tokens of documents, each ended by the tokenizer's end-of-document token if it has one.

    They are kept in a folder of `cache_folder()` that is named by the sha256 of the tokenizer's and
    the documents' content, so that another call with the same reads the documents only to hash
    them. The folder appears when it is complete; interrupted work leaves none and begins anew. A
    broken folder is made again. Nothing deletes old folders; delete those you no longer need.

    Args:
      documents: texts, `(prompt, answer)` pairs or conversations; blank ones are dropped. They are
        read twice, once to hash them; an iterator, which can't be, is held in memory.
      tokenizer: a fast tokenizer of transformers; None takes the UTF-8 bytes.
      cache: False keeps all in memory and writes nothing.
      on_event: called with `{"kind": "tokenise", "documents": so far, "tokens": so far}`.

    Raises:
      ValueError: if all documents are blank, or one, named by its number, isn't a document.
      OSError: if the cache can't be written; the message says what to do.

    >>> tokens = tokenise(["ab", "", "c"], cache=False)
    >>> tokens.tokens, tokens.offsets
    (array([97, 98, 99], dtype=uint8), array([0, 2, 3]))
    """
    check_tokenizer(tokenizer)
    if isinstance(documents, str | bytes | Mapping):
        raise ValueError(f"documents is {type(documents).__name__}, but must be many, a list, say")
    emit = on_event or (lambda event: None)
    if not cache:
        parts = list(_parts(documents, tokenizer, emit))
        arrays: Any = (np.concatenate(p) for p in zip(*parts, strict=True))
        return _noted(Tokens(*arrays))
    if isinstance(documents, Iterator):
        documents = list(documents)
    folder = cache_folder() / _key(documents, tokenizer)
    found = _load(folder)
    if found is None:
        _save(folder, _parts(documents, tokenizer, emit))
        found = _load(folder)
        assert found is not None
    return found


def cache_folder() -> Path:
    """The folder in which tokens are kept."""
    return caches.folder("tokens")


def _noted(tokens: Tokens) -> Tokens:
    return tokens._replace(largest=int(tokens.tokens.max(initial=0)))


def _passage(document: Any, number: int, tokenizer: Any) -> Passage | None:
    """A document as a passage, None if it is blank."""
    if isinstance(document, str):
        return Passage(document) if document.strip() else None
    if isinstance(document, tuple) and [type(x) for x in document] == [str, str]:
        return joined(*document) if document[1].strip() else None
    if isinstance(document, list | tuple) and all(isinstance(m, Mapping) for m in document):
        try:
            return render(tokenizer, document) if document else None
        except ValueError as error:
            raise ValueError(f"document {number}: {error}") from error
    raise ValueError(
        f"document {number} is {type(document).__name__}, but must be a text, a (prompt, answer) "
        "or a list of messages"
    )


def _parts(
    documents: Iterable[Document], tokenizer: Any, emit: OnEvent
) -> Iterator[tuple[np.ndarray, ...]]:
    """The arrays of `Tokens` in parts: first empty ones with the first offset, then by batches."""
    kind = np.min_scalar_type(largest_id(tokenizer))
    nothing = (np.zeros(0, kind), np.zeros(0, np.int32), np.zeros(0, bool))
    done = total = 0
    yield *nothing, np.zeros(1, np.int64)

    def part(passages: list[Passage]) -> tuple[np.ndarray, ...]:
        nonlocal done, total
        encoded = [e for e in encode(tokenizer, passages) if len(e.tokens)]
        ends = total + np.cumsum([len(e.tokens) for e in encoded], dtype=np.int64)
        done, total = done + len(encoded), int(ends[-1]) if len(ends) else total
        emit({"kind": "tokenise", "documents": done, "tokens": total})
        tokens, sizes, learn = map(np.concatenate, zip(nothing, *encoded, strict=True))
        return tokens.astype(kind), sizes, learn, ends

    waiting: list[Passage] = []
    characters = 0
    for number, document in enumerate(documents):
        passage = _passage(document, number, tokenizer)
        if passage is None:
            continue
        waiting.append(passage)
        characters += len(passage.text)
        if characters >= _BATCH or len(waiting) == 4096:
            yield part(waiting)
            waiting, characters = [], 0
    if waiting:
        yield part(waiting)
    if total == 0:
        raise ValueError("documents is empty or all blank, but must hold some text")


def _key(documents: Iterable[Document], tokenizer: Any) -> str:
    """The sha256 of all that determines the tokens, in hexadecimal."""
    digest = hashlib.sha256(json.dumps(_identity(tokenizer), sort_keys=True).encode())
    for number, document in enumerate(documents):
        try:
            text = json.dumps(document)
        except (TypeError, ValueError) as error:
            raise ValueError(f"document {number} holds what JSON can't: {error}") from error
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()


def _identity(tokenizer: Any) -> list[Any]:
    if tokenizer is None:
        return [_FORMAT, None]
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content.pop("padding"), content.pop("truncation")  # the last call's, not the tokenizer's own
    return [_FORMAT, content, tokenizer.eos_token_id, tokenizer.chat_template]


def _load(folder: Path) -> Tokens | None:
    """The tokens in a folder, memory-mapped; None if there are none or they can't be right."""
    try:
        found = Tokens(*(np.load(folder / f"{n}.npy", "r", allow_pickle=False) for n in _ARRAYS))
        noted = folder / "largest.npy"  # which older folders lack
        largest = None
        if noted.exists():
            largest = int(np.load(noted, allow_pickle=False).reshape(()))
        found = found._replace(offsets=np.array(found.offsets), largest=largest)
    except (OSError, ValueError, EOFError):
        return None
    tokens, sizes, learn, offsets = found[:4]
    kinds = sizes.dtype == np.int32 and learn.dtype == bool and offsets.dtype == np.int64
    whole = all(x.shape == (len(tokens),) for x in found[:3]) and offsets.ndim == 1
    if not (kinds and whole and tokens.dtype.kind == "u" and len(offsets) >= 2):
        return None
    rising = offsets[0] == 0 and offsets[-1] == len(tokens) and (np.diff(offsets) > 0).all()
    return found if rising else None


def _save(folder: Path, parts: Iterator[tuple[np.ndarray, ...]]) -> None:
    """Writes the arrays as they come, never holding all; the folder appears when it is complete."""
    with _writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    try:
        with ExitStack() as stack:
            files = [stack.enter_context((made / f"{n}.npy").open("wb")) for n in _ARRAYS]
            largest = 0
            counts = [0] * len(files)
            for number, part in enumerate(parts):
                largest = max(largest, int(part[0].max(initial=0)))
                for i, (file, array) in enumerate(zip(files, part, strict=True)):
                    with _writing(folder):
                        if number == 0:
                            _header(file, array.dtype, 0)
                        file.write(array.tobytes())
                    counts[i] += len(array)
            for file, array, count in zip(files, part, counts, strict=True):
                with _writing(folder):
                    file.seek(0)
                    _header(file, array.dtype, count)
                    file.flush()
                    os.fsync(file.fileno())
        with _writing(folder):
            np.save(made / "largest.npy", np.int64(largest))
        if _load(folder) is None:  # else another process was quicker
            shutil.rmtree(folder, ignore_errors=True)
            with _writing(folder):
                made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Makes an error in writing say what to do about it."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"tokens can't be kept in {folder.parent}: {error.strerror}; set JCL_CACHE to a folder "
            "with room, or cache=False"
        ) from error


def _header(file: Any, dtype: np.dtype[Any], count: int) -> None:
    """Writes an .npy header; it has room for any `count`, so that it can be overwritten."""
    described = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        file, {"descr": described, "fortran_order": False, "shape": (count,)}
    )
