import numpy as np
import pytest

from jcl.report.numbers import beside

pytestmark = pytest.mark.quick


def test_numbers_stay_beside_the_figure_and_come_back(tmp_path):
    figure = tmp_path / "figures" / "toy.png"
    found = {"a": np.array([[1.0, 2.0]]), "b": [{"n": np.int64(3), "none": None}], "c": ("x", 0.1)}
    kept = beside(figure, False, lambda: found)
    assert kept == {"a": [[1.0, 2.0]], "b": [{"n": 3, "none": None}], "c": ["x", 0.1]}
    assert figure.with_suffix(".json").is_file()

    def measure():
        raise AssertionError("nothing is measured to draw again")

    assert beside(figure, True, measure) == kept


def test_what_is_undefined_comes_back_as_such(tmp_path):
    kept = beside(tmp_path / "toy.png", False, lambda: np.array([np.nan, np.float32(1 / 3)]))
    np.testing.assert_array_equal(np.asarray(kept, float), [np.nan, 0.3333333])


def test_nothing_to_draw_again_from(tmp_path):
    with pytest.raises(ValueError, match=r"redraw needs.*toy\.json"):
        beside(tmp_path / "toy.png", True, dict)
