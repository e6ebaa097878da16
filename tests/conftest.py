"""Eight host devices for the sharding tests, and what makes compiling, most of the work, cheap."""

import ctypes
import gc
import os
import sys
from functools import cache
from importlib.metadata import version

flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in flags:
    flags += " --xla_force_host_platform_device_count=8"
    # eight devices meet in a collective, on however few and busy cores; after 40 s, XLA's own
    # limit, it ends the process
    flags += " --xla_cpu_collective_call_terminate_timeout_seconds=600"
    if version("jaxlib").startswith("0.10."):  # later ones don't know the flag, and end at once
        # the older emitter of fused loops is a few times as fast, if not what it writes; and for
        # modules as small as these, cutting each up for several threads is work for nothing
        flags += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        # the runtime starts what doesn't depend on each other in any order, collectives too, and
        # the devices then wait in different ones for ever; it happened with this scheduler alone
        flags += " --xla_cpu_enable_concurrency_optimized_scheduler=false"
    os.environ["XLA_FLAGS"] = flags.strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # of each operation, in lowering
gc.set_threshold(200_000, 20, 100)  # tracing makes objects by the million that all live on

import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

import jax  # noqa: E402

jax.config.update("jax_compilation_cache_dir", str(Path(tempfile.gettempdir()) / "jcl-test-cache"))
# what is written down costs as much again, and most modules are met once
jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)

import pytest  # noqa: E402
from jax._src.interpreters import mlir  # noqa: E402

MAPS = Path("/proc/self/maps")
BY_HAND = {"network", "gpu", "pairs", "whole"}

if hasattr(mlir, "make_ir_context"):
    # what MLIR needs to know before it can write a module down takes longer to make than most
    # modules here take to write, so that those of a file of tests share it
    mlir.make_ir_context = cache(mlir.make_ir_context)


@pytest.fixture(scope="module", autouse=True)
def _forgotten():
    """Compiled code goes before it is too much: each piece takes maps of memory, which a process of
    thousands of tests runs out of (vm.max_map_count, 65,530), and then reading one more is a crash.
    What is free then goes back to the system, for glibc keeps half of 6 GB, and two workers and
    the processes that they start share a machine.
    """
    yield
    if hasattr(mlir, "make_ir_context"):
        mlir.make_ir_context.cache_clear()
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > 15_000:
        jax.clear_caches()
    if sys.platform == "linux" and resident() > 2 * 2**30:
        ctypes.CDLL(None).malloc_trim(0)


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no core waits for another in the end."""
    items.sort(key=lambda item: "tpu" not in item.path.parts)


@pytest.hookimpl(tryfirst=True)  # before any fixture is made, for one may download
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fails a test that is quick and also run by hand: `-m quick` on the command line replaces the
    selection in pyproject.toml, which would leave it out.
    """
    marks = {mark.name for mark in item.iter_markers()}
    if "quick" in marks and marks & BY_HAND:
        both = " and ".join(sorted(marks & BY_HAND))
        pytest.fail(f"{item.name} is marked quick and {both}, but must be only one of them", False)
