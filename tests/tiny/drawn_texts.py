"""What a figure says and where: texts that are really drawn, which overlap, and which are cut off.

Boxes are measured here and not by `jcl.report.labels`, whose work they are to judge.
"""

import warnings
from itertools import combinations

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.text import Text


def draw(figure):
    """Draws a figure in full; a layout that doesn't fit is an error. Returns its texts."""
    found = []
    original = Text.draw

    def noted(text, renderer):
        if text.get_visible() and text.get_text().strip():
            found.append(text)
        original(text, renderer)

    Text.draw = noted
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            figure.draw_without_rendering()
    finally:
        Text.draw = original
    return list(dict.fromkeys(found))


def corners(text):
    """The corners [4, 2] of a text's rectangle in pixels, which is turned as the text is."""
    around = Text.get_window_extent(text)
    middle, angle = (around.min + around.max) / 2, text.get_rotation()
    text.set_rotation(0)
    flat = Text.get_window_extent(text)
    text.set_rotation(angle)
    half = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [flat.width / 2, flat.height / 2]
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return middle + half @ np.array([[c, s], [-s, c]])


def meet(a, b, slack=1.0):
    """Whether two rectangles overlap by more than `slack` pixels (separating axis theorem)."""
    for shape in (a, b):
        for edge in (shape[1] - shape[0], shape[3] - shape[0]):
            way = edge / np.linalg.norm(edge)
            if (
                min((a @ way).max(), (b @ way).max()) - max((a @ way).min(), (b @ way).min())
                < slack
            ):
                return False
    return True


def overlaps(texts):
    """Pairs of drawn texts that lie over one another."""
    shapes = [(text.get_text(), corners(text)) for text in texts]
    return [(a[0], b[0]) for a, b in combinations(shapes, 2) if meet(a[1], b[1])]


def cut_off(figure, texts, slack=1.0):
    """Drawn texts that leave the canvas."""
    high = np.array([figure.bbox.width, figure.bbox.height]) + slack
    return [
        text.get_text()
        for text in texts
        if (corners(text) < -slack).any() or (corners(text) > high).any()
    ]


def intervals(figure):
    """How many bars of intervals are drawn; no other lines of these figures are collections."""
    lines = figure.findobj(LineCollection)
    return sum(len(line.get_segments()) for line in lines)


def check(figure):
    """A figure's texts, which keep apart and on the canvas, and are readable at half its size."""
    texts = draw(figure)
    assert not (met := overlaps(texts)), f"texts overlap: {met}"
    assert not (cut := cut_off(figure, texts)), f"texts leave the canvas: {cut}"
    small = [t.get_text() for t in texts if t.get_fontsize() < 9]
    assert not small, f"letters below 9 points are hard to read at half size: {small}"
    assert figure.get_figwidth() <= 10
    return texts
