"""Quantised safetensors as the float32 numbers that they stand for: integers and floats of 8 bits.

Each weight is multiplied by the scale beside it. Activations stay as they are, also where the
checkpoint's own runtime would round them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jcl.method import check
from jcl.models.tensors import Tensors

METHODS = ("bitsandbytes", "compressed-tensors", "fbgemm_fp8", "fp8")
"""Values of `quant_method` that are read, where weights are stored in 8 bits."""
_SCALES = {"weight_scale": 1.0, "weight_scale_inv": 1.0, "SCB": 1 / 127}
"""The last parts of names of scales, and by what they are multiplied: bitsandbytes stores each
row's largest entry, which stands for 127."""
_BESIDE = ("input_scale", "weight_format", "weight_zero_point")
"""What else may stand beside a weight: of activations, of how it lies in memory, and zeros."""


def dequantised(tensors: Tensors, said: Any, where: Path) -> Tensors:
    """The tensors with those of 8 bits multiplied out, float32, and without their scales.

    Source: compressed-tensors' `quantization/lifecycle/forward.py` (`dequantize`), bitsandbytes'
    `Int8Params`, and the blocks of DeepSeek-V3's `inference/kernel.py` (`weight_dequant`).

    Args:
      tensors: as stored.
      said: the configuration's `quantization_config`, or None.
      where: the folder, for messages.

    Raises:
      ValueError: if they are quantised in another way; some only as they are read.
    """
    options = said or {}
    method = options.get("quant_method")
    check(not said or method in METHODS, f"quant_method in {where}", method, f"one of {METHODS}")
    scales: dict[str, str] = {}
    beside = set()
    for name in tensors.names:
        stem, _, last = name.rpartition(".")
        weight = f"{stem}.weight"
        if weight in tensors.names and last in _SCALES:
            check(weight not in scales, f"scales of {weight}", [name, scales.get(weight)], "one")
            scales[weight] = name
        if weight in tensors.names and last in _BESIDE:
            beside.add(name)

    def read(name: str) -> np.ndarray:
        found = tensors.read(name)
        if name in scales:
            zeros = f"{name}_zero_point"
            plain = zeros not in beside or not tensors.read(zeros).any()
            check(plain, zeros, "unequal to 0", "0, for weights are only read where 0 is 0")
            at = scales[name]
            scale = tensors.read(at).astype(np.float32) * np.float32(_SCALES[at.rpartition(".")[2]])
            return found.astype(np.float32) * _spread(scale, found.shape, at, options)
        wide = jnp.issubdtype(found.dtype, jnp.floating) and found.dtype.itemsize > 1
        wanted = f"floats of 16 bits or more, or have one of {list(_SCALES)} beside it"
        check(wide, f"dtype of {name!r} in {tensors.file(name)}", str(found.dtype), wanted)
        return found

    return Tensors(tensors.names - set(scales.values()) - beside, read, tensors.file)


def _spread(
    scale: np.ndarray, shape: tuple[int, ...], name: str, options: dict[str, Any]
) -> np.ndarray:
    """A scale of the tensor, of its rows, of groups in a row or of blocks, for each entry."""
    if scale.size == 1:
        return scale.reshape(())
    scale = scale[:, None] if scale.ndim == 1 else scale
    wanted = f"that of rows, groups or blocks of {shape}"
    check(scale.ndim == len(shape), f"shape of {name!r}", scale.shape, wanted)
    pairs = [*zip(shape, scale.shape, strict=True)]
    sizes = options.get("weight_block_size") or [max(1, n // m) for n, m in pairs]
    covers = [-(-n // size) for n, size in zip(shape, sizes, strict=True)] == [*scale.shape]
    check(covers, f"shape of {name!r}", scale.shape, wanted)
    for axis, size in enumerate(sizes):
        scale = np.repeat(scale, size, axis)
    return scale[tuple(slice(n) for n in shape)]
