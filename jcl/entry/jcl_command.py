"""The command `jcl` from its first moment on: importing JAX takes seconds, and a signal may come.

It is installed beside the package, for whatever is imported from inside it imports JAX first.
"""

from __future__ import annotations

import os
import signal
from typing import Any

CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}
"""As `jcl.parallel.signals` has them."""


def main() -> int:
    """Runs the command that was given, and returns its exit code."""
    for number in CODES:
        signal.signal(number, _end)
    from jcl.cli import main as command

    code = command()
    for number in CODES:  # all is done, and what Python tears down need not be
        signal.signal(number, signal.SIG_IGN)
    return code


def _end(number: int, frame: Any) -> None:
    """Ends the process, which has begun nothing as yet."""
    told = "told to stop by SIGTERM" if number == signal.SIGTERM else "stopped by Ctrl-C"
    os.write(2, f"jcl: {told}\n".encode())
    os._exit(CODES[signal.Signals(number)])
