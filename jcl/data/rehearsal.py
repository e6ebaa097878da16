"""Self-synthesised rehearsal: a model writes examples of earlier tasks, to be trained on again.

For each earlier task a few demonstrations are kept. The base model continues them with another
instruction, the latest model answers it, and of many the most typical of each cluster are chosen:
documents to mix into the next stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jcl.method import check

Write = Callable[[Sequence[str]], list[str]]
"""What a model continues each text with; see `answers.continue_texts`."""
Features = Callable[[Sequence[str]], np.ndarray]
"""`texts -> float [n, d]`, in which like texts are near."""


class Synthesis(NamedTuple):
    """What was written."""

    documents: list[tuple[str, str]]
    """`(prompt, answer)`, such as `data.from_text` takes."""
    tried: int
    """Instructions asked for."""
    usable: int
    """Of these so many were whole, new and no copy of a demonstration."""


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

    The base model is shown demonstrations in random order and `start`, and writes on until `cue`
    ends an instruction. The answer that it would give itself isn't used. Deterministic in `seed` if
    `write` and `answer` are.

    Args:
      write: of the base model θ₀, with some randomness; the authors draw at temperature 0.9 among
        the likeliest 0.6 of probability.
      answer: of the latest model, greedy.
      demonstrations: `(prompt, answer)` of the task, kept from its training data.
      features: of prompts; the authors' are SimCSE's.
      number: about so many documents (each cluster's share is rounded).
      start: what all of the task's prompts begin with, such as its wording.
      cue: what all of them end with, and nothing in between.
      shots: K demonstrations in a context; the authors use 2.
      tries: contexts; default is 4 · `number`.
      clusters: the authors use 20.
      seed: of contexts and clusters.

    Raises:
      ValueError: if an argument is out of range, or a demonstration doesn't begin with `start` and
        end with `cue`.

    Source: Huang et al., arXiv 2403.01244, section 3; DeepLearnXMU/SSR, `custom/icl_gen`. Theirs
    cluster after the answers are refined, which is the same, as clusters are of prompts.
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
    """About `number` rows of x [n, d]: of each k-means cluster its share, those nearest its centre.

    Rows are scaled to length 1; cluster c of n_c rows gives round(number · n_c / n).

    Args:
      x: features.
      number: of rows; all are taken where there are no more.
      clusters: at most so many.
      seed: of the first centres, drawn as k-means++ does.

    Returns:
      int [m], ascending.

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
    """Of each row from each centre, [n, centres]."""
    return np.linalg.norm(x[:, None] - centres[None], axis=-1)
