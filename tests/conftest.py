"""Eight host devices for the sharding tests, and a compilation cache that test runs share."""

import os

flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

import jax  # noqa: E402

jax.config.update("jax_compilation_cache_dir", str(Path(tempfile.gettempdir()) / "jcl-test-cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

import pytest  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def _forgotten():
    """Compiled code goes with its module: each piece takes maps of memory, which a process of
    thousands of tests runs out of (vm.max_map_count), and then reading one more is a crash."""
    yield
    jax.clear_caches()
