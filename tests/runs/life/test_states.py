"""A stage begins from the current state; old ones lose the optimizer's part and nothing else."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from tiny_life import month

from jcl.runs.life import states
from jcl.runs.life.life import Life
from jcl.runs.life.work import SLIM, WHOLE, example


def test_only_old_states_lose_the_optimizer(life: Life) -> None:
    first, second = life.book.lineage()
    before, _ = life.state_after(first)
    states.slim(life.book, 1, life.work)
    places = [life.book.place(s.number) for s in (first, second)]
    assert [(p / WHOLE).is_dir() for p in places] == [False, True]
    assert (places[0] / SLIM).is_dir()
    after, whole = life.state_after(first)
    assert not whole
    for field in ("params", "methods", "stage"):
        pairs = zip(
            *map(jax.tree.leaves, (getattr(before, field), getattr(after, field))), strict=True
        )
        assert all(np.array_equal(x, y) for x, y in pairs), field


@pytest.mark.quick
def test_without_a_stage_it_is_where_the_life_began(life: Life) -> None:
    work = life.work()
    batch = example(work.task, month("jan", 4), 4)
    life.book.current = -1
    assert states.start_of_stage(life.book, life.work, work, None, batch) is None  # type: ignore[arg-type]
