"""`jcl export` of a life: its current state, folded, as adapters or as a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_life import month

from jcl import models
from jcl.cli import main
from jcl.mechanisms import adapters
from jcl.runs.life import served
from jcl.runs.life.life import Life

pytest.importorskip("transformers")


@pytest.mark.quick
def test_a_life_is_exported_as_it_predicts(life: Life, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["export", str(life.folder), "--to", str(out)]) == 0
    built, setup, state, numbers = served.parts(life.folder)
    assert setup.stream.names == ("jan", "feb") and numbers == [0, 1]
    batch = {k: jnp.asarray(x[0]) for k, x in setup.stream.chunk(1, 0, 1).items()}
    wanted = np.asarray(setup.program.predict(state, batch))
    model = models.load(out)
    np.testing.assert_allclose(model.apply(model.params, batch), wanted, atol=1e-5)
    assert np.abs(wanted - built.apply(built.model.params, batch)).max() > 1e-3
    assert "# " in (out / "README.md").read_text()


def test_the_adapters_of_a_life_stand_beside_the_base_that_it_began_with(
    born: Callable[..., Life], stored: Path, tmp_path: Path
) -> None:
    method = "lora(rank=2)"
    life = born(month("jan"), method=method, lr=1e-2, length=16, batch=4, steps=2, held_out=0.2)
    assert life.stage("jan", month("jan")).accepted
    out = tmp_path / "out"
    assert main(["export", str(life.folder), "--adapters", "--to", str(out)]) == 0
    assert str(stored) in (out / "adapter_config.json").read_text()
    found = models.load_adapter(out, models.load(stored))
    _, setup, state, _ = served.parts(life.folder)
    read = setup.program.read_params(state, {"tokens": jnp.zeros((1, 4), jnp.int32)})
    scaled: Any = adapters.scale_pairs(found.params, found.settings["alpha"] / 2)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), scaled, read)
