"""Measures of continual learning, as pure functions of the score matrix.

`R` [..., stages + 1, tasks] has row 0 from before any training and row s + 1 from after stage s;
column j is test task j. Leading axes, such as seeds, broadcast. NumPy arrays give NumPy arrays; JAX
arrays work too, also inside a trace.

Several measures have more than one published definition. Each function says which one it is, and
`definitions` has them for a report. All are for scores of which higher is better: for losses pass
`-R`, as `summary(..., higher_is_better=False)` does.

Streams in which stage s doesn't simply train on task s pass `tasks`, the task of each stage, -1
being all of them at once. A task is *learned* in the first stage that trains on it, and *left*
after the last. What is undefined, because no task qualifies, is NaN.

Measures of scores from within stages are in `curves`, intervals over seeds in `significance`; they
are offered here too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jcl.measures.curves import anticipatory_recovery as anticipatory_recovery
from jcl.measures.curves import minimum_accuracy as minimum_accuracy
from jcl.measures.curves import stability_gap as stability_gap
from jcl.measures.curves import worst_case_accuracy as worst_case_accuracy
from jcl.measures.significance import interval as interval
from jcl.method import check

Tasks = Sequence[int] | None
"""Which task each stage trains on; None means that stage s trains on task s."""


def _matrix(R: Any, tasks: Tasks) -> tuple[Any, list[int], list[int | None], list[int | None]]:
    """R as an array, the task of each stage, and each task's first and last stage, if any."""
    R = R if hasattr(R, "ndim") else np.asarray(R, np.float64)
    check(R.ndim >= 2, "R's shape", R.shape, "[..., stages + 1, tasks]")
    stages, columns = R.shape[-2] - 1, R.shape[-1]
    if tasks is None:
        check(stages <= columns, "R's shape", R.shape, "[stages + 1, tasks], or tasks be given")
        tasks = range(stages)
    tasks = [int(t) for t in tasks]
    check(len(tasks) == stages, "tasks", tasks, f"of length {stages}, one a stage")
    check(all(-1 <= t < columns for t in tasks), "tasks", tasks, f"from -1 to {columns - 1}")
    at = [[s for s, t in enumerate(tasks) if t in (j, -1)] for j in range(columns)]
    return R, tasks, [a[0] if a else None for a in at], [a[-1] if a else None for a in at]


def _mean(terms: list[Any], R: Any) -> Any:
    return sum(terms) / len(terms) if terms else R[..., -1, 0] * math.nan


def _all_at_once(R: Any) -> list[int]:
    return [-1] * (np.shape(R)[-2] - 1 if np.ndim(R) > 1 else 0)


def average(R: Any) -> Any:
    """Mean over all tasks of the last row: ACC of GEM (arXiv 1706.08840)."""
    R, *_ = _matrix(R, _all_at_once(R))
    return R[..., -1, :].mean(-1)


def micro_average(R: Any, sizes: Sequence[float]) -> Any:
    """Mean over all test rows of the last row of `R`, where `average` is one over tasks.

    Where tests differ much in size, 92 % of all rows and 76 % of the mean task may both be true.

    Args:
      R: the score matrix.
      sizes: how much each task weighs, such as `evaluation.test_sizes(stream.test)`.

    >>> round(float(micro_average([[0, 0], [1.0, 0.5]], [90, 10])), 4)
    0.95
    """
    R, *_ = _matrix(R, _all_at_once(R))
    weight = np.asarray(sizes, np.float64)
    fits = weight.shape == (R.shape[-1],) and bool((weight >= 0).all()) and weight.sum() > 0
    check(fits, "sizes", weight.tolist(), f"{R.shape[-1]} numbers from 0 on, one a task")
    return (R[..., -1, :] * (weight / weight.sum())).sum(-1)


def backward_transfer(R: Any, tasks: Tasks = None) -> Any:
    """Mean over i < T of R[T, i] - R[i, i]: what later stages did to earlier tasks.

    The mean is over the T - 1 tasks that were left before the last stage, and each is compared
    with its score when it was left. Negative is forgetting.

    Source: Lopez-Paz & Ranzato, arXiv 1706.08840.

    >>> R = [[0, 0, 0], [.9, .1, .1], [.5, .8, .1], [.4, .6, .7]]
    >>> round(float(backward_transfer(R)), 4)
    -0.35
    """
    R, stages, _, left = _matrix(R, tasks)
    end = len(stages)
    return _mean(
        [
            R[..., end, j] - R[..., s + 1, j]
            for j, s in enumerate(left)
            if s is not None and s + 1 < end
        ],
        R,
    )


def gem_backward_transfer(R: Any, tasks: Tasks = None) -> Any:
    """Backward transfer as GEM's code has it: the same sum over T tasks, the last adding 0.

    Source: facebookresearch/GradientEpisodicMemory, metrics/metrics.py, `confusion_matrix`; also
    Riemer et al.'s retained minus learning accuracy, arXiv 1810.11910, and the BWT of TRACE,
    arXiv 2310.06762.

    >>> R = [[0, 0, 0], [.9, .1, .1], [.5, .8, .1], [.4, .6, .7]]
    >>> round(float(gem_backward_transfer(R)), 4)
    -0.2333
    """
    R, stages, _, left = _matrix(R, tasks)
    end = len(stages)
    return _mean(
        [R[..., end, j] - R[..., s + 1, j] for j, s in enumerate(left) if s is not None], R
    )


def all_pairs_backward_transfer(R: Any, tasks: Tasks = None) -> Any:
    """Mean of R[i, j] - R[j, j] over all pairs j < i, so that not only the last stage counts.

    Each row after a task was first learned is compared with its score then.

    Source: Díaz-Rodríguez et al., arXiv 1810.13166.

    >>> R = [[0, 0, 0], [.9, .1, .1], [.5, .8, .1], [.4, .6, .7]]
    >>> round(float(all_pairs_backward_transfer(R)), 4)
    -0.3667
    """
    R, stages, learned, _ = _matrix(R, tasks)
    return _mean(
        [
            R[..., i, j] - R[..., s + 1, j]
            for j, s in enumerate(learned)
            if s is not None
            for i in range(s + 2, len(stages) + 1)
        ],
        R,
    )


def forward_transfer(R: Any, tasks: Tasks = None) -> Any:
    """Mean over i > 1 of R[i - 1, i] - b_i: what earlier stages did for a task not yet learned.

    b is row 0, the scores of the model before any training.

    Source: Lopez-Paz & Ranzato, arXiv 1706.08840.
    """
    R, _, learned, _ = _matrix(R, tasks)
    return _mean([R[..., s, j] - R[..., 0, j] for j, s in enumerate(learned) if s], R)


def forgetting(R: Any, tasks: Tasks = None) -> Any:
    """Mean over i < T of max over l in 1 .. T - 1 of R[l, i], less R[T, i].

    The maximum is over every stage but the last, those before the task was learned included, and
    not over row 0; so it is negative if the last stage improved a task on all before. What is NaN
    there wasn't measured, such as before a task was known, and is left out.

    Source: Chaudhry et al., arXiv 1801.10112; `compute_fgt` in facebookresearch/agem.

    >>> R = [[0, 0, 0], [.9, .1, .1], [.5, .8, .1], [.4, .6, .7]]
    >>> round(float(forgetting(R)), 4)
    0.35
    """
    R, stages, _, left = _matrix(R, tasks)
    end, known = len(stages), R.__array_namespace__().where(R == R, R, -math.inf)
    return _mean(
        [
            known[..., 1:end, j].max(-1) - R[..., end, j]
            for j, s in enumerate(left)
            if s is not None and s + 1 < end
        ],
        R,
    )


def learning_accuracy(R: Any, tasks: Tasks = None) -> Any:
    """Mean over stages of the score on the stage's own task right after it: plasticity.

    Source: LA of Riemer et al., arXiv 1810.11910.
    """
    R, stages, *_ = _matrix(R, tasks)
    return _mean(
        [R[..., s + 1, :].mean(-1) if t < 0 else R[..., s + 1, t] for s, t in enumerate(stages)], R
    )


def intransigence(R: Any, reference: Any, tasks: Tasks = None) -> Any:
    """Mean over stages of a*_k - R[k, k]: by how much joint training would have reached more.

    Args:
      R: the score matrix.
      reference: [..., stages], the score a* on stage k's task of a model trained jointly on the
        data of stages up to k (see `data.joint(cumulative=True)`).
      tasks: the task of each stage.

    Source: Chaudhry et al., arXiv 1801.10112. It is negative if the sequence helped.
    """
    R, stages, *_ = _matrix(R, tasks)
    reference = reference if hasattr(reference, "ndim") else np.asarray(reference, np.float64)
    check(reference.shape[-1] == len(stages), "reference's shape", reference.shape, "[..., stages]")
    check(min(stages, default=0) >= 0, "tasks", stages, "one task a stage")
    return _mean([reference[..., s] - R[..., s + 1, t] for s, t in enumerate(stages)], R)


def overall_performance(R: Any, tasks: Tasks = None) -> list[Any]:
    """OP_t for each stage: mean of R[t, i] over the tasks seen up to then.

    Its last is `average`, where every task was seen; the mean of all is `any_time_average`.

    Source: Wang et al., TRACE, arXiv 2310.06762, whose BWT is `gem_backward_transfer`.

    >>> [round(float(op), 4) for op in overall_performance([[0, 0], [.9, .1], [.5, .8]])]
    [0.9, 0.65]
    """
    R, stages, learned, _ = _matrix(R, tasks)
    seen = [
        [j for j, s in enumerate(learned) if s is not None and s <= k] for k in range(len(stages))
    ]
    return [R[..., k + 1, :][..., np.asarray(j)].mean(-1) for k, j in enumerate(seen)]


def any_time_average(R: Any, tasks: Tasks = None) -> Any:
    """Mean over stages of the mean score over the tasks seen so far.

    Source: average anytime accuracy of Caccia et al., arXiv 2104.05025; average incremental
    accuracy of iCaRL, arXiv 1611.07725.
    """
    R, *_ = _matrix(R, tasks)
    return _mean(overall_performance(R, tasks), R)


def perplexity(nll: Any) -> Any:
    """exp of the negative log-likelihood in nats a token."""
    return np.exp(nll)


def bits_per_byte(nll: Any, tokens: Any, size: Any) -> Any:
    """Negative log-likelihood in nats a token, as bits a byte of the text.

    Args:
      nll: the mean over tokens, in nats.
      tokens: how many tokens there are.
      size: how many bytes they stand for.
    """
    return nll / math.log(2) * tokens / size


def fuar(lost: Any, updated: Any, acquired: Any) -> float:
    """Forgotten / (updated + acquired): how much is lost for each piece of knowledge gained.

    Σ max(0, lost) / (Σ max(0, updated) + Σ max(0, acquired)), infinite where nothing was gained,
    which the paper reports as "no gain". 1 is an even trade, lower is better.

    Args:
      lost: for each earlier corpus i of n, how far the score on its time-invariant knowledge fell
        from the model of D_i to that of D_n.
      updated: how far the score on knowledge to be updated rose.
      acquired: how far the score on new knowledge rose.

    Source: Jang et al., arXiv 2110.03215, equation 1; a corpus without such a probe is left out.
    """
    gain = float(np.maximum(0, updated).sum() + np.maximum(0, acquired).sum())
    loss = float(np.maximum(0, lost).sum())
    return loss / gain if gain > 0 else math.inf


def vertical_forgetting(P: Any) -> Any:
    """Mean over probes of P[0, j] - P[T, j]: general ability that the stages cost.

    `P` [..., stages + 1, probes] has the scores of probes that no stage trains on, higher being
    better. It is -ΔR_T of TRACE (Wang et al., arXiv 2310.06762), whose ΔR_t is the mean over probes
    of P[t, j] - P[0, j]. It is negative if the stages improved the probes' scores.
    """
    P = P if hasattr(P, "ndim") else np.asarray(P, np.float64)
    return (P[..., 0, :] - P[..., -1, :]).mean(-1)


def trace_deltas(P: Any, kinds: Sequence[str]) -> dict[str, Any]:
    """ΔR_t [..., stages] of each kind of probe: its mean of P[t, j] - P[0, j] after stage t.

    TRACE has three: `general` ability, `instruction` following and `safety`. Negative is a loss.

    Args:
      P: [..., stages + 1, probes], scores of probes that no stage trains on, higher being better,
        row 0 from before training.
      kinds: the kind of each probe.

    Source: Wang et al., TRACE, arXiv 2310.06762; the last of one kind is `-vertical_forgetting`.

    >>> deltas = trace_deltas([[.5, .4, .9], [.3, .4, .9]], ["general", "general", "safety"])
    >>> {kind: values.round(3).tolist() for kind, values in deltas.items()}
    {'general': [-0.1], 'safety': [0.0]}
    """
    P = P if hasattr(P, "ndim") else np.asarray(P, np.float64)
    check(len(kinds) == P.shape[-1], "kinds", list(kinds), f"one for each of {P.shape[-1]} probes")
    change = P[..., 1:, :] - P[..., :1, :]
    return {
        kind: change[..., np.flatnonzero([k == kind for k in kinds])].mean(-1)
        for kind in dict.fromkeys(kinds)
    }


VERTICAL = (
    "mean over probes of P[0,j] - P[T,j], row 0 being the model before training "
    "(-ΔR of TRACE, arXiv 2310.06762); positive is forgetting"
)
"""The definition of `vertical_forgetting`, for a report."""

definitions = {
    "average": "mean over tasks of the score after the last stage (GEM, arXiv 1706.08840)",
    "backward_transfer": "mean over the tasks before the last of R[T,i] - R[i,i] "
    "(GEM, arXiv 1706.08840; divided by T - 1); negative is forgetting",
    "forward_transfer": "mean over the tasks after the first of R[i-1,i] - R[0,i], row 0 being the "
    "model before training (GEM, arXiv 1706.08840)",
    "forgetting": "mean over the tasks before the last of max over earlier stages of R[l,i] - "
    "R[T,i] (Chaudhry et al., arXiv 1801.10112)",
    "learning_accuracy": "mean over stages of the score on the stage's task right after it "
    "(Riemer et al., arXiv 1810.11910)",
}
"""Which published definition each number of `summary` follows."""

_NEGATED = "; computed on the negated score, as lower is better"


def summary(
    matrix: Any, higher_is_better: bool = True, tasks: Tasks = None
) -> dict[str, dict[str, Any]]:
    """The measures of a report, as mean ± 95 % interval over seeds.

    Args:
      matrix: [seeds, stages + 1, tasks], or [stages + 1, tasks] for one run.
      higher_is_better: False for losses and bits per byte. `average` and `learning_accuracy` stay
        in the score's own unit; transfers and forgetting are computed on the negated score, so that
        a negative backward transfer and a positive forgetting always are forgetting.
      tasks: the task of each stage, `Stream.tasks`.

    Returns:
      For each of `definitions` `{"mean", "ci95", "definition"}`. `ci95` is the interval's
      half-width, None for one seed; `mean` is None too if the measure is undefined, such as a
      transfer over one stage.
    """
    negated = set() if higher_is_better else definitions.keys() - {"average", "learning_accuracy"}
    return {
        name: entry(values, definitions[name] + (_NEGATED if name in negated else ""))
        for name, values in per_seed(matrix, higher_is_better, tasks).items()
    }


def per_seed(
    matrix: Any, higher_is_better: bool = True, tasks: Tasks = None
) -> dict[str, np.ndarray]:
    """The measures of `summary`, of which it gives means, for each seed: arrays [seeds]."""
    matrix = np.asarray(matrix, np.float64)
    matrix = matrix[None] if matrix.ndim == 2 else matrix
    check(matrix.ndim == 3, "matrix's shape", matrix.shape, "[seeds, stages + 1, tasks]")
    signed = matrix if higher_is_better else -matrix
    return {
        "average": average(matrix),
        "backward_transfer": backward_transfer(signed, tasks),
        "forward_transfer": forward_transfer(signed, tasks),
        "forgetting": forgetting(signed, tasks),
        "learning_accuracy": learning_accuracy(matrix, tasks),
    }


def entry(per_seed: Any, definition: str) -> dict[str, Any]:
    """A measure of a report, see `summary`, from its values [seeds] and what it is."""
    mean, half = interval(per_seed)
    shown = (mean, half) if math.isfinite(mean) else (None, None)
    return {"mean": shown[0], "ci95": shown[1], "definition": definition}
