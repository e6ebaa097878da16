"""What integers a data set holds, found as numpy finds them and as models count positions."""

import jax.numpy as jnp
import numpy as np
import pytest

from jcl import data
from jcl.data import bounds
from jcl.data.tokens import largest_token, tokenise
from jcl.models import attention

pytestmark = pytest.mark.quick


def test_ranges_are_those_of_numpy(monkeypatch):
    monkeypatch.setattr(bounds, "_PIECE", 7)
    rng = np.random.default_rng(0)
    for kind in (np.uint8, np.int64, np.uint16):
        x = rng.integers(0, 200, (5, 9)).astype(kind)
        assert bounds.range_of(x) == (x.min(), x.max())
        assert bounds.range_of(jnp.asarray(x)) == (x.min(), x.max())
    assert bounds.range_of(np.zeros((0, 3), int)) is None
    assert bounds.range_of(np.zeros(3)) is None and bounds.range_of("abc") is None


def test_positions_are_those_that_models_count(monkeypatch):
    monkeypatch.setattr(bounds, "_PIECE", 24)
    rng = np.random.default_rng(1)
    for _ in range(20):
        sizes = rng.integers(1, 6, (6, 4))
        rows = [np.repeat(np.arange(1, 5), s)[:12] for s in sizes]
        segments = np.stack([np.pad(r, (0, 12 - len(r))) for r in rows])
        wanted = int(np.asarray(attention.positions(jnp.asarray(segments))).max())
        found = bounds.bounds_of({"tokens": segments, "segments": segments})("positions")
        assert found == (0, wanted)
    assert bounds.bounds_of({"tokens": segments})("positions") == (0, 11)
    assert bounds.bounds_of({"x": segments})("positions") is None


def test_a_stream_knows_what_its_batches_hold():
    rng = np.random.default_rng(2)
    x = rng.integers(0, 255, (20, 16)).astype(np.uint8)
    rows = {"x": x, "y": rng.integers(3, 9, 20)}
    made = data.scenario([rows, rows], [rows, rows])
    for given in (made, data.permuted(rows, rows, 2), data.rotated(rows, rows, (0, 30))):
        found = data.from_scenario(given, 4, epochs=1).fetch.bounds
        assert found("y") == (rows["y"].min(), rows["y"].max()) and found("task") == (0, 1)
        changed = given.transform is not None
        assert found("x") == (None if changed else (x.min(), x.max()))
        assert found("nothing") is None
    stream = data.from_scenario(made, 4, epochs=1)
    turned = data.reorder(stream, [1, 0])
    assert turned.fetch.bounds("y") == stream.fetch.bounds("y")
    assert turned.fetch.bounds("task") == (0, 1)


def test_what_a_transformation_changes_has_no_bounds():
    rows = {"x": np.zeros((4, 2)), "y": np.arange(4)}
    given = data.scenario([rows], [rows])._replace(
        transform=lambda tables, batch: {**batch, "y": batch["y"] % 2}
    )
    found = data.from_scenario(given, 2, epochs=1).fetch.bounds
    assert found("y") is None and found("task") == (0, 0)


def test_the_largest_token_is_noted_as_tokens_are_made(tmp_path, monkeypatch):
    monkeypatch.setenv("JCL_CACHE", str(tmp_path))
    for cache in (False, True, True):
        made = tokenise(["ab", "cz"], cache=cache)
        assert made.largest == ord("z") == largest_token(made)
    (noted,) = tmp_path.rglob("largest.npy")
    noted.unlink()  # as in a folder that an older version made
    old = tokenise(["ab", "cz"])
    assert old.largest is None and largest_token(old) == ord("z")
