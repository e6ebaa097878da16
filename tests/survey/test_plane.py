"""The figure of the plane has every system, and its texts keep apart."""

from __future__ import annotations

import drawn_texts
import pytest

from jcl.survey import papers, plane
from jcl.survey.table import counts

pytestmark = pytest.mark.quick


def test_every_system_is_a_dot_of_its_status_in_a_cell_of_its_own() -> None:
    rows = papers()
    figure = plane.draw(rows)
    (axes,) = figure.axes
    dots = [line for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert len({(*line.get_xdata(), *line.get_ydata()) for line in dots}) == len(rows)
    for status, number in counts(rows).items():
        assert sum(line.get_color() == plane.COLOURS[status] for line in dots) == number
    texts = [text.get_text() for text in drawn_texts.check(figure)]
    adapted = counts([row for row in rows if row.section.startswith("DAP")])
    assert f"ready ({counts(rows)['ready']})" in texts
    assert f"{adapted['ready'] + adapted['recipe']} / {sum(adapted.values())}" in texts
