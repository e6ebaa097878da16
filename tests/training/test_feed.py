"""Chunks of one shape, placed: on one device, for members, and over a mesh."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcl import data, mesh
from jcl.training.feed import Feed, everywhere, own_rows, place

pytestmark = pytest.mark.quick

SIZES = (10, 7)


def stream(**options: Any) -> data.Stream:
    tasks = [{"x": np.arange(n, dtype=np.float32), "y": np.zeros(n, np.int32)} for n in SIZES]
    return data.from_arrays(tasks, tasks, 4, **({"epochs": 2} | options))


def test_a_short_chunk_is_filled_up_with_its_last_step() -> None:
    given = stream()
    feed = Feed(given, None, 3)
    whole = feed.chunk(1, 0, 3)
    jax.tree.map(np.testing.assert_array_equal, whole, given.chunk(1, 0, 3))
    short = feed.chunk(1, 3, 4)
    assert {x.shape for x in jax.tree.leaves(short)} == {(3, 4)}
    for name, x in given.chunk(1, 3, 4).items():
        np.testing.assert_array_equal(short[name], np.repeat(x, 3, axis=0))
    jax.tree.map(np.testing.assert_array_equal, feed.boundary(0), given.boundary(0))
    jax.tree.map(np.testing.assert_array_equal, feed.source, given.source)


def test_members_are_filled_up_along_their_steps() -> None:
    joined = data.members([stream(seed=0), stream(seed=1), stream(seed=2)])
    short = Feed(joined, None, 5).chunk(0, 3, 5)["row"]
    assert short.shape == (3, 5, 4)
    for member in range(3):
        last = joined.chunk(0, 4, 5)["row"][member, 0]
        np.testing.assert_array_equal(short[member, 2:], [last] * 3)


@pytest.mark.parametrize("axes", [{"data": 4}, {"data": 2, "fsdp": 2}, {"tensor": 2}])
def test_on_a_mesh_each_device_has_its_rows(axes: dict[str, int]) -> None:
    given, layout = stream(), mesh.Layout(mesh.make(**axes))
    feed = Feed(given, layout, 3)
    found, wanted = feed.chunk(0, 3, 5), given.chunk(0, 3, 5)
    share = 4 if "tensor" in axes else 1
    for name, x in found.items():
        np.testing.assert_array_equal(x[:2], wanted[name])
        np.testing.assert_array_equal(x[2], wanted[name][-1])
        assert {s.data.shape for s in x.addressable_shards} == {(3, share)}
    for x in jax.tree.leaves(feed.source):
        assert x.sharding.is_fully_replicated and len(x.sharding.device_set) == len(
            layout.mesh.devices.flat
        )


def test_alone_a_process_holds_all_rows() -> None:
    for axes in ({"data": 4}, {"tensor": 2}, {"fsdp": 8}):
        assert own_rows(mesh.Layout(mesh.make(**axes)), 24) == slice(0, 24)


def test_keys_are_placed_like_arrays() -> None:
    layout = mesh.Layout(mesh.make(data=2))
    tree = {"key": jax.random.key(5), "x": np.arange(6.0, dtype=np.float32)}
    placed = place(tree, everywhere(tree, layout))
    assert jax.random.uniform(placed["key"]) == jax.random.uniform(jax.random.key(5))
    assert len(placed["key"].sharding.device_set) == len(placed["x"].sharding.device_set) == 2
    np.testing.assert_array_equal(placed["x"], jnp.arange(6.0))
