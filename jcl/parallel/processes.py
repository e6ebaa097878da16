"""Several processes that run one program: how they start, agree, and notice that one is gone.

JAX's own answer to a process that is lost is to wait for it, or to abort with a trace of C++. Here
process 0 keeps a connection to every other. The system closes a killed process's connections at
once; a machine that is gone is silent. Either ends the rest with one sentence and exit code 76.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jcl.method import check

LOST = 76
"""The exit code of a process whose peer is gone."""
BEAT, SILENCE = 5.0, 40.0
"""Seconds between signs of life, and without any until a process counts as lost."""
GRACE = 30.0
"""Seconds that a process may take to end by itself where another ends early."""


def has_peers() -> bool:
    """Whether there are other processes than this one."""
    return jax.process_count() > 1


def axes_or_all(named: str | None) -> str | None:
    """A mesh's axes as they are named, or else the devices of all processes, where there are more
    than one, along `data`.
    """
    return "data=-1" if named is None and has_peers() else named


def is_leader() -> bool:
    """Whether this is process 0, which alone writes logs and reports."""
    return jax.process_index() == 0


def start(text: str, patience: float = 300.0) -> None:
    """Makes this process one of several. It must be called before anything is computed.

    Args:
      text: `auto`, where a TPU pod, Slurm, Kubernetes or Open MPI tells how many processes there
        are and which this is; or `HOST:PORT,PROCESSES,INDEX`, process 0 listening at HOST:PORT.
      patience: seconds to wait for the others.

    Raises:
      ValueError: if `text` is written otherwise, or is `auto` where none of these is found.
      OSError: if the others can't be reached.
    """
    # SIGTERM is ours, see `signals`
    jax.config.update("jax_enable_preemption_service", False)
    wait = max(1, round(patience))
    if text == "auto":
        try:
            jax.distributed.initialize(initialization_timeout=wait)
        except ValueError as error:
            raise ValueError(
                "distributed is 'auto', but there is no TPU pod, Slurm, Kubernetes or Open MPI job "
                f"around ({str(error).strip()}); give it as HOST:PORT,PROCESSES,INDEX"
            ) from error
        except RuntimeError as error:
            raise OSError(_unreached("the others", patience, error)) from error
    else:
        host, port, count, index = _parsed(text)
        _reach(host, port, index, patience)
        try:
            jax.distributed.initialize(
                f"{host}:{port}", count, index, cluster_detection_method="deactivate",
                initialization_timeout=wait,
            )  # fmt: skip
        except RuntimeError as error:
            raise OSError(_unreached(f"all {count} processes", patience, error)) from error
    if has_peers():
        _watch.begin(patience)


def _unreached(whom: str, patience: float, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0].partition(". ")[0]
    return f"{whom} didn't come together within {patience:.0f} s: {reason}"


def _parsed(text: str) -> tuple[str, int, int, int]:
    found = re.fullmatch(r"(.+):(\d+),(\d+),(\d+)", text)
    wanted = "auto, or HOST:PORT,PROCESSES,INDEX such as 10.0.0.1:8476,4,0"
    if found is None:
        raise ValueError(f"distributed is {text!r}, but must be {wanted}")
    port, count, index = (int(x) for x in found.groups()[1:])
    check(0 < port < 65536, "distributed's port", port, "from 1 to 65535")
    check(count >= 1, "distributed's number of processes", count, "at least 1")
    check(index < count, "distributed's index", index, f"from 0 to {count - 1}")
    return found[1], port, count, index


def _reach(host: str, port: int, index: int, patience: float) -> None:
    """Waits until process 0 listens, or makes sure that it can: JAX would only say so in C++."""
    if index == 0:
        try:
            socket.create_server(("", port)).close()
        except OSError as error:
            raise OSError(f"process 0 can't listen at port {port}: {error.strerror}") from error
        return
    until = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise OSError(
                    f"process {index} can't reach process 0 at {host}:{port} within "
                    f"{patience:.0f} s ({error.strerror or error}); is it started, and is that its "
                    "address?"
                ) from error
            time.sleep(0.2)


def largest_of_all(number: int) -> int:
    """The largest of the numbers that the processes give."""
    if not has_peers():
        return number
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def from_leader(read: Callable[[], Any]) -> Any:
    """Calls `read` on process 0 alone and returns its result, sent as JSON, on all processes.

    Raises:
      ValueError: on all processes, if `read` raises ValueError or OSError on process 0.
    """
    if not has_peers():
        return read()
    told: dict[str, Any] = {}
    if is_leader():
        try:
            told = {"value": read()}
        except (ValueError, OSError) as error:
            told = {"error": str(error)}
    told = json.loads(broadcast(np.frombuffer(json.dumps(told).encode(), np.uint8)).tobytes())
    if "error" in told:
        raise ValueError(told["error"])
    return told["value"]


def broadcast(mine: np.ndarray) -> np.ndarray:
    """The bytes [n] that process 0 has, on all."""
    from jax.experimental import multihost_utils

    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(mine))))
    padded = np.zeros(size, np.uint8)
    padded[: len(mine[:size])] = mine[:size]
    return np.asarray(multihost_utils.broadcast_one_to_all(padded))


def check_same(what: str, mine: Any) -> None:
    """Makes sure that all processes were given the same dict `mine`, which `what` names.

    Raises:
      ValueError: on all of them, if one differs from process 0.
    """
    if has_peers():
        theirs = from_leader(lambda: mine)
        mine = json.loads(json.dumps(mine))
        differ = sorted(k for k in mine if mine[k] != theirs.get(k))
        who = largest_of_all(jax.process_index() if differ else 0)
        if who:
            named = f" ({', '.join(differ)})" if differ else ""
            raise ValueError(f"process {who} has another {what} than process 0{named}")


class _Watch:
    """The connections by which processes see that the others live; none with a single process.

    What is said: `.` lives, `!` is done, `E` ends early, `L3;` process 3 is lost.
    """

    def __init__(self) -> None:
        self.peers: dict[socket.socket, int] = {}
        self.done: set[int] = set()
        self.failed: dict[int, float] = {}
        self.heard: dict[int, float] = {}
        self.watching = self.ending = False

    def begin(self, patience: float) -> None:
        """Connects everyone with process 0, and begins to listen."""
        from jax._src.distributed import global_state  # which alone knows what `auto` has found

        assert global_state.coordinator_address is not None
        host = global_state.coordinator_address.rpartition(":")[0].strip("[]")
        if is_leader():
            server = socket.create_server(("", 0), backlog=jax.process_count())
            token = secrets.token_hex(8)
            from_leader(lambda: [server.getsockname()[1], token])
            server.settimeout(patience)
            with server:
                while len(self.peers) < jax.process_count() - 1:
                    other, _ = server.accept()
                    other.settimeout(5)
                    with contextlib.suppress(OSError, ValueError):  # a stranger
                        said, index = other.recv(64).decode().split(";")
                        if said == token:
                            self.peers[other] = int(index)
        else:
            port, token = from_leader(lambda: None)
            first = socket.create_connection((host, port), timeout=patience)
            first.sendall(f"{token};{jax.process_index()}".encode())
            self.peers[first] = 0
        self.heard = dict.fromkeys(self.peers.values(), time.monotonic())
        self.watching = True
        _hold_aborts()
        threading.Thread(target=self._listen, daemon=True, name="jcl-watch").start()

    def say(self, text: str) -> None:
        """Tells all that this process is connected with; what can't be told needn't be."""
        for peer in list(self.peers):
            with contextlib.suppress(OSError):
                peer.sendall(text.encode())

    def _listen(self) -> None:
        selector = selectors.DefaultSelector()
        for other in self.peers:
            other.settimeout(5)
            selector.register(other, selectors.EVENT_READ)
        beaten = time.monotonic()
        while True:
            for key, _ in selector.select(timeout=1.0):
                peer: Any = key.fileobj
                index = self.peers[peer]
                try:
                    said = peer.recv(4096).decode()
                except OSError:
                    said = ""
                self.heard[index] = time.monotonic()
                if "!" in said:
                    self.done.add(index)
                if "E" in said:
                    self.failed.setdefault(index, time.monotonic())
                if lost := re.search(r"L(\d+);", said):
                    self._end(int(lost[1]))
                if not said:
                    selector.unregister(peer)
                    del self.peers[peer]
                    if index not in self.done and index not in self.failed:
                        self._end(index)
            now = time.monotonic()
            for index, when in self.failed.items():
                if now - when > GRACE:
                    self._end(index)
            for index in self.peers.values():
                if now - self.heard[index] > SILENCE:
                    self._end(index)
            if now - beaten > BEAT:
                self.say(".")
                beaten = now

    def _end(self, lost: int) -> None:
        if self.ending:  # with an error of its own
            return
        how = "ended early" if lost in self.failed else "is lost"
        text = (
            f"jcl: process {lost} of {jax.process_count()} {how}, so process "
            f"{jax.process_index()} ends too; start all of them again (jcl run with --resume), to "
            "go on from the last checkpoint\n"
        )
        os.write(2, text.encode())
        if is_leader():
            self.say(f"L{lost};")
            time.sleep(1.0)  # for the others to hear it before JAX's own connection is closed
        os._exit(LOST)


_watch = _Watch()


def _hold_aborts() -> None:
    """Lets an abort wait for six seconds, the number of its signal, in which `_Watch` ends us.

    JAX's connection to process 0 aborts as soon as that is killed. The handler is C's `sleep`
    itself: Python has no say in a thread of C++ that aborts.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library than that of Unix
        libc = ctypes.CDLL(None)
        libc.signal.restype = ctypes.c_void_p
        libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
        libc.signal(int(signal.SIGABRT), ctypes.cast(libc.sleep, ctypes.c_void_p))


def is_watched() -> bool:
    """Whether this is one of several processes that `start` has begun."""
    return _watch.watching


def exit_if_peer_lost() -> None:
    """After an error, ends this process as the watcher does if a lost peer was the cause."""
    if _watch.watching:
        time.sleep(3.0)


def finish(code: int = 0) -> None:
    """Says to the others that this process has come to its end.

    Args:
      code: 0, where all have; else this ends the process with it, and those that don't end by
        themselves follow.
    """
    if not _watch.watching:
        return
    if code == 0:
        _watch.say("!")
        return
    _watch.ending = True
    sys.stdout.flush()
    sys.stderr.flush()
    _watch.say("E")
    # each stays until the others are at their end too, and process 0, with which JAX's connections
    # go, until they are gone
    until = time.monotonic() + GRACE + 2 * is_leader()
    while _watch.peers and time.monotonic() < until and (is_leader() or not _watch.failed):
        time.sleep(0.05)
    os._exit(code)
