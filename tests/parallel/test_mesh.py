"""Every backbone over every kind of mesh: the numbers of one device, and nothing held twice."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import jcl
from jcl import losses, memory, mesh, methods, models, trees
from jcl.method import Batch

KEY = jax.random.key(0)
TOKENS = jax.random.randint(KEY, (8, 16), 1, 32)


class Backbone(NamedTuple):
    """A tiny model of a family, with something to learn."""

    params: Any
    apply: Callable[..., Any]
    loss: Any
    batch: Batch


def decoder(**more: Any) -> Backbone:
    config = models.decoder.Config(
        vocabulary=32, layers=2, width=32, heads=4, kv_heads=2, hidden=48, **more
    )
    batch = {"tokens": TOKENS, "segments": jnp.ones_like(TOKENS), "mask": jnp.ones((8, 15))}
    apply = models.decoder.apply_fn(config, logits_limit=256, remat="block")
    return Backbone(models.decoder.init(KEY, config), apply, losses.next_token, batch)


def encoder() -> Backbone:
    config = models.encoder.Config(
        vocabulary=32, layers=2, width=32, heads=4, hidden=48, context=16, classes=4
    )
    batch = {"tokens": TOKENS, "segments": jnp.ones_like(TOKENS), "y": TOKENS[:, 0] % 4}
    apply = models.encoder.apply_fn(config)
    return Backbone(models.encoder.init(KEY, config), apply, losses.cross_entropy(), batch)


def t5() -> Backbone:
    config = models.t5.Config(vocabulary=32, layers=2, width=32, heads=4, hidden=48)
    batch = {"inputs": TOKENS, "tokens": TOKENS[:, ::-1], "mask": jnp.ones((8, 15))}
    apply = models.t5.apply_fn(config)
    return Backbone(models.t5.init(KEY, config), apply, losses.next_token, batch)


def vision() -> Backbone:
    config = models.vision.Config(image=8, patch=2, layers=2, width=32, heads=4, hidden=48)
    batch = {"image": jax.random.normal(KEY, (8, 8, 8, 1)), "y": TOKENS[:, 0] % 4}
    whole = models.vision.apply_fn(config)

    def apply(params: Any, batch: Batch, tap: Any) -> Any:
        out = whole(params, batch, tap)
        return jnp.mean(out.reshape(len(out), -1, out.shape[-1]), axis=1)

    return Backbone(models.vision.init(KEY, config), apply, losses.cross_entropy(), batch)


BACKBONES: dict[str, Callable[[], Backbone]] = {
    "decoder": decoder,
    "mixture": lambda: decoder(experts=4),
    "encoder": encoder,
    "t5": t5,
    "vision": vision,
}
MESHES: dict[str, dict[str, int]] = {
    "data": {"data": 8},
    "fsdp": {"fsdp": 8},
    "tensor": {"tensor": 4},
    "mixed": {"data": 2, "fsdp": 2, "tensor": 2},
    "long": {"fsdp": 2, "sequence": 2, "tensor": 2},
    "experts": {"expert": 4, "fsdp": 2},
}


@cache
def trained(name: str, axes: str) -> jcl.State:
    """Two steps, a boundary and a step, of a plain decoder with replay and EWC."""
    model = BACKBONES[name]()
    spread = mesh.make(**MESHES[axes]) if axes else None
    method = jcl.chain(methods.er(capacity=16, rows=8), methods.ewc(strength=1.0))
    method = method if name == "decoder" else methods.naive()
    program = jcl.make(method, model.apply, model.loss, optax.adam(1e-2, eps=1e-3), mesh=spread)
    shardings: Any = None
    batch = model.batch
    if program.layout is not None:
        shapes = jax.eval_shape(program.init, model.params, batch, KEY)
        shardings = mesh.of_state(shapes, program.layout)
        batch = jax.device_put(batch, mesh.of_batch(batch, program.layout))
    state = jax.jit(program.init, out_shardings=shardings)(model.params, batch, KEY)
    step = jax.jit(program.step, out_shardings=(shardings, None))
    close = jax.jit(program.consolidate, out_shardings=shardings)
    for i in range(3):
        state, _ = step(state, batch)
        state = close(state, jax.tree.map(lambda x: x[None, :2], batch)) if i == 1 else state
    return state


PAIRS = [
    pytest.param(name, axes, marks=pytest.mark.xdist_group(f"mesh-{name}"), id=f"{name}-{axes}")
    for name in BACKBONES
    for axes in MESHES
    if name == {"long": "decoder", "experts": "mixture"}.get(axes, name)
]


@pytest.mark.parametrize("name, axes", PAIRS)
def test_the_numbers_are_those_of_one_device(name: str, axes: str) -> None:
    alone, spread = trained(name, ""), trained(name, axes)
    for a, b in zip(jax.tree.leaves(alone.params), jax.tree.leaves(spread.params), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name, axes", PAIRS)
def test_a_device_holds_its_part_and_no_more(name: str, axes: str) -> None:
    state = trained(name, axes)
    sizes = MESHES[axes]
    cut = math.prod(size for axis, size in sizes.items() if axis in ("fsdp", "tensor"))
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        name = trees.path_name(path)
        held = x.addressable_shards[0].data.nbytes if "key" not in name[-4:] else 0
        if re.search(r"(query|output|up|down)/kernel$", name) and "experts" not in name:
            assert held == x.nbytes // cut, name
        if re.search(r"experts/.*kernel$", name):
            assert held == x.nbytes // (cut * sizes.get("expert", 1)), name
        if "er/buffer/rows" in name:
            rows = math.prod(sizes.get(axis, 1) for axis in mesh.ROWS)
            assert held <= x.nbytes // rows, name


def kinds(text: str) -> set[str]:
    names = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    return set(re.findall(rf" ({names})(?:-start)?\(", text))


def test_an_axis_may_be_a_part_of_the_machine_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as 8 of the 16 chips along a torus, which JAX's own maker refuses."""

    def refuse(*args: Any, **options: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr(jax, "make_mesh", refuse)
    made = mesh.make(data=2, fsdp=4)
    assert made.axis_names == mesh.AXES
    assert made.axis_types == (jax.sharding.AxisType.Auto,) * 5
    assert (made.shape["data"], made.shape["fsdp"], made.size) == (2, 4, 8)
    assert set(made.devices.flat) == set(jax.devices())


def test_plain_data_parallelism_only_sums() -> None:
    program = jcl.make(
        methods.naive(), decoder().apply, losses.next_token, optax.sgd(0.1), mesh=mesh.make(data=8)
    )
    model = decoder()
    shapes = jax.eval_shape(program.init, model.params, model.batch, KEY)
    place = mesh.of_state(shapes, program.layout)
    state = jax.jit(program.init, out_shardings=place)(model.params, model.batch, KEY)
    batch = jax.device_put(model.batch, mesh.of_batch(model.batch, program.layout))
    step = jax.jit(program.step, out_shardings=(place, None))
    assert kinds(step.lower(state, batch).compile().as_text()) == {"all-reduce"}


class Answers(NamedTuple):
    """A user's own memory: inputs, the answers to them, and a table that isn't of rows."""

    x: jax.Array
    answers: jax.Array
    table: jax.Array

    @property
    def row_fields(self) -> tuple[str, ...]:
        return ("x", "answers")


def test_rows_that_a_users_state_keeps_lie_as_a_batch_does() -> None:
    layout = mesh.Layout(mesh.make(data=2, fsdp=4))
    state = {"kept": Answers(jnp.zeros((16, 5)), jnp.zeros((16, 3)), jnp.zeros((16, 3)))}
    held = jcl.State({}, (), state, *[jnp.int32(0)] * 3, KEY, {})
    found = mesh.of_state(held, layout).methods["kept"]
    rows = PartitionSpec(("data", "fsdp"), None)
    assert [place.spec for place in found] == [rows, rows, PartitionSpec()]


def test_replay_and_reservoir_are_those_of_one_device() -> None:
    def contents(axes: str) -> Any:
        return jax.tree.map(np.asarray, trained("decoder", axes).methods["er"].buffer)

    for axes in ("data", "mixed"):
        for a, b in zip(
            jax.tree.leaves(contents("")), jax.tree.leaves(contents(axes)), strict=True
        ):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("data, steps", [(1, 8), (2, 4)])
def test_slices_along_data_share_the_rows_of_a_fisher(data: int, steps: int) -> None:
    """A scan over single rows takes as many steps as a slice has rows."""
    model = decoder()
    program = jcl.make(
        methods.ewc(strength=1.0), model.apply, model.loss, optax.sgd(0.1),
        mesh=mesh.make(data=data, fsdp=4),
    )  # fmt: skip
    state = jax.eval_shape(program.init, model.params, model.batch, KEY)
    batches = jax.tree.map(lambda x: x[None], model.batch)
    text = jax.jit(program.consolidate).lower(state, batches).compile().as_text()
    counts = {int(n) for n in re.findall(r'"known_trip_count":{"n":"(\d+)"', text)}
    assert steps in counts and (8 in counts) == (steps == 8)


def test_rows_that_do_not_divide_are_cut_along_their_length() -> None:
    where = mesh.make(fsdp=4, sequence=2)
    assert mesh.row_spec(where, (8, 16)) == PartitionSpec(("fsdp",), ("sequence",))
    assert mesh.row_spec(where, (1, 16)) == PartitionSpec(None, ("fsdp", "sequence"))
    assert mesh.row_spec(where, (3, 5)) == PartitionSpec(None, None)
    assert mesh.row_spec(where, (6,)) == PartitionSpec(None)
    assert mesh.row_spec(where, ()) == PartitionSpec()


def test_rules_are_those_of_column_and_row_parallel_products() -> None:
    layout = mesh.Layout(mesh.abstract(fsdp=4, tensor=2))
    cases = {
        "blocks/query/kernel": ((3, 8, 8), (None, "fsdp", "tensor")),
        "blocks/down/kernel": ((3, 8, 8), (None, "tensor", "fsdp")),
        "blocks/key/kernel": ((3, 8, 5), (None, "fsdp", None)),
        "embed/table": ((6, 8), ("tensor", "fsdp")),
        "decoder/blocks/cross_output/kernel": ((3, 8, 8), (None, "tensor", "fsdp")),
        "blocks/up/bias": ((3, 8), (None, "tensor")),
        "blocks/attention_norm/scale": ((3, 8), (None, None)),
        "blocks/query/lora/a": ((3, 8, 4), (None, "fsdp", None)),
        "unheard/of": ((2, 12, 8), (None, "fsdp", None)),
    }
    for path, (shape, wanted) in cases.items():
        assert mesh.spec(path, shape, layout) == PartitionSpec(*wanted), path


@pytest.mark.quick
def test_own_rules_come_first() -> None:
    rules = ((r"odd/kernel", ("tensor", None)), *mesh.RULES)
    layout = mesh.Layout(mesh.abstract(fsdp=4, tensor=2), rules)
    assert mesh.spec("odd/kernel", (8, 8), layout) == PartitionSpec("tensor", None)


def test_a_table_counts_what_a_device_holds() -> None:
    params = {"blocks": {"query": {"kernel": jnp.zeros((2, 8, 8))}}, "norm": {"scale": jnp.ones(8)}}
    rows = mesh.table(params, mesh.Layout(mesh.abstract(fsdp=4, tensor=2)))
    assert [(r.path, r.bytes_per_device) for r in rows] == [
        ("blocks/query/kernel", 2 * 8 * 8 * 4 // 8),
        ("norm/scale", 32),
    ]


@pytest.mark.quick
@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: mesh.make(rows=2), "mesh axis is 'rows', but must be one of"),
        (lambda: mesh.make(fsdp=0), "fsdp is 0, but must be at least 1"),
        (lambda: mesh.make(fsdp=16), "must be at most 8, which is how many there are"),
        (lambda: mesh.make(fsdp=-1, data=-1), "axes of size -1 is"),
        (lambda: mesh.make(fsdp=-1, data=3), "must be a divisor of 8 devices"),
        (lambda: mesh.abstract(fsdp=-1), "fsdp is -1, but must be at least 1"),
        (lambda: mesh.parse("fsdp"), "mesh is 'fsdp', but must be like"),
        (lambda: mesh.parse("fsdp=2,fsdp=4"), "must be like"),
        (
            lambda: jcl.make(
                methods.naive(), models.mlp.apply, losses.cross_entropy(), optax.sgd(0.1),
                mesh=mesh.make(), axis_name="x",
            ),
            "axis_name is 'x', but must be None with a mesh",
        ),
    ],
)  # fmt: skip
def test_bad_meshes_are_refused(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        call()


def test_what_is_left_goes_to_the_axis_without_a_size() -> None:
    assert dict(mesh.make(fsdp=-1, tensor=2).shape)["fsdp"] == 4
    assert memory.capacity(trained("decoder", "").methods["er"].buffer) == 16
