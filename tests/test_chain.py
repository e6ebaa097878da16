"""Chains: the order of hooks, whose state and draws are whose, and what does not compose."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_context import context

import jcl
from jcl import losses, methods, models, trees
from jcl.method import Ctx

SIZES = (5, 7, 3)
PARAMS = models.mlp.init(jax.random.key(0), SIZES)
SHAPE = (2, 4, 6)  # stages, steps, rows
X = jax.random.normal(jax.random.key(1), (*SHAPE, SIZES[0]))
STREAM = {"x": X, "y": jax.random.randint(jax.random.key(2), SHAPE, 0, SIZES[-1])}
BATCH = jax.tree.map(lambda x: x[0, 0], STREAM)


def make(method: jcl.Method) -> jcl.Program:
    return jcl.make(method, models.mlp.apply, losses.cross_entropy(), optax.adam(1e-2))


def ctx(key: int = 0) -> Ctx:
    """What the hooks of these tests read, which is a key alone."""
    return context(
        key=jax.random.key(key), apply=lambda p, b: 0, loss=lambda *_: 0, objective=lambda *_: 0
    )


def noted(name: str, log: list[str]) -> jcl.Method:
    """Adds its name to what goes through its hooks."""

    def note(phase: str, given: Any) -> Any:
        log.append(f"{phase} {name}")
        return given

    return jcl.Method(
        name,
        init=lambda ctx, params: (params, name),
        batch=lambda state, ctx, rows: note("batch", rows),
        forward=lambda state, ctx, apply: lambda *a: note("forward", apply(*a)),
        loss=lambda state, ctx, loss: lambda *a: note("loss", loss(*a)),
        grads=lambda state, ctx, tree: note("grads", tree),
        updates=lambda state, ctx, tree: note("updates", tree),
        observe=lambda state, ctx, info: note("observe", state + "'"),
        consolidate=lambda state, ctx, params, batches: (params, note("consolidate", state)),
        report=lambda state, info: {"length": len(state)},
    )


@pytest.mark.quick
def test_hooks_run_from_left_to_right_and_the_last_wrapper_is_outermost() -> None:
    log: list[str] = []
    both = jcl.chain(noted("a", log), noted("b", log))
    _, states = both.init(ctx(), {"w": jnp.ones(3)})
    assert states == {"a": "a", "b": "b"}
    both.batch(states, ctx(), {})
    # a wrapper notes after what it wraps has returned: the innermost comes first
    both.forward(states, ctx(), lambda: 0)()
    both.loss(states, ctx(), lambda *a: (0, jcl.Aux(None)))({}, {})
    both.grads(states, ctx(), {})
    both.updates(states, ctx(), {})
    assert both.observe(states, ctx(), None) == {"a": "a'", "b": "b'"}
    both.consolidate(states, ctx(), {}, {})
    phases = ["batch", "forward", "loss", "grads", "updates", "observe", "consolidate"]
    assert log == [f"{phase} {name}" for phase in phases for name in "ab"]
    assert both.report({"a": "a", "b": "bbb"}, None) == {"a/length": 1, "b/length": 3}


@pytest.mark.quick
def test_a_chain_defines_what_one_of_its_methods_defines_and_an_empty_one_nothing() -> None:
    empty = jcl.chain()
    assert empty.name == "naive" and empty.parts == ()
    phases = [p for p in jcl.method.PHASES if p not in ("init", "begin", "skips")]
    assert not any(jcl.method.defines(empty, phase) for phase in phases)
    some = jcl.chain(methods.er(capacity=5), methods.ewc())
    defined = {p for p in phases if jcl.method.defines(some, p)}
    assert defined == {"batch", "grads", "observe", "consolidate", "report"}
    assert some.reads == ("parameters", "gradients", "samples")


@pytest.mark.quick
def test_it_is_idle_while_all_that_have_passes_are() -> None:
    def sleeper(name: str, sleeps: bool) -> jcl.Method:
        return jcl.Method(name, batch=lambda s, c, rows: rows, skips=lambda s, c: jnp.array(sleeps))

    silent = jcl.Method("silent", grads=lambda s, c, tree: tree)  # has no pass, so has no say
    for pair, skips in (((True, True), True), ((True, False), False)):
        both = jcl.chain(*(sleeper(n, s) for n, s in zip("ab", pair, strict=True)), silent)
        assert bool(both.skips({"a": (), "b": (), "silent": ()}, ctx())) is skips
    awake = jcl.chain(sleeper("a", True), jcl.Method("b", batch=lambda s, c, rows: rows))
    assert not jcl.method.defines(awake, "skips")


@pytest.mark.quick
def test_each_method_has_keys_of_its_own_for_each_phase() -> None:
    keys: dict[str, Any] = {}

    def keeps(name: str) -> jcl.Method:
        def note(phase: str, key: Any, value: Any) -> Any:
            keys[f"{name}/{phase}"] = tuple(np.asarray(jax.random.key_data(key)).tolist())
            return value

        return jcl.Method(
            name,
            grads=lambda s, c, tree: note("grads", c.key, tree),
            updates=lambda s, c, tree: note("updates", c.key, tree),
        )

    for chained in (jcl.chain(keeps("a"), keeps("b")), jcl.chain(keeps("b"), keeps("a"))):
        keys, before = {}, keys
        states: dict[str, Any] = {"a": (), "b": ()}
        chained.grads(states, ctx(3), {})
        chained.updates(states, ctx(3), {})
        assert len(keys) == len(set(keys.values())) == 4
        assert not before or keys == before  # whatever stands beside a method


def test_adding_a_method_never_changes_anothers_draws() -> None:
    alone = make(methods.er(capacity=4, rows=2))
    beside = make(jcl.chain(methods.ema(), methods.er(capacity=4, rows=2)))
    buffers = []
    for program in (alone, beside):
        state, _ = jcl.run(program, PARAMS, jax.random.key(3), STREAM)
        buffers.append(state.methods["er"].buffer.rows["x"])
    np.testing.assert_array_equal(*buffers)


@pytest.mark.quick
def test_chain_refuses_what_can_not_work() -> None:
    with pytest.raises(ValueError, match="two methods are named 'ewc'"):
        jcl.chain(methods.ewc(), methods.ewc())
    with pytest.raises(ValueError, match="wise_ft must come before ewc"):
        jcl.chain(methods.ewc(), methods.wise_ft())
    with pytest.raises(ValueError, match="reads 'agem', which is not in the chain"):
        jcl.chain(methods.er(share="agem"))
    grows = jcl.Method("grows", init=lambda ctx, params: ({**params, "more": jnp.ones(2)}, ()))
    with pytest.raises(ValueError, match="grows adds parameters, so it must come before ewc"):
        make(jcl.chain(methods.ewc(), grows)).init(PARAMS, BATCH, jax.random.key(0))


@pytest.mark.quick
def test_chains_nest() -> None:
    inner = jcl.chain(methods.er(), methods.ewc())
    assert jcl.chain(inner, methods.si(), methods.naive()).name == "er + ewc + si"


@pytest.mark.quick
def test_explain_names_what_the_optimizer_keeps() -> None:
    text = jcl.explain(methods.ewc(), optax.sgd(optax.linear_schedule(0.1, 0.0, 7), momentum=0.9))
    assert "(optimizer)  TraceState, ScaleByScheduleState" in text
    assert "(optimizer)" in jcl.explain(methods.ewc()) and "State" not in jcl.explain(methods.ewc())


@pytest.mark.quick
def test_explain_tells_the_bytes_that_are_kept_once_for_all_who_share_them() -> None:
    method = jcl.chain(methods.lwf(), methods.kl_to_reference(reference="previous"), methods.ewc())
    state = jax.eval_shape(make(method).init, PARAMS, BATCH, jax.random.key(0))
    last = jcl.explain(method, state=state).splitlines()[-1]
    model = 4 * sum(x.size for x in jax.tree.leaves(PARAMS))
    assert f"ewc {2 * model:,}" in last
    assert f"the previous model, for lwf, kl_to_reference, {model + 8:,}" in last
    assert jcl.explain(methods.naive(), state=state._replace(references={})).endswith("nothing")


@pytest.mark.quick
def test_a_list_of_methods_is_no_chain() -> None:
    with pytest.raises(ValueError, match=r"takes methods one by one: chain\(\*methods\)"):
        jcl.chain([methods.ewc()])  # type: ignore[arg-type]


@pytest.mark.quick
def test_plus_composes() -> None:
    both = methods.er(capacity=4, rows=2) + methods.ewc() + methods.naive()
    assert [m.name for m in both.parts] == ["er", "ewc"]
    assert isinstance(both, jcl.Method)
    with pytest.raises(TypeError):
        methods.ewc() + 1  # type: ignore[operator]


RETURNS: dict[str, tuple[dict[str, Any], str]] = {
    "init": (
        {"init": lambda ctx, params: params},
        "init returned a dict, but must return two things",
    ),
    "batch": ({"batch": lambda state, ctx, rows: None}, "batch returned None"),
    "forward": ({"forward": lambda state, ctx, apply: None}, "forward returned None"),
    "loss": ({"loss": lambda state, ctx, loss: None}, "loss returned None"),
    "grads": ({"grads": lambda state, ctx, grads: None}, "grads returned None"),
    "updates": ({"updates": lambda state, ctx, tree: {}}, "updates returned a dict"),
    "observe": ({"observe": lambda state, ctx, info: 1.0}, "observe returned a float"),
    "shape": (
        {"grads": lambda state, ctx, grads: jax.tree.map(jnp.ravel, grads)},
        r"grads returned dense_0/kernel of shape \(\d+,\) instead of \(\d+, \d+\)",
    ),
    "consolidate": ({"consolidate": lambda *given: None}, "consolidate returned None"),
    "state": (
        {"consolidate": lambda s, c, p, b: (p, 1.0)},
        "consolidate returned a float, .* the state second",
    ),
}


@pytest.mark.quick
@pytest.mark.parametrize("case", RETURNS)
def test_what_a_hook_must_not_return_is_refused_by_its_name(case: str) -> None:
    hooks, sentence = RETURNS[case]
    program = make(jcl.Method("mine", **hooks))
    with pytest.raises(ValueError, match=f"mine's {sentence}"):
        state = program.init(PARAMS, BATCH, jax.random.key(0))
        state, _ = jax.eval_shape(program.step, state, BATCH)
        jax.eval_shape(program.consolidate, state, jax.tree.map(lambda x: x[0], STREAM))


@pytest.mark.quick
@pytest.mark.parametrize(
    "holder", [methods.packnet(stages=3), methods.hat(tasks=3, steps=5)], ids=lambda m: m.name
)
def test_weights_that_are_promised_to_stay_have_no_other_writer(holder: jcl.Method) -> None:
    with pytest.raises(ValueError, match=f"{holder.name} promises .* and ema changes them"):
        jcl.chain(methods.ema(), holder)


@pytest.mark.quick
def test_only_known_moments_are_recalled() -> None:
    with pytest.raises(ValueError, match="mine recalls 'best', but must recall one of"):
        jcl.chain(jcl.Method("mine", recalls=("best",)))


@pytest.mark.quick
def test_leaves_learn_that_one_method_names() -> None:
    def first(path: str) -> bool:
        return path.startswith("dense_0")

    def last(path: str) -> bool:
        return path.endswith("bias")

    mine = jcl.Method("mine", learns=first)
    other = jcl.Method("other", learns=last)
    for method, wanted in ((mine, {first}), (mine + other + methods.ewc(), {first, last})):
        program = make(method)
        state = program.init(PARAMS, BATCH, jax.random.key(0))
        after, _ = jax.jit(program.step)(state, BATCH)
        before, moved = trees.by_path(state.params), trees.by_path(after.params)
        learned = {path for path in before if not np.array_equal(before[path], moved[path])}
        assert learned == {path for path in before if any(one(path) for one in wanted)}


def banked() -> jcl.Method:
    """Keeps two of a leaf."""
    return jcl.Method("banked", init=lambda ctx, p: ({**p, "w": jnp.stack([p["w"]] * 2)}, ()))


@pytest.mark.quick
def test_who_gives_leaves_more_axes_comes_before_who_knows_their_shapes() -> None:
    made = make(methods.ewc() + banked())
    with pytest.raises(ValueError, match="banked adds parameters, so it must come before ewc"):
        made.init({**PARAMS, "w": jnp.ones(3)}, BATCH, jax.random.key(0))


@pytest.mark.quick
def test_a_method_is_told_who_gave_a_leaf_more_axes() -> None:
    told: list[Any] = []

    def init(ctx: Ctx, params: Any) -> Any:
        told.append([ctx.grown("w"), ctx.grown("dense_0/kernel"), ctx.added("w")])
        return params, ()

    made = make(banked() + jcl.Method("curious", init=init))
    made.init({**PARAMS, "w": jnp.ones(3)}, BATCH, jax.random.key(0))
    assert told == [["banked", None, None]]


@pytest.mark.quick
def test_who_adds_leaves_and_asks_the_model_for_them_is_told_of_the_order_too() -> None:
    """An earlier method that wraps the model with a state of its shape would break in JAX."""

    def init(ctx: Ctx, params: Any) -> Any:
        grown = {**params, "more": jnp.ones(3)}
        jax.eval_shape(ctx.apply, grown, ctx.batch)
        return grown, ()

    def forward(state: Any, ctx: Ctx, apply: Any) -> Any:
        return lambda params, batch, call: apply(trees.add(params, state), batch, call)

    def model(params: Any, batch: Any) -> Any:
        return models.mlp.apply({k: params[k] for k in PARAMS}, batch)

    around = jcl.Method("around", init=lambda ctx, p: (p, trees.zeros(p)), forward=forward)
    asks = jcl.Method("asks", init=init)

    def begin(method: jcl.Method) -> jcl.State:
        made = jcl.make(method, model, losses.cross_entropy(), optax.sgd(0.1))
        return made.init(PARAMS, BATCH, jax.random.key(0))

    assert "more" in begin(asks + around).params
    with pytest.raises(ValueError, match="asks adds parameters, so it must come before around"):
        begin(around + asks)
