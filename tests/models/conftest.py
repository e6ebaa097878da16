"""What tests of stored models share."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest
from stored_decoder import SMALL

from jcl import models
from jcl.models import decoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small decoder, as transformers stores it."""
    params = decoder.init(jax.random.key(0), SMALL)
    return models.save(models.of(SMALL, params), params, tmp_path / "model")
