"""The results of a run: its folder, its figures and page, and what the terminal shows."""

from jcl.report.folder import (
    Run,
    Scores,
    finished,
    forgetting,
    group,
    load,
    load_settings,
    save_json,
    write,
)
from jcl.report.format import MEASURES, format_mean, labelled, scale, scale_of, title, unit

__all__ = [
    "MEASURES",
    "Run",
    "Scores",
    "finished",
    "forgetting",
    "format_mean",
    "group",
    "labelled",
    "load",
    "load_settings",
    "save_json",
    "scale",
    "scale_of",
    "title",
    "unit",
    "write",
]
