"""How far a run in Python is: `jcl.fit(..., on_event=jcl.progress())`.

In a terminal it is a bar of rich's, in a notebook a bar of plain characters, and elsewhere, such as
in a file or a pipe, a line every ten seconds.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

import numpy as np

EVERY = 10.0
"""Seconds between lines where there is neither a terminal nor a notebook."""
WIDTH = 24
"""Characters of a notebook's bar."""
WIDE = 8
"""How many scores a line shows at most."""


class _Display(Protocol):
    def bar(self, step: int, steps: int, facts: str) -> None: ...
    def line(self, text: str) -> None: ...
    def close(self) -> None: ...


def progress(title: str = "") -> Progress:
    """What shows a run's events while it goes on; `fit` calls it, and closes it in the end.

    Args:
      title: what stands before them.
    """
    return Progress(title)


class Progress:
    """Shows the events of `jcl.fit` in the way that fits where it is."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.display: _Display | None = None

    def __call__(self, event: dict[str, Any]) -> None:
        """Takes an event."""
        if self.display is None:
            self.display = _display()
            if self.title:
                self.display.line(self.title)
        if event["kind"] == "progress":
            self.display.bar(event["step"], event["steps"], facts(event))
        elif event["kind"] == "scores":
            when = f"after {event['name']}" if event["stage"] else "before"
            self.display.line(f"{when}: {_scores(event['scores'])}")
        elif event["kind"] == "evaluation":
            best = " (best)" if event["best"] else ""
            self.display.line(f"at step {event['step']}: {_scores(event['scores'])}{best}")
        elif event["kind"] == "diverged":
            self.display.line(f"member {event['member']} diverged at step {event['step']}")

    def close(self) -> None:
        """Leaves the screen as it is to stay; another run may be shown afterwards."""
        if self.display is not None:
            self.display.close()
            self.display = None


def facts(event: dict[str, Any]) -> str:
    """A `progress` event in words."""
    left = round(event["seconds_left"])
    rate = event.get("learning_rate")
    scalars = event.get("scalars", {})
    said = [
        f"{event['name']}",
        f"loss {event['loss']:.3f}",
        *(f"{name} {value:.3g}" for name, value in scalars.items()),
        *([] if rate is None else [f"learning rate {rate:.3g}"]),
        f"{event['examples_per_second']:,.0f} examples/s",
        f"{left // 60}:{left % 60:02} left",
    ]
    return " · ".join(said)


def _scores(scores: Any) -> str:
    """The mean over members of each task's score, of those that haven't diverged."""
    rows = np.asarray(scores, float).reshape(-1, np.shape(scores)[-1])
    well = np.isfinite(rows).all(axis=1)
    mean = rows[well].mean(axis=0) if well.any() else rows[0]
    return "  ".join(f"{x:.3f}" for x in mean[:WIDE]) + ("  …" if len(mean) > WIDE else "")


def _display() -> _Display:
    if _in_notebook():
        return _Notebook()
    return _Terminal() if sys.stdout.isatty() else _Lines()


def _in_notebook() -> bool:
    """Whether this is a kernel of Jupyter's; IPython in a terminal isn't."""
    shell = sys.modules.get("IPython")
    found = None if shell is None else shell.get_ipython()
    return type(found).__name__ == "ZMQInteractiveShell"


class _Lines:
    def __init__(self) -> None:
        self.said = time.monotonic()

    def bar(self, step: int, steps: int, facts: str) -> None:
        if time.monotonic() - self.said >= EVERY:
            self.said = time.monotonic()
            self.line(f"step {step}/{steps} · {facts}")

    def line(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        pass


class _Notebook:
    def __init__(self) -> None:
        self.shown = 0

    def bar(self, step: int, steps: int, facts: str) -> None:
        done = WIDTH * step // steps
        text = f"[{'#' * done}{'.' * (WIDTH - done)}] {step}/{steps} · {facts}"
        print("\r" + text.ljust(self.shown), end="", flush=True)
        self.shown = len(text)

    def line(self, text: str) -> None:
        print(("\r" if self.shown else "") + text.ljust(self.shown), flush=True)
        self.shown = 0

    def close(self) -> None:
        if self.shown:
            print(flush=True)
            self.shown = 0


class _Terminal:
    def __init__(self) -> None:
        from rich import progress  # which `import jcl` doesn't load
        from rich.markup import escape

        from jcl.report.screen import console

        self.escape = escape
        columns = progress.BarColumn(bar_width=16), progress.TextColumn("{task.fields[facts]}")
        self.rich = progress.Progress(*columns, console=console())
        self.task = self.rich.add_task("", total=None, facts="compiling")
        self.rich.start()

    def bar(self, step: int, steps: int, facts: str) -> None:
        shown = self.escape(f"{step}/{steps} · {facts}")
        self.rich.update(self.task, total=steps, completed=step, facts=shown)

    def line(self, text: str) -> None:
        self.rich.console.print(self.escape(text))

    def close(self) -> None:
        self.rich.stop()
