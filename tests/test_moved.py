"""Old module paths name the same objects as the new ones, and warn."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcl
from jcl import checkpoint, moved
from jcl.runs import expression

PATHS = moved.paths()


@pytest.mark.quick
def test_every_module_of_the_last_release_has_a_new_path() -> None:
    assert len(PATHS) > 80
    for new in PATHS.values():
        importlib.import_module(new)


@pytest.mark.parametrize("old", PATHS)
def test_an_old_path_names_the_same_objects(old: str) -> None:
    new = importlib.import_module(PATHS[old])
    if importlib.import_module(old) is new:
        assert old.removeprefix("jcl.") in jcl.__all__
        return
    own = [n for n, x in vars(new).items() if getattr(x, "__module__", None) == new.__name__]
    for name in own:
        with pytest.warns(DeprecationWarning, match=PATHS[old].replace(".", r"\.")):
            assert getattr(importlib.import_module(old), name) is getattr(new, name)


def test_old_paths_leave_functions_of_their_names_alone() -> None:
    code = (
        "import jcl; from jcl.fit import Result; import jcl.methods.ewc; from jcl import feed; "
        "print(callable(jcl.fit), callable(jcl.methods.ewc), feed.Feed, jcl.metrics.__name__)"
    )
    run = [sys.executable, "-W", "ignore", "-c", code]
    shown = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split(" ", 2)
    assert shown[:2] == ["True", "True"]
    assert shown[2].strip() == "<class 'jcl.training.feed.Feed'> jcl.measures.metrics"


def test_what_is_in_no_module_is_said() -> None:
    with pytest.raises(ImportError), pytest.warns(DeprecationWarning):
        from jcl.fit import nothing  # noqa: F401


@pytest.mark.quick
def test_public_names_stay_without_a_warning() -> None:
    assert jcl.metrics is sys.modules["jcl.measures.metrics"]


def test_renamed_functions_have_their_old_names_too() -> None:
    for module, names in moved.NAMES.items():
        present = importlib.import_module(f"jcl.{module}")
        for pair in names.split():
            old, new = pair.split(":")
            assert hasattr(present, new), f"jcl.{module} has no {new}"
            if "__getattr__" in vars(present):
                with pytest.warns(DeprecationWarning, match=f"{module}.{new}"):
                    assert getattr(present, old) is getattr(present, new)
    with pytest.warns(DeprecationWarning):
        from jcl.losses import shifted
    assert shifted is jcl.losses.with_targets
    with pytest.warns(DeprecationWarning):
        from jcl.processes import agreed
    assert agreed is importlib.import_module("jcl.parallel.processes").largest_of_all
    with pytest.warns(DeprecationWarning, match=r"jcl\.parallel\.signals"):
        from jcl.processes import Preempted
    assert Preempted is importlib.import_module("jcl.parallel.signals").Preempted
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        jcl.losses.nothing  # noqa: B018


def test_renamed_fields_are_read_by_their_old_names_and_warn() -> None:
    state = jcl.State({}, (1,), {"m": 2}, 3, 4, 5, 6, {})
    old_and_new = {
        "opt": "optimizer", "method": "methods", "task": "stage", "task_step": "stage_step"
    }  # fmt: skip
    for old, new in old_and_new.items():
        with pytest.warns(DeprecationWarning, match=f"State.{old} is now State.{new}"):
            assert getattr(state, old) is getattr(state, new)


def test_renamed_arguments_are_taken_by_their_old_names_and_warn() -> None:
    with pytest.warns(DeprecationWarning, match="gem's argument tasks is now stages"):
        assert jcl.methods.gem(tasks=3, capacity_per_task=4).name == "gem"
    with pytest.warns(DeprecationWarning, match="olora's argument tasks is now stages"):
        calls = expression.parse("olora(tasks=3)")
    assert [str(call) for call in calls] == ["olora(stages=3)"]


def test_a_checkpoint_of_version_0_1_is_restored(tmp_path: Path) -> None:
    class State01(NamedTuple):
        params: Any
        opt: Any
        method: Any
        task: Any
        task_step: Any
        step: Any
        key: Any

    program = jcl.make(
        jcl.methods.ewc(), jcl.models.mlp.apply, jcl.losses.cross_entropy(), optax.adam(1e-3)
    )
    params = jcl.models.mlp.init(jax.random.key(0), [4, 3, 2])
    batch = {"x": jnp.ones((2, 4)), "y": jnp.zeros(2, jnp.int32)}
    state = program.init(params, batch, jax.random.key(1))
    state, _ = jax.jit(program.step)(state, batch)
    state = jax.jit(program.consolidate)(state, jax.tree.map(lambda x: x[None], batch))
    checkpoint.save(tmp_path, 7, {"state": State01(*state[:7]), "scores": jnp.arange(3.0)})
    like = {"state": state, "scores": jnp.zeros(3)}
    found = checkpoint.restore(tmp_path, jax.tree.map(lambda x: x, like))
    assert found is not None and found[1] == 7
    wanted = jax.tree.leaves((state._replace(key=()), jnp.arange(3.0)))
    restored = jax.tree.leaves((found[0]["state"]._replace(key=()), found[0]["scores"]))
    for a, b in zip(restored, wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    assert found[0]["state"].stage == 1
