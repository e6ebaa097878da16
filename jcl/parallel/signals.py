"""Signals are noted, and whoever works looks at the note where it is safe to stop.

A handler that raises does so inside whatever Python runs just then, and some of that goes on as if
nothing had come: JAX swallows it in its garbage collector's callback, and in reading a compiled
function from its cache. So the handlers here raise nothing. A command, whose process is its own,
has a thread beside it that the system wakes at once, even while the main thread compiles: it ends
the process where there is nothing to save, or where no safe point is reached in time.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from jcl.parallel import processes

PREEMPTED, INTERRUPTED = 75, 130
"""Exit codes: after SIGTERM and after Ctrl-C."""
GRACE = 50.0
"""Seconds to a safe point, at least: less than the 60 that the launchers under tpu/ give."""
_CODES = {signal.SIGTERM: PREEMPTED, signal.SIGINT: INTERRUPTED}
_SENTENCES = {signal.SIGTERM: "told to stop by SIGTERM", signal.SIGINT: "stopped by Ctrl-C"}


class Preempted(RuntimeError):
    """SIGTERM came; where there was something to save it is saved."""


class _Note:
    """The signals that came while this was their handler, and what is to become of the process."""

    def __init__(self, owner: bool) -> None:
        """`owner` says whether the process may be ended, rather than only the work in it."""
        self.owner = owner
        self.found: list[int] = []
        self.heeded = False
        self.held = False
        self.again = ""
        self.passed = time.monotonic()
        self.gap = 0.0

    def __call__(self, number: int, frame: Any) -> None:
        """Notes a signal. A second Ctrl-C stops at once: an owner is ended by `watch`."""
        if number == signal.SIGINT and number in self.found and not self.owner:
            raise KeyboardInterrupt
        self.found.append(number)

    def pass_by(self) -> None:
        """Remembers that a safe point was reached, and how long after the one before."""
        now = time.monotonic()
        self.passed, self.gap = now, now - self.passed

    @property
    def grace(self) -> float:
        """Seconds until a safe point: none where nothing is lost, and enough for a long chunk."""
        return max(GRACE, 2 * self.gap) if self.held or processes.is_watched() else 0.0

    def watch(self, pipe: int) -> None:
        """Ends the process when it is time to; `pipe` is read for numbers of signals."""
        seen: list[int] = []
        deadline = 0.0
        while True:
            waits = bool(seen) and not self.heeded
            left = max(0.0, deadline - time.monotonic()) if waits else None
            if select.select([pipe], [], [], left)[0]:
                numbers = os.read(pipe, 256)
                if not numbers:
                    os.close(pipe)
                    return
                for number in numbers:
                    if number == signal.SIGINT and number in seen and self.grace:
                        self._end(number, " twice, so it ended at once")
                    if number in _CODES and not seen:
                        deadline = time.monotonic() + self.grace
                    if number in _CODES:
                        seen.append(number)
            if seen and not self.heeded and time.monotonic() >= deadline:
                late = f", but came to no point to save at within {self.grace:.0f} s"
                self._end(seen[0], late if self.grace else "")

    def _end(self, number: int, how: str) -> None:
        again = f"; what was saved before is whole, {self.again}" if self.again else ""
        if os.isatty(1):
            os.write(1, b"\x1b[?25h")  # the cursor, which a line of progress hides
        os.write(2, f"jcl: {_SENTENCES[signal.Signals(number)]}{how}{again}\n".encode())
        os._exit(_CODES[signal.Signals(number)])


def _current() -> _Note | None:
    """The note that is the handler of signals now, if there is one."""
    handler: Any = signal.getsignal(signal.SIGTERM)
    return handler if isinstance(handler, _Note) else None


@contextlib.contextmanager
def _handling(note: _Note) -> Iterator[None]:
    """Has signals noted, and then handled as before."""
    before = {number: signal.signal(number, note) for number in _CODES}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _in_main_thread() -> bool:
    """Whether this is the main thread, which alone may set handlers."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def take_over() -> Iterator[None]:
    """Handles signals for a command whose process is its own; outside the main thread does nothing.

    SIGTERM and SIGINT end the process at once, with a sentence and the exit code, until `hold`.
    """
    if not _in_main_thread():
        yield
        return
    note = _Note(owner=True)
    pipe, wakes = os.pipe()
    os.set_blocking(wakes, False)
    threading.Thread(target=note.watch, args=(pipe,), daemon=True, name="jcl-signals").start()
    before = signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    try:
        with _handling(note):
            yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(wakes)  # which ends the thread


def hold(again: str) -> None:
    """From here on a command that is told to stop does so at a safe point, and saves.

    One that comes to none within `GRACE`, or twice the time between the last two if that is more,
    is ended; so it is by a second Ctrl-C.

    Args:
      again: how to go on after that, as the end of a sentence.
    """
    note = _current()
    if note is not None:
        note.held, note.again, note.passed = True, again, time.monotonic()


@contextlib.contextmanager
def note() -> Iterator[None]:
    """Notes signals for the time of a loop that calls `stop`; a second Ctrl-C stops at once.

    Where a command notes them already its note is shared. Outside the main thread, which alone may
    handle signals, nothing is changed.

    Raises:
      KeyboardInterrupt: in the end, if a Ctrl-C came after the last `stop`.
      Preempted: likewise after SIGTERM.
    """
    if _current() is not None or not _in_main_thread():
        yield
        return
    mine = _Note(owner=False)
    with _handling(mine):
        yield
    _raise(_number(mine))


def _number(note: _Note | None) -> int:
    """2 after a Ctrl-C, 1 after SIGTERM, 0 if nothing came."""
    if note is None or not note.found:
        return 0
    return 2 if signal.SIGINT in note.found else 1


def _raise(number: int) -> None:
    if number:
        raise KeyboardInterrupt if number == 2 else Preempted("told to stop by SIGTERM")


def stop(save: Callable[[], None] = lambda: None) -> None:
    """A safe point: ends the work, on all processes alike, if a signal was noted on any.

    Args:
      save: what is to be done first, on all.

    Raises:
      KeyboardInterrupt: after SIGINT.
      Preempted: after SIGTERM.
    """
    note = _current()
    if note is not None:
        note.pass_by()
    number = processes.largest_of_all(_number(note))
    if number:
        if note is not None:
            note.heeded = True
        save()
        processes.largest_of_all(0)  # none leaves while another needs it
        _raise(number)


def look() -> None:
    """A safe point of what a process does alone; of several, process 0 finishes what it writes.

    Raises:
      KeyboardInterrupt: after SIGINT.
      Preempted: after SIGTERM.
    """
    if not processes.is_watched():
        note = _current()
        if note is not None:
            note.pass_by()
            note.heeded = bool(note.found)
        _raise(_number(note))
