"""A finished run's scores and its folder, which the tests of reports share."""

import numpy as np

from jcl import report

R = np.array([[[0.0, 0, 0], [0.9, 0.1, 0.1], [0.5, 0.8, 0.1], [0.4, 0.6, 0.7]]])


def facts(stages=("a", "b", "c"), tasks=("a", "b", "c"), stage_tasks=(0, 1, 2), **more):
    return {
        "method": "ewc(strength=1.0)", "experiment": "toy", "scenario": "class-incremental",
        "measure": "accuracy", "higher_is_better": True, "seeds": 1, "stages": list(stages),
        "stage_tasks": list(stage_tasks), "tasks": list(tasks), "family": "ewc()", "outer": {},
        "wall_seconds": 1.0, "compile_seconds": 0.5, "examples_per_second": 10.0,
        "step_traces": 1, "peak_memory_bytes": 2**20, "pipeline": "ewc", **more,
    }  # fmt: skip


def write(folder, scores=R, points=({},), labels=("ewc(strength=1.0)",), **more):
    folder.mkdir(parents=True, exist_ok=True)
    scores = np.asarray(scores)
    scores = scores if scores.ndim == 4 else scores[None]
    return report.write(folder, facts(**more), points, labels, scores)
