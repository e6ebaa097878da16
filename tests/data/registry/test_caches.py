"""Where things are kept."""

from pathlib import Path

import pytest

from jcl.data.registry.caches import folder

pytestmark = pytest.mark.quick


def test_our_own_variable_comes_first_then_the_user_s_then_the_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/one")
    monkeypatch.setenv("JCL_CACHE", "/big/disk")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/one")
    assert folder("fetched") == Path("/big/disk/fetched")
    monkeypatch.setenv("JCL_CACHE", "")  # as if it weren't set
    assert folder("fetched") == Path("/var/cache/one/jcl/fetched")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert folder("snapshots") == Path("/home/one/.cache/jcl/snapshots")
