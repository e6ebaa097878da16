"""Conditions for a new state: what they say, and what they refuse."""

from __future__ import annotations

import pytest

from jcl.runs.life.accept import broken, check_names, parse

pytestmark = pytest.mark.quick


def test_each_comparison_is_that_of_python() -> None:
    held = parse("a<1, b<=2, c>3, d>=4,probe.x > -1")
    assert broken(held, {"a": 0.9, "b": 2.0, "c": 3.1, "d": 4.0, "probe.x": 0.0}) == []
    assert broken(held, {"a": 1.0, "b": 2.1, "c": 3.0, "d": 3.9, "probe.x": -1.0}) == [
        "a is 1 and not <1", "b is 2.1 and not <=2", "c is 3 and not >3", "d is 3.9 and not >=4",
        "probe.x is -1 and not >-1",
    ]  # fmt: skip
    assert broken(held[:1], {"a": None}) == []  # nothing can be forgotten after one stage
    assert parse(" ") == []


@pytest.mark.parametrize("text", ["average", "average>x", "a>1>2", "<3", "a=3", "a<1,,b<2"])
def test_what_is_no_comparison_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"accept has .*, but must have comparisons with a number"):
        parse(text)


def test_what_is_not_measured_is_refused() -> None:
    check_names(parse("forgetting<2"), ["forgetting", "jan"])
    with pytest.raises(
        ValueError, match=r"accept asks for 'forgeting', which isn't measured.*forgetting"
    ):
        check_names(parse("forgeting<2"), ["forgetting", "jan"])
