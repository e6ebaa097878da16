"""Which of our dense layers a module of transformers holds, of a decoder that stores some fused."""

import numpy as np
import pytest

from jcl.models.layout import Source
from jcl.models.peft_modules import Module

pytestmark = pytest.mark.quick


def columns(start, stop):
    return lambda stored: stored[start:stop].T


FUSED = {
    "blocks/query/kernel": Source("h.{layer}.qkv.weight", (6, 4), columns(0, 2)),
    "blocks/key/kernel": Source("h.{layer}.qkv.weight", (6, 4), columns(2, 6)),
}


def test_parts_of_a_fused_weight_are_read_and_written_apart():
    module = Module("model.h.{layer}.qkv", FUSED, layers=2, turned=False)
    assert module.short == "qkv" and module.outputs == 6
    stored = np.arange(24.0).reshape(6, 4)
    for path, rows in (("blocks/query/kernel", slice(0, 2)), ("blocks/key/kernel", slice(2, 6))):
        np.testing.assert_array_equal(module.split(stored, path), stored[rows].T)
    value = -np.ones((2, 4))
    module.fill(stored, "blocks/key/kernel", slice(1, 3), value)
    wanted = np.arange(24.0).reshape(6, 4)
    wanted[2:6, 1:3] = -1
    np.testing.assert_array_equal(stored, wanted)


def test_a_weight_that_is_stored_the_other_way_round_is_turned():
    parts = {"blocks/up/kernel": Source("h.{layer}.fc.weight", (4, 6))}
    module = Module("h.{layer}.fc", parts, layers=1, turned=True)
    assert module.outputs == 6
    stored = np.arange(24.0).reshape(6, 4)  # a pair's B, [out, r]
    np.testing.assert_array_equal(module.split(stored, "blocks/up/kernel"), stored.T)
