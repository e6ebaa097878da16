"""The methods under test, a row each: what to test with, and what is neutral and what is refused.

`test_every_method` holds every row to every invariant. A new method is one file and one row here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jcl
from jcl import adapters, methods, models, preference, trees
from jcl.testing.bench import CLASSES, STEPS, TASKS, Problem, perceptron


def decoder() -> Problem:
    """Classes [B, C] after the last of a few tokens; only adapters learn."""
    config = models.decoder.Config(
        vocabulary=CLASSES, layers=2, width=16, heads=2, kv_heads=1, hidden=24
    )
    whole = models.decoder.apply_fn(config)
    params = models.decoder.init(jax.random.key(1), config)
    params = {**params, "embed": {"table": 20 * params["embed"]["table"]}}

    @wraps(whole)  # which keeps what the decoder says of its structure
    def apply(params: Any, batch: Any, tap: Any) -> Any:
        return whole(params, batch, tap)[:, -1]

    return Problem(apply, params, adapters.is_adapter)


def viewer() -> Problem:
    """Classes [B, C] after an image and a few tokens; only the projector and adapters learn."""
    config = models.multimodal.Config(
        models.vision.Config(image=4, patch=2, layers=1, width=16, heads=2, hidden=24),
        models.decoder.Config(
            vocabulary=CLASSES, layers=2, width=16, heads=2, kv_heads=1, hidden=24
        ),
    )
    whole = models.multimodal.apply_fn(config)
    params = models.multimodal.init(jax.random.key(1), config)
    params = {**params, "embed": {"table": 20 * params["embed"]["table"]}}

    @wraps(whole)
    def apply(params: Any, batch: Any, tap: Any) -> Any:
        return whole(params, {**batch, "image": batch["x"].reshape(-1, 4, 4, 1)}, tap)[:, -1]

    return Problem(apply, params, models.multimodal.projector_and_adapters)


def ranker() -> Problem:
    """The decoder whole, ranking the tokens of a row over those of another."""
    config = models.decoder.Config(
        vocabulary=CLASSES, layers=2, width=16, heads=2, kv_heads=1, hidden=24
    )
    return Problem(models.decoder.apply_fn(config), DECODER.params, loss=preference.ranking())


MLP = perceptron()
DECODER = decoder()
RANKER = ranker()
VIEWER = viewer()
DENSE = r"dense_\d"
FROZEN = "plain fine-tuning trains the base, which stands still here"


def disturb(states: Any) -> Any:
    """Another value in every float leaf: another anchor, buffer, running mean."""
    return jax.tree.map(
        lambda x: x * 1.5 + 0.5 if jnp.issubdtype(x.dtype, jnp.floating) else x, states
    )


def flip(states: Any) -> Any:
    """Another mask: what was owned, used or seen is not, and the reverse."""
    return jax.tree.map(
        lambda x: ~x if x.dtype == bool else -1 - x if x.dtype == jnp.int8 else x, states
    )


@dataclass(frozen=True)
class Row:
    """One method under test."""

    name: str
    build: Callable[..., jcl.Method]
    arguments: dict[str, Any] = field(default_factory=dict)
    neutral: dict[str, Any] | str = "why it has no neutral strength"
    """Arguments at which it equals plain fine-tuning bit for bit, or the reason why none exist."""
    bad: tuple[dict[str, Any], ...] = ()
    """Arguments that must be refused."""
    disturb: Callable[[Any], Any] | str = disturb
    """Changes the method's state between tasks, or the reason why it has nothing to change."""
    tolerance: float = 1e-5
    """Of parameters, between programs that differ in rounding only."""
    at_boundary: bool = False
    """Whether its state acts on the parameters at a boundary, not in a step."""
    problem: Problem = MLP

    def make(self, **changes: Any) -> jcl.Method:
        return self.build(**{**self.arguments, **changes})


TABLE = [
    Row("naive", methods.naive, neutral={}, disturb="it has no state"),
    Row(
        "ewc",
        methods.ewc,
        {"strength": 10.0},
        neutral={"strength": 0.0},
        bad=({"strength": -1.0}, {"labels": "mine"}),
    ),
    Row(
        "online_ewc",
        methods.online_ewc,
        {"strength": 10.0},
        neutral={"strength": 0.0},
        bad=({"strength": -1.0}, {"decay": 1.5}),
    ),
    Row(
        "si",
        methods.si,
        {"strength": 10.0},
        neutral={"strength": 0.0},
        bad=({"strength": -1.0}, {"damping": 0.0}),
    ),
    Row(
        "mas",
        methods.mas,
        {"strength": 10.0},
        neutral={"strength": 0.0},
        bad=({"strength": -1.0}, {"anchor": "first"}),
    ),
    Row(
        "rwalk",
        methods.rwalk,
        {"strength": 10.0, "interval": 3},
        neutral={"strength": 0.0},
        bad=(
            {"strength": -1.0},
            {"interval": 0},
            {"mix": 1.5},
            {"path": -1.0},
            {"damping": 0.0},
            {"labels": "mine"},
        ),
    ),
    Row(
        "l2sp",
        methods.l2sp,
        {"strength": 1.0},
        neutral={"strength": 0.0},
        bad=({"strength": -1.0}, {"start": -1}),
    ),
    Row(
        "shrink_and_perturb",
        methods.shrink_and_perturb,
        {"shrink": 0.7, "noise": 0.1},
        neutral={"shrink": 1.0, "noise": 0.0},
        bad=({"shrink": 1.5}, {"noise": -1.0}, {"at": "epoch"}),
        disturb="it has no state",
    ),
    Row(
        "shrink_and_perturb + ewc",  # in every step
        lambda: jcl.chain(
            methods.shrink_and_perturb(0.9, 0.01, at="step"), methods.ewc(strength=10.0)
        ),
        neutral="the row above has its neutral numbers",
    ),
    Row(
        "redo",
        methods.redo,
        {"threshold": 0.5, "every": 2},
        neutral={"every": 1000},
        bad=({"threshold": -1.0}, {"every": 0}, {"over": 0}, {"every": 3, "over": 4}),
    ),
    Row(
        "continual_backprop",
        methods.continual_backprop,
        {"replacement": 0.05, "decay": 0.9, "maturity": 1},
        neutral={"replacement": 0.0},
        bad=({"replacement": 1.5}, {"decay": 1.0}, {"maturity": -1}),
    ),
    Row(
        "recadam",
        methods.recadam,
        {"midpoint": 2.0, "speed": 1.0},
        neutral={"midpoint": -np.inf},
        bad=({"strength": 2.0}, {"speed": 0.0}, {"start": -1}),
    ),
    Row(
        "rewarm",
        methods.rewarm,
        {"warmup": 2, "steps": STEPS},
        neutral={"warmup": 0, "final": 1.0},
        bad=({"warmup": -1}, {"steps": 1}, {"peak": -1.0}, {"final": -1.0}),
        disturb="it has no state",
    ),
    Row(
        "constant",
        methods.constant,
        {"value": 0.5},
        neutral={"value": 1.0},
        bad=({"value": -1.0}, {"start": -1}),
        disturb="it has no state",
    ),
    Row(
        "infinite",
        methods.infinite,
        {"warmup": 2, "cooldown": 4, "anneal": 3},
        neutral={"warmup": 0, "level": 1.0},
        bad=(
            {"warmup": -1},
            {"cooldown": -1},
            {"anneal": 0},
            {"level": 0.0},
            {"final": 0.0},
            {"curve": "linear"},
        ),
        disturb=lambda states: {"infinite": states["infinite"]._replace(branched=jnp.int32(3))},
    ),
    Row(
        "er",
        methods.er,
        {"capacity": 12, "rows": 4},
        neutral={"start": TASKS},
        bad=(
            {"capacity": 0},
            {"rows": 0},
            {"weight": -1.0},
            {"start": -1},
            {"policy": "newest"},
            {"select": "first"},
            {"pool": 0},
        ),
    ),
    Row(
        "er + ewc",
        lambda strength=10.0, start=1: jcl.chain(
            methods.er(capacity=12, rows=4, start=start), methods.ewc(strength=strength)
        ),
        neutral={"strength": 0.0, "start": TASKS},
    ),
    Row(
        "agem",
        methods.agem,
        {"capacity": 12, "rows": 4},
        neutral="it has no strength: wherever the memory disagrees the gradient is projected",
        bad=({"capacity": 0}, {"rows": 0}, {"at": "loss"}, {"policy": "newest"}),
    ),
    Row(
        "er + agem",  # one buffer for both
        lambda: jcl.chain(
            methods.agem(capacity=12, rows=4, at="updates"), methods.er(rows=4, share="agem")
        ),
        neutral="it has no strength: wherever the memory disagrees the update is projected",
    ),
    Row(
        "der",
        methods.der,
        {"capacity": 12, "rows": 4},
        neutral={"alpha": 0.0},
        bad=({"capacity": 0}, {"rows": 0}, {"alpha": -1.0}, {"start": -1}, {"top_k": 0}),
    ),
    Row(
        "derpp",
        methods.derpp,
        {"capacity": 12, "rows": 4},
        neutral={"alpha": 0.0, "beta": 0.0},
        bad=({"beta": -1.0}, {"draws": 3}, {"policy": "herding"}),
    ),
    Row(
        "gem",
        methods.gem,
        {"stages": TASKS, "capacity_per_task": 4},
        neutral="it has no strength: wherever a past stage disagrees the gradient is projected",
        bad=({"stages": 0}, {"capacity_per_task": 0}, {"margin": -1.0}, {"at": "loss"}),
    ),
    Row(
        "gpm",
        methods.gpm,
        {"threshold": 0.7},
        neutral="biases stop after the first stage, whatever the threshold",
        bad=({"threshold": 0.0}, {"growth": -1.0}, {"rank": 0}, {"at": "loss"}),
    ),
    Row(
        "lwf",
        methods.lwf,
        neutral={"strength": 0.0},
        bad=({"strength": -1.0}, {"temperature": 0.0}),
    ),
    Row(
        "ogd",
        methods.ogd,
        {"directions": 12, "per_stage": 4},
        neutral="it has no strength: the span of the stored gradients is always removed",
        bad=({"directions": 0}, {"per_stage": 0}, {"of": "logit"}, {"at": "loss"}),
    ),
    Row(
        "packnet",
        methods.packnet,
        {"prune": 0.6, "stages": TASKS, "retrain_steps": 3},
        neutral="a finished stage keeps some weights for ever, or the model is zero",
        bad=(
            {"prune": 1.0},
            {"stages": 128},
            {"retrain_steps": -1},
            {"learning_rate": 0.0},
            {"momentum": 1.0},
        ),
        disturb=flip,
    ),
    Row(
        "hat",
        methods.hat,
        {"tasks": TASKS, "steps": STEPS},
        neutral="its gates act from the first step, whatever the strength of the regulariser",
        bad=({"tasks": 0}, {"steps": 0}, {"smax": 0.5}, {"strength": -1.0}),
        disturb=flip,
    ),
    Row(
        "mofo",
        methods.mofo,
        {"fraction": 0.2},
        neutral={"fraction": 1.0},
        bad=({"fraction": 0.0}, {"fraction": 1.5}, {"decay": 1.0}),
    ),
    Row(
        "migu",
        methods.migu,
        neutral={"fraction": 1.0},
        bad=({"fraction": 0.0}, {"at": "loss"}),
        disturb="it has no state",
    ),
    Row(
        "soft_mask",
        methods.soft_mask,
        neutral={"strength": 0.0, "at": "grads"},
        bad=({"strength": 1.5}, {"at": "loss"}),
        disturb=lambda states: jax.tree.map(lambda i: 1 - i, states),
    ),
    Row(
        "seq",
        methods.seq,
        {"warmup": 3},
        neutral="its backbone and its old classes are frozen after the first stage",
        bad=({"warmup": -1},),
        disturb=flip,
    ),
    Row(
        "ema",
        methods.ema,
        {"decay": 0.7},
        neutral={"decay": 0.0},
        bad=({"decay": 1.5},),
        at_boundary=True,
    ),
    Row(
        "wise_ft",
        methods.wise_ft,
        neutral={"alpha": 1.0},
        bad=({"alpha": -0.5}, {"anchor": "last"}),
        at_boundary=True,
    ),
    Row(
        "task_arithmetic",
        methods.task_arithmetic,
        neutral="every stage but the first starts from somewhere else",
        bad=({"scale": -1.0}, {"start": "merged"}, {"drop": 1.0}),
    ),
    Row(
        "magmax",
        methods.magmax,
        neutral="every stage but the first starts from somewhere else",
        bad=({"scale": -1.0}, {"start": "merged"}),
    ),
    Row(
        "opcm",
        methods.opcm,
        neutral="every stage but the first starts from somewhere else",
        bad=({"share": 1.0}, {"start": "merged"}),
    ),
    Row(
        "ties",
        methods.ties,
        {"density": 445.5 / 1864},  # of 1,864 weights: where no stage has two that are nearly equal
        neutral="every stage but the first starts from somewhere else",
        bad=({"density": 1.5}, {"scale": -1.0}, {"start": "merged"}, {"scope": "layer"}),
    ),
    Row(
        "from_scratch",
        methods.from_scratch,
        neutral="every stage but the first starts from somewhere else",
    ),
    Row(
        "lora",
        methods.lora,
        {"rank": 2, "targets": DENSE},
        neutral={"alpha": 0.0},
        bad=({"rank": 0},),
        disturb="it has no state",
    ),
    Row(
        "lora + ewc",  # DoRA's, and the base frozen
        lambda: jcl.chain(
            methods.lora(rank=2, targets=DENSE, dora=True), methods.ewc(strength=10.0)
        ),
        neutral=FROZEN,
        problem=MLP._replace(trainable=adapters.is_adapter),
    ),
    Row(
        "svd_lora",
        methods.svd_lora,
        {"rank": 2, "targets": DENSE},
        neutral="its pairs, a part of the kernels, learn from the first step",
        bad=(
            {"rank": 0},
            {"start": "null space"},
            {"train": "a"},
            {"alpha": 0.0},
            {"start": "minor", "moments": {}},
            {"start": "null"},
        ),
    ),
    Row(
        "oplora",
        methods.oplora,
        {"rank": 2, "targets": DENSE, "preserved": 2},
        neutral={"alpha": 0.0},
        bad=({"rank": 0}, {"preserved": 0}),
    ),
    Row(
        "osf",
        methods.osf,
        {"targets": DENSE},
        neutral="it has no strength: some directions rest from the first step on",
        bad=({"preserved": 0.0}, {"preserved": 1.0}),
    ),
    Row(
        "inclora",
        methods.inclora,
        {"stages": TASKS, "rank": 2, "targets": DENSE},
        neutral={"alpha": 0.0},
        bad=({"stages": 1}, {"rank": 0}, {"predict": "sum"}),
    ),
    Row(
        "olora",
        methods.olora,
        {"stages": TASKS, "rank": 2, "targets": DENSE},
        neutral={"alpha": 0.0},
        bad=(
            {"stages": 1},
            {"rank": 0},
            {"orthogonality": -1.0},
            {"shrink": -1.0},
            {"form": "cube"},
        ),
    ),
    Row(
        "ia3",
        methods.ia3,
        {"outputs": "dense_0", "inputs": "dense_2"},
        neutral="its gains learn from the first step",
        bad=({"outputs": None, "inputs": None},),
        disturb="it has no state",
    ),
    Row(
        "bottleneck",
        methods.bottleneck,
        {"width": 4},
        neutral=FROZEN,
        bad=({"width": 0}, {"after": ("head",)}),
        disturb="it has no state",
        problem=DECODER,
    ),
    Row(
        "prompt_tuning",
        methods.prompt_tuning,
        {"length": 3},
        neutral=FROZEN,
        bad=({"length": 0},),
        disturb="it has no state",
        problem=DECODER,
    ),
    Row(
        "prefix_tuning",
        methods.prefix_tuning,
        {"length": 3},
        neutral=FROZEN,
        bad=({"length": 0},),
        disturb="it has no state",
        problem=DECODER,
    ),
    Row(
        "llama_pro",
        methods.llama_pro,
        {"layers": (1,)},
        neutral="all but the given blocks stand still from the first step",
        bad=({"layers": ()}, {"layers": (-1,)}),
        disturb="it has no state",
        problem=DECODER._replace(trainable=trees.every_leaf),
    ),
    Row(
        "rho",  # of rows; tokens in its own tests
        methods.rho,
        {"share": 0.5, "unit": "row"},
        neutral={"share": 1.0},
        bad=({"share": 0.0}, {"share": 1.5}, {"reference": "first"}, {"unit": "document"}),
    ),
    Row(
        "ir_dro",
        methods.ir_dro,
        neutral={"temperature": np.inf},
        bad=({"temperature": 0.0},),
        disturb="it has no state",
    ),
    Row(
        "dpo",
        methods.dpo,
        {"reference": "previous"},
        neutral="whatever its strength, pairs are scored against the reference",
        bad=({"beta": 0.0}, {"reference": "last"}),
        problem=RANKER,
    ),
    Row(
        "kl_to_reference",
        methods.kl_to_reference,
        {"strength": 1.0, "reference": "previous"},
        neutral={"strength": 0.0},
        bad=({"strength": -1.0}, {"reference": "last"}, {"direction": "both"}),
    ),
    Row(
        "copr",
        methods.copr,
        {"stages": TASKS, "capacity": 12},
        neutral="it takes the objective's place",
        bad=(
            {"stages": 0},
            {"beta": 0.0},
            {"reward": -1.0},
            {"per": "pair"},
            {"sft": -1.0},
            {"capacity": 0},
            {"rows": 0},
            {"rate": -1.0},
        ),
        problem=RANKER,
    ),
    Row(
        "hma",
        methods.hma,
        neutral={"alpha": 1.0, "parts": 1},  # of a perceptron, which has no stack to divide
        bad=({"alpha": 1.5}, {"parts": 0}, {"steps": -1}, {"rate": 0.0}, {"anchor": "last"}),
        at_boundary=True,
        problem=DECODER._replace(trainable=trees.every_leaf),
    ),
    Row(
        "online_merging",
        methods.online_merging,
        {"density": 0.8},
        neutral={"alpha": 0.0, "density": 1.0},
        bad=({"alpha": 1.5}, {"density": 0.0}, {"form": "both"}),
    ),
    Row(
        "distil",
        lambda teacher=None, **options: methods.distil(
            jax.tree.map(lambda x: 1.1 * x, MLP.params), **options
        ),
        {"strength": 0.5},
        neutral={"strength": 0.0},
        bad=({"strength": 1.5}, {"temperature": 0.0}),
    ),
    Row(
        "moelora",
        methods.moelora,
        {"experts": 2, "rank": 4},
        neutral=FROZEN,
        bad=({"experts": 0}, {"rank": 3}),
        disturb="it has no state",
        problem=DECODER,
    ),
    Row(
        "eproj",
        methods.eproj,
        {"slots": TASKS},
        neutral="a stage's first step only looks",
        bad=({"slots": 0}, {"threshold": 1.5}, {"predict": "mine"}),
        disturb=partial(jax.tree.map, jnp.zeros_like),  # every projector is forgotten
        problem=VIEWER,
    ),
    Row(
        "progressive_prompts",
        methods.progressive_prompts,
        {"stages": TASKS, "length": 2},
        neutral=FROZEN,
        bad=({"stages": 0}, {"length": 0}, {"predict": "mine"}),
        problem=DECODER,
    ),
    Row(
        "infer_task",  # which reads, and leaves learning to another
        lambda tasks=TASKS: jcl.chain(
            methods.inclora(stages=TASKS, rank=2), methods.infer_task(tasks=tasks)
        ),
        neutral=FROZEN,
        bad=({"tasks": 0},),
        problem=DECODER,
    ),
]
