"""A stream of edits: facts of countries rewritten one after another, and what else changes with it.

A pretrained language model is taught counterfactual facts (another capital, currency, language) by
one editor after another. Along the stream it is asked, by greedy decoding, the edits themselves
(reliability), other words for them (generality), the same of other countries (locality, against
what the unedited model says), what follows from them (portability), and upstream text
(perplexity). Run with `python experiments/editing.py`; a stream that was stopped goes on where it
was. Writes `experiments/figures/editing.png` and, beside it, the numbers as JSON, from which
`--redraw` draws it again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from eras import pretrained

from jcl import editing, metrics
from jcl.data import edits as facts_of
from jcl.data.corpora import natural_questions, state_of_the_union
from jcl.data.edits import Edit
from jcl.data.encode import Passage, encode
from jcl.editing import measures, stream
from jcl.editing.measures import KINDS
from jcl.method import Batch, check
from jcl.report.labels import name_ends
from jcl.report.numbers import beside
from jcl.report.style import (
    across,
    draw_intervals,
    draw_line,
    drawing,
    hue,
    interval,
    note_seeds,
    set_limits,
)
from jcl.runs import expression

EDITORS: dict[str, Callable[..., editing.Editor]] = {
    "ft_l": editing.ft_l,
    "rome": editing.rome,
    "memit": editing.memit,
    "alphaedit": editing.alphaedit,
    "grace": editing.grace,
    "wise": editing.wise,
}
METHODS = (
    "ft_l(layer=0, rate=0.001, bound=0.002)",
    "rome(layer=6)",
    "memit(layers=(4, 5, 6, 7, 8), strength=3000.0)",
    "alphaedit(layers=(4, 5, 6, 7, 8))",
    "grace(layer=21, radius=1.5, rate=3.0)",
    "wise(layer=21, steps=25)",
)


@dataclass(frozen=True)
class Config:
    """Ten minutes on two cores; `--preset full` is what a GPU would run."""

    preset: Literal["small", "full"] = "small"
    """`full` makes 1,000 edits a seed, of all six relations, with all contexts, scored every 100;
    takes the moments over 100,000 tokens, and asks longer text for its perplexity."""
    model: str = "smollm2"
    """What `jcl fetch` gets, a folder, or a Hugging Face id."""
    methods: tuple[str, ...] = METHODS
    """Editors, as expressions; those with a second moment, unrelated texts or a capacity are given
    theirs."""
    facts: Literal["countries", "zsre", "counterfact"] = "countries"
    """Where edits come from; of the latter two a JSON `file` in their format."""
    file: Path | None = None
    """Such as `zsre_mend_eval.json`."""
    seeds: int = 3
    """Each draws other edits, in another order."""
    edits: int = 8
    """Of a stream."""
    batch: int = 1
    """Edits written at once."""
    every: int = 4
    """Edits between two lines, a multiple of `batch`."""
    contexts: int = 1
    """Of `jcl.editing.CONTEXTS`, before each edit's prompt; the first is none."""
    questions: int = 1
    """Paraphrases of each edit that are asked, as many hops, and twice as many neighbours."""
    length: int = 12
    """Tokens of an edit, or of a question, at most; edits with longer ones are passed over."""
    longest: int = 5
    """Tokens that are written after a question; of a longer answer the first ones count."""
    rows: int = 16
    """Questions asked at once."""
    tokens: int = 4096
    """Over which second moments are taken; more than the MLP is wide."""
    out: Path = Path("runs/editing")
    """Folder of the streams, one a method and seed."""
    figure: Path = Path(__file__).parent / "figures" / "editing.png"
    """Where the figure goes."""
    redraw: bool = False
    """Only draws, from the JSON beside the figure."""


def read(config: Config, seed: int, tokenizer: Any) -> list[Edit]:
    """The edits of a seed."""
    if config.facts == "countries":
        relations = facts_of.RELATIONS if config.preset == "full" else facts_of.RELATIONS[:3]
        found = facts_of.countries(seed, relations)
    else:
        check(config.file is not None, "file", None, f"a file in the format of {config.facts}")
        assert config.file is not None
        reader = {"zsre": facts_of.read_zsre, "counterfact": facts_of.read_counterfact}
        there = reader[config.facts](config.file)
        found = [there[i] for i in np.random.default_rng(seed).permutation(len(there))]
    kept: list[Edit] = []
    for edit in found:
        edit = edit._replace(
            paraphrases=edit.paraphrases[: config.questions],
            neighbours=edit.neighbours[: 2 * config.questions],
            hops=edit.hops[: config.questions],
        )
        texts = [c.format(f"{edit.prompt} {edit.target}") for c in contexts(config)]
        asked = (*edit.paraphrases, *(prompt for prompt, _ in edit.neighbours + edit.hops))
        rows = encode(tokenizer, [Passage(text) for text in (*texts, *asked)])
        if max(len(row.tokens) - 1 for row in rows) <= config.length:
            kept.append(edit)
        if len(kept) == config.edits:
            return kept
    raise ValueError(
        f"edits is {config.edits}, but must be at most {len(kept)}, all that are there"
    )


def contexts(config: Config) -> tuple[str, ...]:
    return editing.CONTEXTS[: config.contexts]


class Setting:
    """The model, and what editors and scores read of text."""

    def __init__(self, config: Config) -> None:
        self.config, self.model = config, pretrained(config.model)
        addresses = state_of_the_union()
        self.text = "\n\n".join(a.text for a in addresses[-40:-8])
        size = (8, 4, 256) if config.preset == "full" else (2, 4, 64)
        later = self._tokens("\n\n".join(a.text for a in addresses[-8:]))
        self.upstream = {"tokens": jnp.asarray(later[: np.prod(size)].reshape(size))}
        self._moments: dict[tuple[int, ...], jax.Array] = {}

    def _tokens(self, text: str) -> np.ndarray:
        return encode(self.model.tokenizer, [Passage(text)])[0].tokens

    def moment(self, layers: tuple[int, ...]) -> jax.Array:
        """Of the inputs of `blocks/down` in some layers, all of which are computed at once."""
        if layers not in self._moments:
            count = self.config.tokens // 512
            tokens = self._tokens(self.text)[: count * 512].reshape(count, 4, 128)
            run = jax.jit(
                lambda p, t: editing.second_moment(self.model.apply, p, {"tokens": t}, layers)
            )
            self._moments[layers] = run(self.model.params, jnp.asarray(tokens))
        return self._moments[layers]

    def unrelated(self) -> Batch:
        """Questions of people that no edit is about, as WISE takes them."""
        asked = [q.question for q in natural_questions()[:64]]
        tokens = np.zeros((len(asked), self.config.length), np.int32)
        segments = np.zeros_like(tokens)
        for row, found in enumerate(encode(self.model.tokenizer, [Passage(q) for q in asked])):
            ids = found.tokens[:-1][: self.config.length]
            tokens[row, : len(ids)], segments[row, : len(ids)] = ids, 1
        return {"tokens": jnp.asarray(tokens), "segments": jnp.asarray(segments)}

    def editor(self, method: str) -> editing.Editor:
        """From an expression such as `grace(layer=21)`."""
        (call,) = expression.parse(method, EDITORS)
        factory, arguments = EDITORS[call.name], dict(call.arguments)
        takes = inspect.signature(factory).parameters
        if "moment" in takes:
            every = (4, 5, 6, 7, 8)  # of what METHODS name, for one pass over the text
            layers = arguments.get("layers") or (arguments["layer"],)
            known = every if set(layers) <= set(every) else layers
            picked = jnp.asarray([known.index(i) for i in layers])
            arguments["moment"] = self.moment(known)[picked]
        if "unrelated" in takes:
            arguments["unrelated"] = self.unrelated()
        if "capacity" in takes:
            arguments.setdefault("capacity", self.config.edits)
        return factory(self.model.apply, **arguments)


def streams(config: Config) -> dict[str, list[list[stream.Line]]]:
    """The lines of each method and seed."""
    setting = Setting(config)
    model = setting.model
    pieces = -(-config.edits * (1 + 4 * config.questions) // config.rows)
    bases: dict[int, stream.Base] = {}
    found: dict[str, list[list[stream.Line]]] = {}
    for method in config.methods:
        steps = stream.compiled(setting.editor(method), model.apply, model.config)
        found[method] = []
        for seed in range(config.seeds):
            edits = read(config, seed, model.tokenizer)
            facts = editing.encode(edits, model.tokenizer, contexts(config), config.length)
            exam = measures.examine(
                edits, model.tokenizer, rows=config.rows, width=config.length,
                longest=config.longest, pieces=pieces, vocabulary=model.config.vocabulary,
            )  # fmt: skip

            def tell(line: stream.Line, method: str = method, seed: int = seed) -> None:
                shown = ", ".join(
                    f"{k} {v:.2f}" for k, v in line.items()
                    if v is not None and not k.endswith(("_forced", "edits"))
                )  # fmt: skip
                print(f"{method} seed {seed}, {line['edits']} edits: {shown}", flush=True)

            done = stream.run(
                steps, model.params, facts, exam, setting.upstream, batch=config.batch,
                every=config.every, folder=config.out / f"{method}-{seed}",
                base=bases.get(seed), on_line=tell,
            )  # fmt: skip
            bases[seed] = done.base
            found[method].append(done.lines)
    return found


SHOWN = (*KINDS, "retained", "perplexity")


def column(lines: list[list[stream.Line]], name: str) -> np.ndarray:
    """[seeds, lines]; NaN where there is none."""
    return np.array([[x[name] for x in run] for run in lines], np.float64)


def table(found: dict[str, list[list[stream.Line]]]) -> str:
    """The end of each stream, as mean ± 95 % interval over seeds; forced in brackets."""

    def cell(values: np.ndarray) -> str:
        values = values[~np.isnan(values)]
        if not values.size:
            return "–"
        mean, half = metrics.interval(values)
        return f"{mean:.2f}" + ("" if half is None else f" ± {half:.2f}")

    rows = [f"{'':12}" + "".join(f"{name:>26}" for name in SHOWN)]
    first = next(iter(found.values()))
    for method, lines in [("unedited", [[run[0]] for run in first]), *found.items()]:
        cells = []
        for name in SHOWN:
            shown = cell(column(lines, name)[:, -1])
            forced = f"{name}_forced"
            if forced in lines[0][0]:
                shown += f" [{np.nanmean(column(lines, forced)[:, -1]):.2f}]"
            cells.append(f"{shown:>26}")
        rows.append(f"{method.partition('(')[0]:12}" + "".join(cells))
    return "\n".join(rows)


def draw(found: dict[str, list[list[stream.Line]]], path: Path) -> None:
    """Each measure along the stream, a line a method; retention, which comes once, as points."""
    names = [method.partition("(")[0] for method in found]
    with drawing(10, 6.8) as figure:
        for axes, name in zip(figure.subplots(2, 3).ravel(), SHOWN, strict=True):
            share = name != "perplexity"
            bounds = (0, 1) if share else (0, None)
            ends: list[float] = []
            for m, lines in enumerate(found.values()):
                x = np.array([line["edits"] for line in lines[0]])
                values = column(lines, name)
                skip = 0 if name in ("locality", "perplexity") else 1  # of all, before any is made
                x, values = x[skip:], values[:, skip:]
                there = ~np.isnan(values).any(axis=0)
                x, values = x[there], values[:, there]
                if name == "retained":
                    mean, half = values[:, -1].mean(), interval(values[:, -1])
                    draw_intervals(axes, mean, m, half, hue(m), across="x", bounds=bounds)
                    axes.plot(mean, m, "o", color=hue(m), markersize=6, clip_on=False)
                    continue
                # ends apart, so that intervals of several methods stand side by side
                apart = x + (m - (len(found) - 1) / 2) * 0.012 * x[-1]
                ends.append(draw_line(axes, apart, values, hue(m), bounds=bounds, marker="o")[-1])
            axes.set_title(name)
            if name == "retained":
                axes.set_yticks(range(len(names)), names)
                axes.invert_yaxis()
                across(axes)
                axes.set_xlim(0, 1)
                axes.set_xlabel(f"share, of the first edits after {x[-1]}")
                continue
            axes.set_xlabel("edits")
            axes.set_xticks(x)
            if share:
                axes.set_ylim(0, 1)
            set_limits(axes, "y", 0.05, bounds)
            name_ends(axes, axes.get_xlim()[1], ends, names, [hue(m) for m in range(len(names))])
        note_seeds(figure, [len(lines) for lines in found.values()])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main(config: Config) -> None:
    if config.preset == "full":
        config = replace(
            config, edits=1000, every=100, contexts=len(editing.CONTEXTS), questions=2, length=40,
            longest=8, rows=64, tokens=100_000,
        )  # fmt: skip
    found = beside(config.figure, config.redraw, lambda: streams(config))
    print(table(found))
    draw(found, config.figure)
    print(f"figure: {config.figure}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
