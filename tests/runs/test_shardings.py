"""What a device holds of a model on a mesh, counted by hand."""

from __future__ import annotations

import json

import jax
import pytest

from jcl import methods
from jcl.models import decoder, presets
from jcl.runs import shardings

pytestmark = pytest.mark.quick

CONFIG = decoder.Config(vocabulary=48, layers=2, width=16, heads=4, kv_heads=2, hidden=24)


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "toy", CONFIG)


def test_every_parameter_is_listed_with_its_part() -> None:
    found = shardings.plan("toy", {"fsdp": 4, "tensor": 2}, None)
    assert (found.model, found.axes) == ("toy", "fsdp=4, tensor=2")
    params = jax.eval_shape(lambda: decoder.init(jax.random.key(0), CONFIG))
    assert len(found.rows) == len(jax.tree.leaves(params))
    rows = {row.path: row for row in found.rows}
    down = rows["blocks/down/kernel"]
    assert down.shape == (2, 24, 16) and down.bytes_per_device == 4 * 2 * 24 * 16 // 8
    assert rows["embed/table"].bytes_per_device == 4 * 48 * 16 // 8
    ((part, whole, held),) = found.totals
    assert part == "parameters" and whole == 4 * sum(x.size for x in jax.tree.leaves(params))
    assert held == sum(row.bytes_per_device for row in found.rows)


def test_a_method_and_the_optimizer_are_counted_beside_them() -> None:
    found = shardings.plan("toy", {"fsdp": 4}, methods.ewc())
    totals = {part: (whole, held) for part, whole, held in found.totals}
    assert list(totals) == ["parameters", "optimizer", "ewc"]
    parameters, on_device = totals["parameters"]
    # an anchor and a Fisher; Adam has two moments and a count, which is everywhere
    assert totals["ewc"] == (2 * parameters, 2 * on_device)
    assert totals["optimizer"] == (2 * parameters + 4, 2 * on_device + 4)


def test_facts_are_plain_json() -> None:
    found = shardings.plan("toy", {"fsdp": 4, "tensor": 2}, methods.ewc())
    told = json.loads(json.dumps(shardings.facts(found)))
    assert told["model"] == "toy" and told["mesh"] == "fsdp=4, tensor=2"
    rows = {row["path"]: row for row in told["parameters"]}
    assert rows["blocks/down/kernel"]["spec"] == [None, "tensor", "fsdp"]
    assert [set(total) for total in told["totals"]] == [{"part", "bytes", "bytes_per_device"}] * 3


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ValueError, match="no-such-folder"):
        shardings.plan("no-such-folder", {"fsdp": 2}, None)
