"""The first rows of every stage, and the difference of two readings."""

from __future__ import annotations

import numpy as np
import pytest

from jcl import data
from jcl.runs import reading

pytestmark = pytest.mark.quick


def test_every_stage_has_its_first_rows_whatever_the_members() -> None:
    sets = [{"x": np.full((6, 2), k, np.float32), "y": np.zeros(6, np.int32)} for k in range(3)]
    stream = data.from_arrays(sets, sets, batch=4, steps=1)
    for one in (stream, data.members([stream, stream])):
        batches = reading.first_batches(one)
        assert [float(batch["x"][0, 0]) for batch in batches] == [0, 1, 2]
        assert [batch["task"].tolist() for batch in batches] == [[k] * 4 for k in range(3)]
    assert reading.of_task(batches[0], 2)["task"].tolist() == [2] * 4


def test_the_largest_difference_is_that_of_the_leaf_that_is_farthest_off() -> None:
    wanted = {"a": np.array([1.0, -4.0]), "b": np.array([100.0])}
    found = {"a": np.array([1.0, -3.0]), "b": np.array([99.0])}
    assert float(reading.largest_difference(wanted, found)) == pytest.approx(0.25, rel=1e-5)
