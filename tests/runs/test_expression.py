import jax
import jax.numpy as jnp
import pytest
from tiny_context import context

from jcl import methods
from jcl.mechanisms.quadratic import Quadratic
from jcl.runs import expression
from jcl.runs.expression import Call


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("ewc", [Call("ewc", {})]),
        ("ewc(100.)", [Call("ewc", {"strength": 100.0})]),
        (
            " er(capacity=500, rows=16)+ewc(strength=1e2) ",
            [Call("er", {"capacity": 500, "rows": 16}), Call("ewc", {"strength": 100.0})],
        ),
        (
            "er(8, weight=0.5) + si() + ewc(labels='exact')",
            [
                Call("er", {"capacity": 8, "weight": 0.5}),
                Call("si", {}),
                Call("ewc", {"labels": "exact"}),
            ],
        ),
    ],
)
def test_parse_reads_calls_in_their_order(text, calls):
    assert expression.parse(text) == calls
    assert expression.parse(expression.show(calls)) == calls


def test_literals_may_be_negative_and_of_any_kind():
    assert expression.literal("-1e-3") == -1e-3
    assert expression.literal(" (1, 2) ") == (1, 2)
    assert expression.literal("None") is None
    assert expression.literal("exact") == "exact"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ewk()", ["'ewk'", "did you mean", "ewc"]),
        ("ewc(lamda=3)", ["'lamda'", "strength, labels and per"]),
        ("ewc(strength=x)", ["strength is x", "literal"]),
        ("ewc(strength='3')", ["strength is '3'", "a number"]),
        ("ewc(strength=True)", ["strength is True", "a number"]),
        ("er(capacity=1.5)", ["capacity is 1.5", "whole number"]),
        ("ewc(labels='all')", ["labels is 'all'", "'empirical', 'sampled' or 'exact'"]),
        ("ewc(1, strength=2)", ["'strength' twice"]),
        ("ewc(1, 'exact', 'row', 4)", ["at most 3", "got 4"]),
        ("ewc(**{})", ["**"]),
        ("ewc() * 2", ["no call"]),
        ("ewc() - er()", ["no call"]),
        ("jcl.ewc()", ["no call"]),
        ("ewc(", ["no method", "er(capacity=500) + ewc(strength=100.0)"]),
        ("", ["no method"]),
        ("3", ["no call"]),
    ],
)
def test_parse_refuses_in_one_sentence(text, says):
    with pytest.raises(ValueError) as caught:
        expression.parse(text)
    assert all(word in str(caught.value) for word in says), caught.value
    assert "\n" not in str(caught.value)


def test_nothing_is_evaluated(tmp_path):
    trap = tmp_path / "trap"
    for text in (
        f"__import__('pathlib').Path({str(trap)!r}).touch()",
        f"ewc(strength=open({str(trap)!r}, 'w'))",
        f"ewc(strength=[open({str(trap)!r}, 'w')][0])",
    ):
        with pytest.raises(ValueError):
            expression.parse(text)
    assert not trap.exists()


@pytest.mark.quick
def test_too_deep_an_expression_is_refused():
    with pytest.raises(ValueError, match="is no method"):
        expression.parse("(" * 100_000)


def _pull(method, theta):
    """ewc's extra gradient at theta, for F = 1 around 0."""
    zero, one = jnp.zeros(()), jnp.ones(())
    state = {"ewc": methods.ewc().init(context(), zero)[1]._replace(past=Quadratic(one, zero))}
    return method.grads(state, context(params=theta, key=jax.random.key(0)), zero)


def test_build_takes_overrides_that_may_be_traced():
    calls = expression.parse("ewc(strength=1.0)")
    assert _pull(expression.build(calls), jnp.float32(2)) == 2

    def swept(strength):
        return _pull(expression.build(calls, {"ewc.strength": strength}), jnp.float32(2))

    assert jax.vmap(swept)(jnp.asarray([0.0, 1.0, 5.0])).tolist() == [0, 2, 10]
    # a key of another method changes nothing
    assert _pull(expression.build(calls, {"si.strength": 7.0}), jnp.float32(2)) == 2


@pytest.mark.quick
def test_build_composes_and_refuses():
    assert expression.build(expression.parse("er() + naive() + ewc()")).name == "er + ewc"
    for text, says in (
        ("ewc(strength=-1)", "ewc: strength is -1"),
        ("ewc() + ewc()", "two methods are named 'ewc'"),
        ("packnet() + ewc() + ema()", "must come before"),
        ("gem()", "gem needs its argument 'stages'"),
    ):
        with pytest.raises(ValueError, match=says):
            expression.build(expression.parse(text))


def test_floats_are_traceable_and_what_sets_a_shape_is_not():
    assert expression.traceable(Call("ewc", {}), "strength")
    assert expression.traceable(Call("er", {}), "weight")
    assert not expression.traceable(Call("er", {}), "capacity")
    assert not expression.traceable(Call("ewc", {}), "labels")
    with pytest.raises(ValueError, match="no argument 'lamda'"):
        expression.traceable(Call("ewc", {}), "lamda")


def test_every_method_can_be_written_down():
    """Each public factory is found, and its signature can be read for types."""
    known = expression.factories()
    assert set(known) == set(methods.__all__)
    for name, factory in known.items():
        for argument, parameter in __import__("inspect").signature(factory).parameters.items():
            expression.traceable(Call(name, {}), argument)
            literal = isinstance(parameter.default, int | float | str | tuple | None)
            if parameter.default is not parameter.empty and literal:
                assert expression.override(Call(name, {}), argument, parameter.default)


def test_near_words_come_before_all_words():
    assert expression.near("capcity", ["capacity", "rows"]) == "; did you mean capacity?"
    assert expression.near("zzz", ["b", "a"], "--") == "; there are --a and --b"
    assert expression.near("zzz", ["a"]) == "; there is a"
