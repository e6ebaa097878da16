"""What a model keeps beside its parameters: changed by the descended loss, and by nothing else."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import losses, methods
from jcl.parallel import mesh as meshes

KEY = jax.random.key(0)
ROWS, WIDTH, CLASSES, STAGES, STEPS = 8, 4, 3, 3, 4
MOMENTUM = 0.9
KEPT = {"stats": {"norm": {"mean": jnp.zeros(WIDTH), "var": jnp.ones(WIDTH)}}}


def stream(stages: int = STAGES, steps: int = STEPS, rows: int = ROWS) -> Any:
    keys = jax.random.split(jax.random.key(1), 2)
    shape = (stages, steps, rows)
    x = 3 * jax.random.normal(keys[0], (*shape, WIDTH)) + jnp.arange(WIDTH)
    task = jnp.broadcast_to(jnp.arange(stages)[:, None, None], shape)
    x = x * (1 + task[..., None])
    weight = jnp.ones(shape).at[..., -1].set(0)
    return {
        "x": x, "y": jax.random.randint(keys[1], shape, 0, CLASSES), "weight": weight,
        "task": task,
    }  # fmt: skip


STREAM = stream()
BATCH = jax.tree.map(lambda x: x[0, 0], STREAM)
PARAMS = {
    "norm": {"scale": jnp.ones(WIDTH), "bias": jnp.zeros(WIDTH)},
    "dense": {"kernel": jax.random.normal(KEY, (WIDTH, CLASSES)), "bias": jnp.zeros(CLASSES)},
}


def apply(params: Any, batch: Any, call: jcl.Call = jcl.Call()) -> Any:
    """A batch norm without padding, and a dense layer."""
    x, kept, stats = batch["x"], call.collections["stats"]["norm"], None
    share = batch["weight"] / jnp.maximum(jnp.sum(batch["weight"]), 1.0)
    mean, var = kept["mean"], kept["var"]
    if call.training:
        mean = share @ x
        var = share @ (x - mean) ** 2
        stats = {
            "mean": MOMENTUM * kept["mean"] + (1 - MOMENTUM) * mean,
            "var": MOMENTUM * kept["var"] + (1 - MOMENTUM) * var,
        }
    h = (x - mean) / jnp.sqrt(var + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
    out = h @ params["dense"]["kernel"] + params["dense"]["bias"]
    return (out, {"stats": {"norm": stats}}) if call.training else out


STRUCTURE = jcl.Structure(head="dense", collections=("stats",))
jcl.method.with_structure(apply, STRUCTURE)


def program(*parts: jcl.Method, **options: Any) -> jcl.Program:
    tx = options.pop("tx", optax.sgd(0.05))
    return jcl.make(jcl.chain(*parts), apply, losses.cross_entropy(), tx, **options)


def ran(made: jcl.Program, rows: Any = STREAM) -> jcl.State:
    return jax.jit(lambda p: jcl.run(made, p, KEY, rows, collections=KEPT)[0])(PARAMS)


def batch_of(rows: Any, stage: int, step: int) -> Any:
    return jax.tree.map(lambda x: x[stage, step], rows)


def close(found: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def means(rows: Any, steps: int) -> np.ndarray:
    """The running mean after so many steps of the stream, in closed form."""
    mean = np.zeros(WIDTH)
    for i in range(steps):
        batch = batch_of(rows, i // STEPS, i % STEPS)
        mean = MOMENTUM * mean + (1 - MOMENTUM) * np.average(
            batch["x"], axis=0, weights=batch["weight"]
        )
    return mean


@pytest.mark.quick
def test_training_changes_them_as_the_closed_form_says() -> None:
    state = ran(program())
    close(state.collections["stats"]["norm"]["mean"], means(STREAM, STAGES * STEPS))


def test_they_learn_by_no_gradient_and_no_method_keeps_state_for_them() -> None:
    made = program(methods.ewc(strength=1.0), tx=optax.adam(1e-3))
    state = made.init(PARAMS, BATCH, KEY, KEPT)
    paths = [p for p in jcl.trees.by_path((state.optimizer, state.methods)) if "norm" in p]
    assert paths and not any("mean" in p or "var" in p for p in paths)


def test_replayed_rows_count_and_the_batch_of_the_loss_is_what_is_normalised() -> None:
    made = program(methods.er(capacity=16, rows=4, start=0))
    state = made.init(PARAMS, BATCH, KEY, KEPT)
    step = jax.jit(made.step)
    once, _ = step(state, BATCH)
    twice, _ = step(once, BATCH)
    alone = jax.jit(program().step)(once._replace(methods={}), BATCH)[0]
    mine, other = twice.collections["stats"]["norm"], alone.collections["stats"]["norm"]
    assert not np.allclose(mine["mean"], other["mean"])


@pytest.mark.parametrize(
    "method",
    [
        methods.ewc(), methods.mas(), methods.si(), methods.lwf(), methods.kl_to_reference(),
        methods.ogd(directions=4, per_stage=2), methods.agem(capacity=8, rows=2), methods.l2sp(),
        methods.mofo(fraction=1.0), methods.recadam(speed=1.0, midpoint=4),
    ],
    ids=lambda m: m.name,
)  # fmt: skip
def test_no_statistic_teacher_or_evaluation_changes_them(method: jcl.Method) -> None:
    """They are those of plain training: what a method asks of the model leaves no trace."""
    made = program(method)
    state = ran(made)
    wanted = means(STREAM, STAGES * STEPS)
    close(state.collections["stats"]["norm"]["mean"], wanted)
    before = made.init(PARAMS, BATCH, KEY, KEPT)
    after = jax.jit(made.consolidate)(before, jax.tree.map(lambda x: x[0], STREAM))
    for a, b in zip(jax.tree.leaves(after.collections), jax.tree.leaves(KEPT), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_fisher_uses_the_running_averages() -> None:
    """No row normalises itself: the Fisher is that of the model that predicts."""
    made = program(methods.ewc())
    rows = jax.tree.map(lambda x: x[0], STREAM)
    state = jax.jit(made.consolidate)(made.init(PARAMS, BATCH, KEY, KEPT), rows)

    def still(params: Any, batch: Any) -> Any:
        return apply(params, batch, jcl.Call(collections=KEPT))

    plain = jcl.make(methods.ewc(), still, losses.cross_entropy(), optax.sgd(0.05))
    wanted = jax.jit(plain.consolidate)(plain.init(PARAMS, BATCH, KEY), rows)
    close(state.methods["ewc"].fisher, wanted.methods["ewc"].fisher)


def test_a_reference_keeps_its_own() -> None:
    seen = jax.tree.map(lambda x: x[:, 0, 0], STREAM)

    def init(ctx: jcl.Ctx, params: Any) -> Any:
        return params, (ctx.apply(params, seen), jnp.zeros((STAGES, CLASSES)))

    def consolidate(state: Any, ctx: jcl.Ctx, params: Any, batches: Any) -> Any:
        return params, (state[0], ctx.recall(ctx.references["initial"], seen))

    asking = jcl.Method("asking", init=init, consolidate=consolidate, recalls=("initial",))
    state = ran(program(asking))
    first, last = state.methods["asking"]
    np.testing.assert_allclose(first, last, rtol=1e-6)


@pytest.mark.parametrize("parts", [2, 4])
def test_microbatches_average_them(parts: int) -> None:
    rows = stream(rows=8)
    found = ran(program(microbatches=parts, tx=optax.sgd(0.0)), rows)
    close(found.collections["stats"]["norm"]["mean"], means(rows, STAGES * STEPS))
    # the variance lacks what lies between the parts
    whole = ran(program(tx=optax.sgd(0.0)), rows).collections["stats"]["norm"]["var"]
    assert np.all(found.collections["stats"]["norm"]["var"] < whole)


def test_a_batch_of_nothing_but_padding_leaves_them_alone() -> None:
    made = program(microbatches=2)
    empty = {**BATCH, "weight": jnp.zeros(ROWS)}
    state, _ = jax.jit(made.step)(made.init(PARAMS, BATCH, KEY, KEPT), empty)
    for a, b in zip(jax.tree.leaves(state.collections), jax.tree.leaves(KEPT), strict=True):
        np.testing.assert_array_equal(a, b)


def test_on_a_mesh_they_are_those_of_one_device() -> None:
    devices = meshes.make(data=2, fsdp=2, tensor=2)
    close(ran(program(mesh=devices)).collections, ran(program()).collections)


def test_replicas_average_them() -> None:
    """As microbatches do, for a replica is one."""
    made = program(axis_name="replica", tx=optax.sgd(0.0))
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:2]), ("replica",))
    state = made.init(PARAMS, BATCH, KEY, KEPT)
    spec = jax.sharding.PartitionSpec
    step = jax.shard_map(
        made.step, mesh=mesh, in_specs=(spec(), spec("replica")), out_specs=spec(),
        check_vma=False,
    )  # fmt: skip
    found, _ = jax.jit(step)(state, BATCH)
    wanted, _ = jax.jit(program(microbatches=2, tx=optax.sgd(0.0)).step)(state, BATCH)
    close(found.collections, wanted.collections)


def test_members_have_their_own() -> None:
    rates = jnp.asarray([0.01, 0.1])
    many = jcl.replicate(lambda rate: program(tx=optax.sgd(rate)), rates, how="vmap")

    def double(tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.stack([x, x]), tree)

    kept = double(KEPT)
    kept["stats"]["norm"]["mean"] = kept["stats"]["norm"]["mean"].at[1].add(1.0)
    state = many.init(double(PARAMS), double(BATCH), jax.random.split(KEY, 2), kept)
    state, _ = jax.jit(many.step)(state, double(BATCH))
    mean = state.collections["stats"]["norm"]["mean"]
    np.testing.assert_allclose(mean[1] - mean[0], MOMENTUM * np.ones(WIDTH), rtol=1e-5)


def test_they_are_checkpointed_and_resumed_to_the_bit(tmp_path: Any) -> None:
    made = program(methods.ewc(strength=1.0))

    class Stop(Exception):
        pass

    def stop(event: dict[str, Any]) -> None:
        if event["kind"] == "progress" and event["step"] == 6:
            raise Stop

    args = (made, PARAMS, KEY, STREAM)
    options = {"chunk": 2, "checkpoint_every": 2, "collections": KEPT}
    whole = jcl.fit(*args, **options)
    with pytest.raises(Stop):
        jcl.fit(*args, **options, out=tmp_path / "run", on_event=stop)
    resumed = jcl.fit(*args, **options, out=tmp_path / "run", resume=True)
    for a, b in zip(
        jax.tree.leaves(resumed.state.collections), jax.tree.leaves(whole.state.collections),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_array_equal(a, b)


def moments_of(rows: Any) -> Any:
    """Mean over batches of their means and variances, float64, as update_bn would leave them."""
    x, weight = np.asarray(rows["x"], np.float64), np.asarray(rows["weight"], np.float64)
    share = weight / weight.sum(-1, keepdims=True)
    mean = np.einsum("nb,nbd->nd", share, x)
    var = np.einsum("nb,nbd->nd", share, (x - mean[:, None]) ** 2)
    return {"mean": mean.mean(0), "var": var.mean(0)}


WRITERS = [
    methods.ema(0.5), methods.wise_ft(0.5), methods.task_arithmetic(0.5), methods.ties(),
    methods.magmax(), methods.from_scratch(),
]  # fmt: skip


@pytest.mark.parametrize("method", WRITERS, ids=lambda m: m.name)
def test_after_a_writer_they_are_recomputed_or_kept(method: jcl.Method) -> None:
    rows = jax.tree.map(lambda x: x[-1], STREAM)
    state = ran(program(method))
    close(state.collections["stats"]["norm"], moments_of(rows), 1e-4)
    kept = ran(program(method, collections="keep"))
    close(kept.collections["stats"]["norm"]["mean"], means(STREAM, STAGES * STEPS))


@pytest.mark.parametrize("anchor", ["previous", "first"])
def test_an_interpolation_may_interpolate_them_too(anchor: Any) -> None:
    """As of a torch module's whole state_dict; here what training left is known in closed form."""
    rows = jax.tree.map(lambda x: x[:1], STREAM)
    made = program(methods.wise_ft(0.25, anchor), collections="average")
    found = ran(made, rows).collections["stats"]["norm"]["mean"]
    np.testing.assert_allclose(found, 0.25 * means(STREAM, STEPS), rtol=1e-5)
    twice = ran(made, jax.tree.map(lambda x: x[:2], STREAM)).collections["stats"]["norm"]["mean"]
    ended = (
        found * MOMENTUM**STEPS
        + means(STREAM, 2 * STEPS)
        - means(STREAM, STEPS) * (MOMENTUM**STEPS)
    )
    start = found if anchor == "previous" else np.zeros(WIDTH)
    np.testing.assert_allclose(twice, 0.75 * start + 0.25 * ended, rtol=1e-4)


def test_an_average_of_weights_may_average_them_too() -> None:
    rows = jax.tree.map(lambda x: x[:1], STREAM)
    found = ran(program(methods.ema(0.5), collections="average"), rows)
    wanted = np.zeros(WIDTH)
    for steps in range(1, STEPS + 1):
        wanted = 0.5 * wanted + 0.5 * means(STREAM, steps)
    np.testing.assert_allclose(found.collections["stats"]["norm"]["mean"], wanted, rtol=1e-5)


def test_who_reads_at_a_boundary_sees_what_the_writer_left() -> None:
    seen = jax.tree.map(lambda x: x[:, 0, 0], STREAM)

    def consolidate(state: Any, ctx: jcl.Ctx, params: Any, batches: Any) -> Any:
        return params, ctx.apply(params, seen)

    reader = jcl.Method(
        "reader", init=lambda ctx, params: (params, jnp.zeros((STAGES, CLASSES))),
        consolidate=consolidate,
    )  # fmt: skip
    for choice in ("recompute", "keep", "average"):
        made = program(methods.wise_ft(0.5), reader, collections=choice)
        state = ran(made)
        np.testing.assert_allclose(
            state.methods["reader"], made.predict(state, seen), rtol=1e-5, err_msg=choice
        )


def test_what_is_no_moving_average_stays_as_it_is() -> None:
    def counting(params: Any, batch: Any, call: jcl.Call = jcl.Call()) -> Any:
        counts = call.collections["counts"]
        out = batch["x"] @ params["dense"]["kernel"]
        counts = {"calls": counts["calls"] + 1, "seen": counts["seen"] + jnp.sum(batch["weight"])}
        return (out, {"counts": counts}) if call.training else out

    jcl.method.with_structure(counting, jcl.Structure(collections=("counts",)))
    made = jcl.make(
        methods.ema(0.5), counting, losses.cross_entropy(), optax.sgd(0.1), microbatches=2
    )
    kept = {"counts": {"calls": jnp.int32(0), "seen": jnp.float32(0)}}
    state, _ = jcl.run(made, {"dense": PARAMS["dense"]}, KEY, STREAM, collections=kept)
    assert int(state.collections["counts"]["calls"]) == STAGES * STEPS


def scanning(apply: Any, params: Any, batch: Any) -> Any:
    def one(total: Any, row: Any) -> Any:
        out = apply(params, jax.tree.map(lambda x: x[None], row))
        return total + jnp.sum(out), None

    return jax.lax.scan(one, 0.0, {k: batch[k] for k in ("x", "weight")})[0]


def silent(params: Any, batch: Any, call: jcl.Call = jcl.Call()) -> Any:
    return batch["x"] @ params["dense"]["kernel"]


jcl.method.with_structure(silent, STRUCTURE)


def old_hook(state: Any, ctx: jcl.Ctx, loss_fn: Any) -> Any:
    def wrapped(params: Any, batch: Any, call: Any) -> Any:
        value, aux = loss_fn(params, batch, call)
        return value, aux.outputs

    return wrapped


@pytest.mark.parametrize(
    ("options", "kept", "sentence"),
    [
        ({}, (), r"collections is \[\], but must be \['stats'\]"),
        ({}, {"batch_stats": {}}, r"collections is \['batch_stats'\], but must be \['stats'\]"),
        ({"method": methods.packnet(stages=2)}, KEPT, r"\['stats'\], but must be none for packnet"),
        ({"loss": scanning}, KEPT, r"calls a model that keeps \['stats'\] inside a transformation"),
        ({"apply": silent}, KEPT, r"the model returned .* must return its outputs and its"),
        ({"collections": "mean"}, KEPT, r"collections is 'mean', but must be 'recompute', 'keep'"),
        ({"method": jcl.Method("mine", loss=old_hook)}, KEPT, r"mine's loss gives a tuple, but"),
    ],
)  # fmt: skip
def test_what_is_wrong_gets_a_sentence(options: Any, kept: Any, sentence: str) -> None:
    given = {"method": jcl.chain(), "apply": apply, "loss": losses.cross_entropy(), **options}
    more = {k: given.pop(k) for k in ("collections",) if k in given}
    with pytest.raises(ValueError, match=sentence):
        made = jcl.make(**given, tx=optax.sgd(0.1), **more)
        state = made.init(PARAMS, BATCH, KEY, kept)
        jax.eval_shape(made.step, state, BATCH)


def test_statistics_among_the_parameters_are_refused() -> None:
    mixed = {**PARAMS, "batch_stats": KEPT["stats"]}
    with pytest.raises(ValueError, match="batch_stats are given as collections"):
        program().init(mixed, BATCH, KEY, KEPT)


def test_a_model_without_any_costs_nothing() -> None:
    """The step of a model that keeps nothing has no leaf and no operation more."""

    def plain(params: Any, batch: Any) -> Any:
        return batch["x"] @ params["dense"]["kernel"]

    made = jcl.make(jcl.chain(), plain, losses.cross_entropy(), optax.sgd(0.1))
    state = made.init({"dense": PARAMS["dense"]}, BATCH, KEY)
    assert state.collections == () and not jax.tree.leaves(state.collections)
