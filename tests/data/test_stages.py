"""Replay shares of a stage, and what is refused."""

import numpy as np
import pytest

from jcl.data.stages import plan, with_replay

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.5])
def test_a_fraction_of_each_stage_is_of_earlier_domains(fraction) -> None:
    names = ["a", "b", "c", "d"]
    shares = plan(with_replay(names, fraction), names).shares
    np.testing.assert_allclose(np.diag(shares)[1:], 1 - fraction)
    np.testing.assert_allclose(shares[0], [1, 0, 0, 0])
    for i in range(1, 4):
        np.testing.assert_allclose(shares[i, :i], fraction / i)
        assert not shares[i, i + 1 :].any()


def test_general_text_may_take_the_place_of_what_came_before() -> None:
    stages = with_replay(["web", "law", "med"], 0.2, general="web")
    assert stages == ("web", {"law": 0.8, "web": 0.2}, {"med": 0.8, "web": 0.2})
    with pytest.raises(ValueError, match="fraction is 1, but must be at least 0 and below 1"):
        with_replay(["a"], 1)
