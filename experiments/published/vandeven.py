"""Split-MNIST in three scenarios, after van de Ven and colleagues.

All of MNIST, ten digits dealt to five tasks anew for each seed; a perceptron of 2 × 400 units, Adam
at 1e-3 whose moments are kept, batches of 128, 2,000 steps a task, joint training 10,000 steps. In
the class scenario all ten outputs compete from the start, in training and in the test. The loss of
er is 1/t of the new rows' and 1 - 1/t of the replayed ones' in task t, and lwf's distillation
counts t - 1 times in the domain scenario, as many as there are earlier tasks, and once in the class
scenario. Memories hold 200 rows of each earlier task, 100 a class on average. Strengths are those
of the code of 2022: EWC 1e5, 1e10 and 1e9 in the task, domain and class scenario, SI's c 10, 5e4
and 5e3 with damping .1.

The figure is the average accuracy over the five tasks in the end, in per cent. Ours are of ten
seeds; theirs of twenty, ± here the 95 % interval that their standard error makes. A-GEM and ER have
no published number for the task and domain scenario that was at hand. Of the published table FROMP,
DGR, BI-R, XdG, separate networks, the generative classifier and iCaRL aren't here.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
from split_mnist import Scenario, accuracies

from jcl import data, methods
from jcl.method import Ctx, Method
from jcl.runs.reproduce import Cell

SOURCE = (
    "class: van de Ven, Tuytelaars & Tolias, Three types of incremental learning, Nature Machine "
    "Intelligence 4 (2022), table 2; task and domain of none, SI, LwF and joint: van de Ven & "
    "Tolias, arXiv 1809.10635, table 3, of EWC: arXiv 1904.07734, table 4, by the same protocol "
    "with strengths that were searched for"
)
MEMORY = "ring"
"""Of 200 rows a task, as `capacity` and `groups` below say."""


def none(strength: Any) -> Method:
    return methods.naive()


def ewc(strength: Any) -> Method:
    return methods.ewc(strength, labels="exact")


def online_ewc(strength: Any) -> Method:
    return methods.online_ewc(strength, decay=1.0, labels="exact")


def si(strength: Any) -> Method:
    return methods.si(2 * strength, damping=0.1)  # their c is half of our strength


def lwf(scenario: Scenario, strength: Any) -> Method:
    def earlier(ctx: Ctx) -> Any:
        return ctx.stage.astype(jnp.float32)

    return methods.lwf(earlier if scenario == "domain" else 1.0)


def er(strength: Any) -> Method:
    def earlier(ctx: Ctx) -> Any:  # as many rows as new ones, so that these count 1/t in all
        return ctx.stage.astype(jnp.float32)

    return methods.er(1000, 128, earlier, policy=MEMORY, groups=5, fill="stage")


def agem(strength: Any) -> Method:
    return methods.agem(1000, 128, policy=MEMORY, groups=5)


SCENARIOS: tuple[Scenario, ...] = ("task", "domain", "class")
STRENGTHS = {"EWC": (1e5, 1e10, 1e9), "online EWC": (1e5, 1e10, 1e9), "SI": (10.0, 5e4, 5e3)}
T20 = 2.093
"""Half a 95 % interval in standard errors, of twenty seeds."""
PUBLISHED = {
    "none": ((85.15, 1.00), (57.33, 1.66), (19.89, 0.0)),
    "joint": ((99.64, 0.03), (98.41, 0.06), (98.17, 0.0)),
    "SI": ((99.14, 0.11), (63.77, 1.18), (21.20, 0.0)),
    "LwF": ((99.60, 0.03), (71.02, 1.26), (21.89, 0.0)),
    "EWC": ((98.64, 0.22), (63.95, 1.90), (20.64, 0.0)),
    "ER": (None, None, (88.79, 0.0)),
    "A-GEM": (None, None, (65.10, 0.0)),
    "online EWC": (None, None, None),
}
"""Means and standard errors by scenario; 0 where the error isn't at hand."""
FINDINGS: dict[str, str] = {}


def cell(name: str, index: int) -> Cell:
    scenario = SCENARIOS[index]
    made: Any = {
        "none": none, "joint": none, "EWC": ewc, "online EWC": online_ewc, "SI": si, "ER": er,
        "LwF": partial(lwf, scenario), "A-GEM": agem,
    }[name]  # fmt: skip
    given, key = PUBLISHED[name][index], f"{name}, {scenario}"

    def run(folder: Any) -> dict[int, float]:
        strength = STRENGTHS[name][index] if name in STRENGTHS else 0.0
        return accuracies(scenario, made, folder, strength, joint=name == "joint")

    published, error = (None, 0.0) if given is None else given
    return Cell(key, run, published, T20 * error, finding=FINDINGS.get(key, ""))


CELLS = tuple(cell(name, i) for name in PUBLISHED for i in range(len(SCENARIOS)))


def short(name: str, scenario: Scenario, method: Any, expected: float, tolerance: float) -> Cell:
    def run(folder: Any) -> dict[int, float]:
        return accuracies(
            scenario, method, folder, seeds=(0, 1, 2), images=data.digits, steps=100, batch=32
        )

    return Cell(name, run, expected, tolerance=tolerance)


QUICK = (
    short("none, class, 8×8 digits", "class", none, 20.0, 0.02),
    short("ER, class, 8×8 digits", "class", er, 97.6, 0.03),
)
