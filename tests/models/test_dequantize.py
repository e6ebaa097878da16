"""Weights of 8 bits are multiplied out as their libraries store them; other ways are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jcl.models.dequantize import dequantised
from jcl.models.tensors import Tensors

pytestmark = pytest.mark.quick
WHERE = Path("folder")
INTS = np.arange(-12, 12, dtype=np.int8).reshape(4, 6)


def read(stored: dict[str, Any], said: Any = None) -> dict[str, np.ndarray]:
    arrays = {name: np.asarray(x) for name, x in stored.items()}
    there = Tensors(frozenset(arrays), arrays.__getitem__, lambda name: WHERE / "x.safetensors")
    found = dequantised(there, said, WHERE)
    return {name: found.read(name) for name in sorted(found.names)}


@pytest.mark.parametrize(
    ("name", "scale", "wanted"),
    [
        ("weight_scale", [0.5], np.full((4, 6), 0.5)),
        ("weight_scale", [1, 2, 3, 4], np.repeat([[1], [2], [3], [4]], 6, 1)),
        ("weight_scale", [[1], [2], [3], [4]], np.repeat([[1], [2], [3], [4]], 6, 1)),
        ("weight_scale", [[1, 2]] * 4, np.repeat([[1, 2]] * 4, 3, 1)),  # groups of 3
        ("SCB", [127, 254, 127, 127], np.repeat([[1], [2], [1], [1]], 6, 1)),
    ],
)
def test_a_scale_of_the_tensor_of_rows_and_of_groups(name: str, scale: Any, wanted: Any) -> None:
    stored = {"q.weight": INTS, f"q.{name}": np.asarray(scale, np.float32)}
    found = read(stored | {"q.weight_format": np.uint8(0), "q.input_scale": np.float32(3)})
    assert list(found) == ["q.weight"] and found["q.weight"].dtype == np.float32
    np.testing.assert_allclose(found["q.weight"], INTS * wanted, rtol=1e-6)


def test_blocks_need_not_divide_the_shape() -> None:
    """As in DeepSeek-V3's `weight_dequant`: each block of 3 × 4 has one scale, cut at the edges."""
    scale = np.asarray([[1, 2], [3, 4]], np.float32)
    said = {"quant_method": "fp8", "weight_block_size": [3, 4]}
    found = read({"q.weight": INTS, "q.weight_scale_inv": scale}, said)
    wanted = INTS * np.asarray([[1] * 4 + [2] * 2] * 3 + [[3] * 4 + [4] * 2])
    np.testing.assert_array_equal(found["q.weight"], wanted)


@pytest.mark.parametrize(
    ("stored", "said", "words"),
    [
        ({}, {"quant_method": "gptq"}, "quant_method in folder is 'gptq', but must be one of"),
        ({"q.weight": INTS}, None, "dtype of 'q.weight' in .* is 'int8', but must be floats"),
        ({"q.weight": INTS, "q.weight_scale": np.ones((5, 1))}, None, "shape of 'q.weight_scale'"),
        ({"q.weight": INTS, "q.weight_scale": np.ones((4, 4))}, None, "shape of 'q.weight_scale'"),
        (
            {"q.weight": INTS, "q.weight_scale": np.ones(4), "q.weight_zero_point": np.ones(4)},
            None,
            "q.weight_zero_point",
        ),
        (
            {"q.weight": INTS, "q.weight_scale": np.ones(4), "q.SCB": np.ones(4)},
            None,
            "scales of q.weight",
        ),
    ],
)
def test_other_ways_are_refused(stored: dict[str, Any], said: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(stored, said)


def test_what_is_not_quantised_stays() -> None:
    found = read({"q.weight": np.ones((2, 2), np.float16)})
    assert found["q.weight"].dtype == np.float16
