"""Old module paths name the same objects as the new ones, and warn."""

import importlib
import subprocess
import sys

import pytest

import jcl
from jcl import moved

PATHS = moved.paths()


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


def test_public_names_stay_without_a_warning() -> None:
    assert jcl.metrics is sys.modules["jcl.measures.metrics"]
