"""Self-synthesised rehearsal: a model writes examples of earlier tasks, to be trained on again.

For each earlier task a few demonstrations are kept. The base model continues them with new
instructions, the latest model answers the most typical ones of each cluster, and the resulting
documents are mixed into the next stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jcl.method import check

Write = Callable[[Sequence[str]], list[str]]
"""`texts -> continuations`, written by a model; see `answers.continue_texts`."""
Features = Callable[[Sequence[str]], np.ndarray]
"""`texts -> float [n, d]`, vectors in which similar texts are near each other."""


class Synthesis(NamedTuple):
    """Synthesised documents."""

    documents: list[tuple[str, str]]
    """`(prompt, answer)` pairs, as `data.from_text` takes them."""
    tried: int
    """How many instructions were asked for."""
    usable: int
    """How many of these were complete, new and no copy of a demonstration."""


def synthesise(
    write: Write,
    answer: Write,
    demonstrations: Sequence[tuple[str, str]],
    features: Features,
    *,
    number: int,
    start: str = "",
    cue: str = "\nAnswer:",
    shots: int = 2,
    tries: int | None = None,
    clusters: int = 20,
    seed: int = 0,
) -> Synthesis:
    """SSR: x̂ ~ θ₀(· | `shots` demonstrations), ȳ = θ_{t-1}(x̂), of which `representative` ones stay.

    The base model θ₀ is shown demonstrations in random order and `start`, and writes until `cue`
    ends an instruction x̂; its own answer isn't used. The latest model θ_{t-1} writes the answer ȳ.
    The result depends on `seed` alone if `write` and `answer` are deterministic.

    Args:
      write: continues texts by the base model, with some randomness; the authors draw at
        temperature 0.9 among the likeliest 0.6 of probability.
      answer: continues texts by the latest model, greedily.
      demonstrations: `(prompt, answer)` pairs kept from the task's training data.
      features: gives vectors of prompts; the authors use SimCSE's.
      number: about how many documents to make (each cluster's share is rounded).
      start: the text with which all of the task's prompts begin, such as its instruction.
      cue: the text with which all of them end, and which occurs nowhere else in them.
      shots: how many demonstrations a context shows; the authors use 2.
      tries: how many contexts are continued; None is 4 · `number`.
      clusters: how many clusters the prompts form at most; the authors use 20.
      seed: seeds contexts and clusters.

    Raises:
      ValueError: if an argument is out of range, or a demonstration doesn't begin with `start` and
        end with `cue`.

    Source: Huang et al., arXiv 2403.01244, section 3; DeepLearnXMU/SSR, `custom/icl_gen`. That
    code clusters after it refines the answers, which is the same, for the prompts are clustered.
    """
    check(len(demonstrations) >= shots >= 1, "shots", shots, f"from 1 to {len(demonstrations)}")
    check(number >= 1, "number", number, "at least 1")
    check(len(cue) >= 1, "cue", cue, "at least a character")
    tries = 4 * number if tries is None else tries
    check(tries >= 1, "tries", tries, "at least 1")
    for prompt, _ in demonstrations:
        whole = prompt.startswith(start) and prompt.endswith(cue)
        check(whole, "demonstration", prompt, f"from {start!r} to {cue!r}")
    rng = np.random.default_rng(seed)
    contexts = []
    for _ in range(tries):
        shown = rng.permutation(len(demonstrations))[:shots]
        worked = "".join(f"{''.join(demonstrations[i])}\n\n" for i in shown)
        contexts.append(f"{worked}{start}")
    known = {prompt for prompt, _ in demonstrations}
    prompts: dict[str, None] = {}  # in the order of writing, each once
    for text in write(contexts):
        body, ended, _ = text.partition(cue)
        prompt = f"{start}{body}{cue}"
        if ended and body.strip() and prompt not in known:
            prompts[prompt] = None
    usable = list(prompts)
    if not usable:
        return Synthesis([], tries, 0)
    chosen = representative(features(usable), number, clusters, seed)
    asked = [usable[i] for i in chosen]
    pairs = [(p, a) for p, a in zip(asked, answer(asked), strict=True) if a.strip()]
    return Synthesis(pairs, tries, len(usable))


def representative(x: np.ndarray, number: int, clusters: int, seed: int = 0) -> np.ndarray:
    """Chooses about `number` rows of x [n, d]: those nearest to the centres of k-means clusters.

    Rows are scaled to length 1; a cluster of n_c rows gives the round(number · n_c / n) nearest.

    Args:
      x: the features.
      number: about how many rows to choose; if there are no more, all are.
      clusters: how many clusters there are at most.
      seed: seeds the first centres, which are drawn as in k-means++.

    Returns:
      The chosen rows, int [m], ascending.

    Raises:
      ValueError: if x is no matrix with rows, or `clusters` is below 1.

    Source: DeepLearnXMU/SSR, `custom/icl_gen/kmeans_self.py`; Arthur & Vassilvitskii, "k-means++",
    SODA 2007.
    """
    x = np.asarray(x, np.float64)
    check(x.ndim == 2 and len(x) >= 1, "x's shape", x.shape, "[n, d], n at least 1")
    check(clusters >= 1, "clusters", clusters, "at least 1")
    if len(x) <= number:
        return np.arange(len(x))
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    own, apart = _k_means(x, min(clusters, len(x)), np.random.default_rng(seed))
    chosen = []
    for c in np.unique(own):
        inside = np.flatnonzero(own == c)
        share = round(number * len(inside) / len(x))
        chosen.append(inside[np.argsort(apart[inside], kind="stable")[:share]])
    return np.sort(np.concatenate(chosen))


def _k_means(
    x: np.ndarray, count: int, rng: np.random.Generator, rounds: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Lloyd's algorithm: each row's cluster [n], and its distance from the centre [n]."""
    centres = x[[rng.integers(len(x))]]
    while len(centres) < count:
        square = _distances(x, centres).min(axis=1) ** 2
        if square.sum() == 0:  # no more distinct rows than centres
            break
        centres = np.concatenate([centres, x[[rng.choice(len(x), p=square / square.sum())]]])
    own = _distances(x, centres).argmin(axis=1)
    for _ in range(rounds):
        centres = np.stack(
            [
                x[own == c].mean(axis=0) if (own == c).any() else centres[c]
                for c in range(len(centres))
            ]
        )
        before, own = own, _distances(x, centres).argmin(axis=1)
        if (own == before).all():
            break
    return own, _distances(x, centres)[np.arange(len(x)), own]


def _distances(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The distance of each row from each centre, [n, centres]."""
    return np.linalg.norm(x[:, None] - centres[None], axis=-1)
