"""The compilation cache: where it is, and that what a user has said stays."""

import jax
import pytest

import jcl

pytestmark = pytest.mark.quick


def test_compiled_code_is_kept_by_processor_unless_jax_has_a_place(monkeypatch, tmp_path):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        jcl.cache()
        assert jax.config.jax_compilation_cache_dir == before[names[0]]
        jax.config.update(names[0], None)
        chosen = jcl.cache()
        assert jax.config.jax_compilation_cache_dir == str(chosen)
        own = jcl.cache(tmp_path / "own")
        assert jax.config.jax_compilation_cache_dir == str(own) == str(tmp_path / "own")
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    assert chosen.parent == tmp_path / "jcl" and len(chosen.name) == 12
