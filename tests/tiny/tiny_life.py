"""A tiny model in a folder, and a life of two months that tests copy before they change it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import pytest
import tiny_text

from jcl import models
from jcl.models import decoder
from jcl.runs.life.begin import begin
from jcl.runs.life.life import Life
from jcl.runs.life.rows import Row

SMALL: dict[str, Any] = {"lr": 1e-2, "length": 16, "batch": 4, "steps": 10, "held_out": 0.2}
WORDS = {"jan": "the cat sat on the mat", "feb": "def f(x): return x + 1", "march": "hello there"}


def month(name: str, rows: int = 30) -> list[Row]:
    """A month of texts, each with a number, so that they differ."""
    return [{"text": f"{WORDS[name]} {i}"} for i in range(rows)]


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny_text.byte_level()
    config = decoder.Config(
        vocabulary=len(tokenizer), layers=1, width=16, heads=2, kv_heads=1, hidden=24
    )
    params = decoder.init(jax.random.key(0), config)
    return models.save(models.of(config, params, tokenizer), params,
                       tmp_path_factory.mktemp("stored") / "model")  # fmt: skip


@pytest.fixture(scope="session")
def lived(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A life of January and February under replay, both accepted."""
    folder = tmp_path_factory.mktemp("lived") / "run"
    life = begin(folder, str(stored), month("jan"), method="er(capacity=8, rows=2)", **SMALL)
    assert [life.stage(name, month(name)).accepted for name in ("jan", "feb")] == [True, True]
    return folder


@pytest.fixture
def life(lived: Path, tmp_path: Path) -> Life:
    """A copy of it, which a test may change."""
    return Life(shutil.copytree(lived, tmp_path / "run"))


@pytest.fixture
def born(stored: Path, tmp_path: Path) -> Callable[..., Life]:
    """Begins a life in a folder of its own."""
    return partial(begin, tmp_path / "born", str(stored))
