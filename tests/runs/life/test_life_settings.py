"""What is chosen where nobody says, and what can't be chosen."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from jcl.runs.life import settings
from jcl.runs.life.settings import Settings, check_settings

pytestmark = pytest.mark.quick
GIVEN = Settings("model", "text", "naive()", 1e-3, 64)


def test_large_models_get_pairs_and_smaller_rates() -> None:
    assert settings.method_for(1_000_000, "text") == "er(capacity=512, fraction=0.25)"
    assert settings.method_for(10**9, "chat").startswith("lora() + er(")
    assert settings.method_for(10**9, "prefer").endswith(" + dpo()")
    rates = [settings.rate_for(n, "naive()") for n in (10**6, 10**8, 10**10)]
    assert rates == sorted(rates, reverse=True) and settings.rate_for(10**9, "lora()") > rates[1]
    assert settings.length_for(40, 4096) == 64 and settings.length_for(9999, 256) == 256


def test_steps_are_of_the_rows_and_fit_a_chunk() -> None:
    assert GIVEN.steps_for(100) == 40  # three epochs of 12.5 batches, rounded up
    assert GIVEN.steps_for(1) == settings.LEAST and GIVEN.steps_for(10**6) == settings.MOST
    assert dataclasses.replace(GIVEN, steps=7).steps_for(100) == 7


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 0.0), ("batch", 0), ("length", 1), ("epochs", 0.0), ("steps", -1), ("held_out", 1.0),
     ("test_rows", 0), ("keep", 0), ("optimizer", "drop")],
)  # fmt: skip
def test_what_cannot_be_is_refused(name: str, value: object) -> None:
    assert check_settings(GIVEN) is GIVEN
    with pytest.raises(ValueError, match=name.replace("_", "-")):
        check_settings(dataclasses.replace(GIVEN, **{name: value}))  # type: ignore[arg-type]


def test_they_are_read_again() -> None:
    saved = {"life": dataclasses.asdict(GIVEN)}
    assert settings.restored(saved, Path("run")) == GIVEN
    for other in ({}, {"life": {"speed": 3}}):
        with pytest.raises(ValueError, match="run is no run to which data can be added"):
            settings.restored(other, Path("run"))
