"""Takes new files out of a folder as they come, a stage each, and none of them twice."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jcl.method import check
from jcl.parallel import processes, signals
from jcl.runs.life.life import Life, Outcome
from jcl.runs.life.plan import source_of
from jcl.runs.life.rows import ENDINGS, read_rows

STOP = "stop"
"""A file of this name in the folder ends the watch."""


def watch(
    life: Life,
    inbox: str | Path,
    *,
    every: float = 5.0,
    most: int | None = None,
    say: Callable[[str], None] = print,
    **options: Any,
) -> list[Outcome]:
    """Learns each file that comes into a folder as a stage of its own, named by the file.

    A file is taken once its size and time stay the same from one look to the next; who writes it
    under another name first, such as `.march.jsonl`, and renames it is on the safe side. One whose
    content the life has met, under whatever name, isn't taken again; one that can't be read is
    told of and left. It ends when there is a file `stop`, or after a signal.

    Args:
      life: the one that learns.
      inbox: the folder.
      every: seconds between two looks.
      most: after how many stages it ends; None is never.
      say: takes a line for each file.
      options: of `Life.stage`, such as `accept` and `when`.

    Raises:
      ValueError: if there is no such folder, or `every` isn't above 0.
      KeyboardInterrupt: after a Ctrl-C, and `signals.Preempted` after SIGTERM.
    """
    inbox = Path(inbox)
    check(inbox.is_dir(), "inbox", str(inbox), "a folder that is there")
    check(every > 0, "every", every, "above 0")
    before: dict[str, list[int]] = {}
    bad: set[str] = set()
    done: list[Outcome] = []
    with signals.note():
        while (now := processes.from_leader(lambda: _files(inbox))) is not None:
            for path in (inbox / name for name in now if before.get(name) == now[name]):
                source = source_of([path])
                digest = source["files"][0]["sha256"]
                if digest in bad or digest in met(life):
                    continue
                try:
                    rows = read_rows(path, life.settings.task)
                    one = life.stage(_free(life, path), rows, source=source, **options)
                except ValueError as error:
                    bad.add(digest)
                    say(f"{path.name} is left: {error}")
                    continue
                done.append(one)
                said = "learned" if one.accepted else f"not learned, for {one.why}"
                say(f"{path.name}: {said}; average {_mean(one)}")
                if most is not None and len(done) >= most:
                    return done
            before = now
            _wait(every)
    return done


def met(life: Life) -> set[str]:
    """The sums of all files that the life has met, whatever became of them."""
    return {
        file["sha256"] for entry in life.book.entries
        for file in entry.get("source", {}).get("files", ())
    }  # fmt: skip


def _files(inbox: Path) -> dict[str, list[int]] | None:
    """The files of a folder that can be read, with sizes and times; None if it is to be left."""
    if (inbox / STOP).exists():
        return None
    endings = tuple(f".{one}" for one in ENDINGS) + tuple(f".{one}.gz" for one in ENDINGS)
    found = {}
    for path in sorted(inbox.iterdir()):
        if path.is_file() and path.name.endswith(endings) and not path.name.startswith("."):
            about = path.stat()
            found[path.name] = [about.st_size, about.st_mtime_ns]
    return found


def _free(life: Life, path: Path) -> str:
    """A stage's name that isn't taken: the file's, with a number where it came before."""
    stem = "".join("-" if c in "<>=,\n" else c for c in path.name.partition(".")[0]) or "file"
    taken = {stage.name for stage in life.book.stages}
    names = [stem, *(f"{stem}-{i}" for i in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken)


def _mean(one: Outcome) -> str:
    return f"{sum(one.scores.values()) / len(one.scores):.3f}" if one.scores else "as before"


def _wait(seconds: float) -> None:
    """Waits, and looks for signals meanwhile."""
    looks = math.ceil(seconds / 0.2)
    for _ in range(looks):  # as many on all processes, which look together
        signals.stop()
        time.sleep(seconds / looks)
