"""Checkpoints without a run: what comes back, what is kept, what is broken or refused."""

from __future__ import annotations

import resource
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcl import checkpoint, mesh

pytestmark = pytest.mark.quick


def state(seed: int = 0) -> dict[str, Any]:
    """Leaves of every kind that a run has; random, so that few bytes repeat."""
    draw = np.random.default_rng(seed)
    return {
        "params": {"w": jnp.asarray(draw.normal(size=(8, 5)), jnp.float32)},
        "half": jnp.asarray(draw.normal(size=7), jnp.bfloat16),
        "count": jnp.int32(seed + 3),
        "flags": (
            jnp.array([True, False, True]),
            jnp.int8(draw.integers(-9, 9, (1, 2))),
        ),
        "key": jax.random.split(jax.random.key(seed), 3),
    }


def raw(tree: Any) -> list[np.ndarray]:
    keys = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return [np.asarray(jax.random.key_data(x) if keys(x) else x) for x in jax.tree.leaves(tree)]


def assert_same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(raw(a), raw(b), strict=True):
        assert x.dtype == y.dtype and x.tobytes() == y.tobytes()


def test_leaves_of_every_kind_come_back_bit_for_bit(tmp_path: Path) -> None:
    assert checkpoint.restore(tmp_path, state()) is None
    checkpoint.save(tmp_path, 7, state())
    found = checkpoint.restore(tmp_path, state(1))
    assert found is not None and found[1] == 7
    assert_same(found[0], state())
    # shapes with shardings will do
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(1)
    )
    like["key"] = state(1)["key"]
    again = checkpoint.restore(tmp_path, like)
    assert again is not None
    assert_same(again[0], state())


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    saver = checkpoint.Saver(tmp_path)
    for step in (5, 12, 100, 31):
        saver.save(step, {"x": jnp.full(3, float(step))})
    saver.finish()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step_000000031", "step_000000031.json", "step_000000100", "step_000000100.json",
    ]  # fmt: skip
    found = checkpoint.restore(tmp_path, {"x": jnp.zeros(3)})
    assert found is not None and found[1] == 100 and found[0]["x"][0] == 100


@pytest.mark.parametrize("harm", ["truncated", "flipped", "missing", "no sums", "bad sums"])
def test_a_broken_one_falls_back_to_the_one_before(tmp_path: Path, harm: str) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, step, state(step))
    newest = tmp_path / "step_000000002"
    victim = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    sums, content = newest.with_suffix(".json"), bytearray(victim.read_bytes())
    if harm == "missing":
        victim.unlink()
    elif harm == "truncated":
        victim.write_bytes(content[:-1])
    elif harm == "flipped":
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    elif harm == "no sums":  # as if killed before they were written, which is no damage
        sums.unlink()
    else:
        sums.write_text(sums.read_text()[:-20])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = checkpoint.restore(tmp_path, state())
    told = [w for w in said if "step_000000002 is broken, falling back" in str(w.message)]
    assert bool(told) == (harm != "no sums")
    assert found is not None and found[1] == 1
    assert_same(found[0], state(1))


def test_it_may_be_restored_to_other_shardings(tmp_path: Path) -> None:
    layout = mesh.Layout(mesh.make(fsdp=4))
    cut = jax.NamedSharding(layout.mesh, jax.P("fsdp"))
    w = jnp.arange(40.0).reshape(8, 5)
    checkpoint.save(tmp_path, 1, {"w": jax.device_put(w, cut)})
    for where in (jax.NamedSharding(layout.mesh, jax.P(None)), jax.devices()[0], cut):
        like = {"w": jax.device_put(jnp.zeros((8, 5)), where)}
        found = checkpoint.restore(tmp_path, like)
        assert found is not None and found[0]["w"].sharding == like["w"].sharding
        np.testing.assert_array_equal(found[0]["w"], w)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"more": jnp.ones(1)}, "lacks more, so it is of another method or model"),
        ({"half": None}, "has half, so it is of another method or model"),
        ({"half": jnp.ones(6, jnp.bfloat16)}, r"half in checkpoint .* is \(7,\), but must be \(6,"),
    ],
)
def test_one_of_another_program_is_refused(tmp_path: Path, change: Any, said: str) -> None:
    checkpoint.save(tmp_path, 1, state())
    with pytest.raises(ValueError, match=said):
        checkpoint.restore(tmp_path, {**state(), **change})


def test_what_can_not_be_written_is_one_sentence(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 4, state())
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"can't save a checkpoint in .*file: .*; there is none yet"):
        checkpoint.save(tmp_path / "file", 1, state())


def test_a_full_disk_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Orbax would log what is raised in its threads, a hundred lines of tracebacks before it."""
    checkpoint.save(tmp_path, 1, {"x": np.arange(10.0)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
    try:
        with pytest.raises(
            OSError, match=r"can't save a checkpoint in .*; the last good one is st"
        ):
            checkpoint.save(tmp_path, 2, {"x": np.random.default_rng(0).normal(size=100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith("step_000000002")]
    checkpoint.tidy(tmp_path)
    assert left and not list(tmp_path.glob("step_000000002*"))
    found = checkpoint.restore(tmp_path, {"x": jnp.zeros(10)})
    assert found is not None and found[1] == 1
