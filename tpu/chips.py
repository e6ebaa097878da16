"""Chips that needn't be here: what they can do, and their compilers, which run anywhere.

Import it before JAX.
"""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

# read when jax and libtpu are loaded: work on this host, look for no pod that it may be part of,
# tolerate another process that has libtpu open, and time no kernels on a GPU that isn't there
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "4")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
if "xla_gpu_autotune_level" not in os.environ.get("XLA_FLAGS", ""):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_autotune_level=0".strip()

from jcl.method import check

GIB = 2**30


class Chip(NamedTuple):
    """What a chip, or a device that is part of one, can do at best, by its maker's word."""

    flops: float
    """bf16, a second."""
    memory: float
    """Bytes, of a TPU's those that its compiler gives to programs."""
    bandwidth: float
    """Of memory, bytes a second."""
    wires: float
    """Bytes a second that it sends over all its links within a slice or a node."""
    devices: int = 1
    """That JAX sees of a chip."""


CHIPS = {
    # cloud.google.com/tpu/docs/v4: 275 TFLOPs, 32 GiB at 1228 GB/s, 2400 Gbps of links
    "v4": Chip(275e12, 30.75 * GIB, 1228e9, 300e9),
    # .../v5e: 197 TFLOPs, 16 GB at 819 GB/s, 400 GB/s of links counted both ways
    "v5e": Chip(197e12, 15.75 * GIB, 819e9, 200e9),
    # .../v5p: 459 TFLOPs, 95 GB at 2765 GB/s, 4800 Gbps of links
    "v5p": Chip(459e12, 95.74 * GIB, 2765e9, 600e9),
    # .../v6e: 918 TFLOPs, 32 GB at 1638 GB/s, 800 GB/s of links counted both ways
    "v6e": Chip(918e12, 31.25 * GIB, 1638e9, 400e9),
    # .../tpu7x: 2307 TFLOPs, 192 GiB at 7380 GB/s, 1200 GB/s of links counted both ways
    "tpu7x": Chip(2307e12, 189.5 * GIB, 7380e9, 600e9, devices=2),
    # NVIDIA H100 SXM data sheet: 989 TFLOPs dense, 80 GB at 3.35 TB/s, NVLink 900 GB/s both ways
    "h100": Chip(989e12, 84942979072, 3350e9, 450e9),
}

H100 = """gpu_device_info {
  name: "NVIDIA H100 80GB HBM3" device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability 9.0a"
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 device_address_bits: 64
  device_memory_size: 84942979072 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_core: 233472 shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""What XLA asks of a GPU that it compiles for: data sheet, and the CUDA guide's limits for 9.0."""


def devices(topology: str) -> tuple[Chip, list[Any]]:
    """A topology's devices, none of which need be here, and what each can do.

    Args:
      topology: such as `v5e:4x4`, `v5p:4x4x4`, or `h100:8`.

    Raises:
      ValueError: if the compiler knows none of that name, or isn't installed.
    """
    from jax.experimental.topologies import get_topology_desc

    kind, _, shape = topology.partition(":")
    ok = kind in CHIPS and re.fullmatch(r"\d+(x\d+)*", shape) is not None
    check(ok, "topology", topology, f"like v5e:4x4 or h100:8, with one of {list(CHIPS)}")
    gpu = kind == "h100"
    # v4's two cores work as one, which is how Cloud lends them; those of others do by themselves
    more: dict[str, Any] = {"chip_config_name": "megacore"} if kind == "v4" else {}
    if gpu:
        more = {"target_config": H100, "topology": f"1x1x{shape}"}
    try:
        there = get_topology_desc("h100" if gpu else topology, "cuda" if gpu else "tpu", **more)
    except (RuntimeError, ValueError, NotImplementedError, ImportError) as error:
        said = " ".join(str(error).split())
        if re.search(r"libtpu|nknown (platform|backend)|not? (in|found|known)", said, re.I):
            gpu_alone = "--no-deps jax-cuda13-plugin=={0} jax-cuda13-pjrt=={0}"
            packages = gpu_alone if gpu else "'jax[tpu]=={0}'"
            raise ValueError(
                f"topology {topology} needs the compiler for it, though no chips: pip install "
                f"{packages.format(_jax_version())} ({said})"
            ) from error
        raise ValueError(f"topology is {topology!r}, which the compiler refuses: {said}") from error
    chip = CHIPS[kind]
    flops, memory, bandwidth, wires = (x / chip.devices for x in chip[:4])
    return Chip(flops, memory, bandwidth, wires), list(there.devices)


def _jax_version() -> str:
    import jax

    return jax.__version__
