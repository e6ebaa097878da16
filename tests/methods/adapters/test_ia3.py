"""(IA)³: what it computes is held against peft in tests/models/test_peft.py."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import tiny_decoder as tiny

from jcl import adapters, methods, trees

BATCH = jax.tree.map(lambda x: x[0, 0], tiny.stream())


def test_it_starts_as_the_base_bit_for_bit_and_gains_alone_learn() -> None:
    program = tiny.program(methods.ia3())
    state = program.init(tiny.base(), BATCH, jax.random.key(0))
    np.testing.assert_array_equal(
        jax.jit(program.predict)(state, BATCH), tiny.CALL(tiny.base(), BATCH)
    )
    learning = trees.partition(state.params, adapters.is_adapter)[0]
    shapes = {trees.path_name(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(learning)}
    assert shapes == {
        "blocks/down/input_gain": (2, 40), "blocks/key/gain": (2, 8), "blocks/value/gain": (2, 8),
    }  # fmt: skip
    after, _ = tiny.run(methods.ia3())
    tiny.same_base(after.params, tiny.base())
    for path in shapes:
        assert np.abs(adapters.subtree(after.params, path) - 1).min() > 1e-5, path
    merged = tiny.CALL(adapters.merge(after.params), BATCH)
    wanted = jax.jit(program.predict)(after, BATCH)
    np.testing.assert_allclose(merged, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.quick
def test_one_side_alone() -> None:
    program = tiny.program(methods.ia3(outputs=None, inputs=r"blocks/(up|output)"))
    state = program.init(tiny.base(), BATCH, jax.random.key(0))
    assert adapters.paths_with(state.params, {"gain"}) == []
    assert adapters.paths_with(state.params, {"input_gain"}) == ["blocks/output", "blocks/up"]
    with pytest.raises(ValueError, match=r"targets is 'blocks/nothing', but must be"):
        tiny.program(methods.ia3(inputs="blocks/nothing")).init(tiny.base(), BATCH, state.key)
