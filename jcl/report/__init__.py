"""What a run leaves behind: its folder, its figures and page, and what the terminal shows of it."""

from jcl.report.folder import Run, Scores, forgetting, group, load, save_json, writable, write
from jcl.report.format import MEASURES, labelled, measured, scale, scale_of, title, unit

__all__ = [
    "MEASURES",
    "Run",
    "Scores",
    "forgetting",
    "group",
    "labelled",
    "load",
    "measured",
    "save_json",
    "scale",
    "scale_of",
    "title",
    "unit",
    "writable",
    "write",
]
