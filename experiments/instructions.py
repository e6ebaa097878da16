"""A pretrained language model learns to follow one kind of instruction after another.

Four tasks from real sets come in turn, each with its wording and its way to answer: solutions and
common sense by letter, sentiment and topic by word.

Self-synthesised rehearsal writes each stage's data with the model of the stage before, so it isn't
one compiled run: `python experiments/instructions.py rehearse --out DIR` trains stage by stage.
`python experiments/instructions.py draw RUN [DIR]` draws what `jcl run instructions` left in RUN;
the numbers stay beside the figure as JSON, from which `draw --redraw` draws it again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from eras import pretrained, probe_evaluator

import jcl
from jcl import adapters, data, losses, methods, models, report
from jcl.data import corpora, questions, rehearsal
from jcl.data.instructions import (
    Task,
    as_instructions,
    documents,
    drop_long,
    questions_as_instructions,
)
from jcl.measures import answers
from jcl.measures.evaluation import evaluator, token_nll
from jcl.program import Evaluate
from jcl.report.numbers import beside
from jcl.runs.experiment import Experiment

METHODS = (
    "lora()",
    "lora() + er(capacity=256, rows=2)",
    "inclora(stages=4, predict='task')",
    "inclora(stages=4, predict='task') + infer_task(tasks=4)",
    "olora(stages=4)",
    "olora(stages=4, form='square')",
    "moelora()",
    "progressive_prompts(stages=4, length=5)",
    "progressive_prompts(stages=4, length=5) + infer_task(tasks=4)",
)
SETS = ("tweets", "piqa", "r8", "commonsenseqa")


@dataclass(frozen=True)
class Config:
    """A run for two cores; `--preset full` is what a GPU would run."""

    model: str = "glassllm"
    """What `jcl fetch` gets (`smollm2`, `glassllm`), a folder, or a Hugging Face id."""
    preset: Literal["small", "full"] = "small"
    """`full` trains three epochs of each task on rows of 512 tokens (or the model's context)."""
    order: tuple[str, ...] = SETS
    """Which tasks, in this order: questions (`boolq`, `piqa`, `commonsenseqa`, `openbookqa`,
    `mmlu`), sentiment (`tweets`, `reviews`, `films`, `news`) and topics (`r8`)."""
    score: Literal["exact", "loss"] = "exact"
    """Share of greedy answers that are exactly right, or the log perplexity of the right ones."""
    steps: int = 40
    """Optimizer steps on each task."""
    batch: int = 8
    """Instructions a step."""
    length: int = 96
    """Tokens of an instruction with its answer; longer ones are left out."""
    lr: float = 3e-3
    """AdamW's learning rate."""
    test_rows: int = 32
    """Test instructions of each task."""
    items: int = 12
    """Items of each probe of general ability."""
    validation: float = 0.0
    """Share of each stage's training instructions to hold out, see --select-on."""


def task(name: str) -> Task:
    """A real set as instructions."""
    if name in corpora.SENTIMENT_DOMAINS:
        probe = questions.from_labels(
            name, corpora.sentiment(name), ["negative", "positive"], "{}\nFeeling:"
        )
        return as_instructions(probe, "Name the feeling.")
    if name == "r8":
        rows = corpora.r8("train")
        probe = questions.from_labels(name, rows, sorted({r.label for r in rows}), "{}\nTopic:")
        return as_instructions(probe, "Name the topic.")
    return questions_as_instructions(name, "given" if name == "boolq" else "letters")


@cache
def tasks(model: str, order: tuple[str, ...], length: int) -> tuple[Task, ...]:
    """The tasks' rows that fit, read once for all methods."""
    tokenizer = pretrained(model).tokenizer
    return tuple(drop_long(task(name), tokenizer, length) for name in order)


def stream_of(
    config: Config,
    texts: Mapping[str, Any],
    seed: int,
    stages: Any = None,
    batch: int | None = None,
) -> data.Stream:
    """A stream of documents, one a row: soft prompts, and tasks that are inferred, are a row's."""
    full = config.preset == "full"
    model = pretrained(config.model)
    amount: Any = {"epochs": 3} if full else {"steps": config.steps}
    return data.from_text(
        texts, model.tokenizer, length=_length(config), batch=batch or config.batch, seed=seed,
        stages=stages, packing="alone", overlong="cut", boundary_batches=8,
        test_rows=None if full else config.test_rows, test_batch=16,
        vocabulary=model.config.vocabulary, **amount,
    )  # fmt: skip


def _length(config: Config) -> int:
    wanted = 512 if config.preset == "full" else config.length
    return min(wanted, pretrained(config.model).config.context)


def build(config: Config) -> Experiment:
    model = pretrained(config.model)
    texts = {
        t.name: (documents(t.train), documents(t.test))
        for t in tasks(config.model, config.order, _length(config))
    }
    texts, held = data.validation_split(texts, config.validation)
    exact = config.score == "exact"
    limit = None if config.preset == "full" else config.items

    def judge(texts: Mapping[str, Any]) -> Evaluate:
        test = stream_of(config, texts, 0).test
        if exact:
            return evaluator(test, answers.exact_match())
        return evaluator(test, token_nll(), losses.with_targets)

    return Experiment(
        name="instructions",
        scenario="task-incremental",
        stream=partial(stream_of, config, texts),
        init=lambda key: model.params,
        apply=models.decoder.apply_fn(model.config),
        loss=losses.fused_next_token(),
        optimizer=lambda lr: optax.adamw(lr),
        evaluate=judge(texts),
        measure="exact match" if exact else "log perplexity of answers",
        higher_is_better=exact,
        learning_rate=config.lr,
        boundary="reset",
        chunk=10,
        tokens_per_row=_length(config),
        model=model,
        probe_names=("mmlu", "boolq"),
        probe=probe_evaluator(("mmlu", "boolq"), limit, model),
        validate=None if held is None else judge(held),
    )


def rehearsed(
    config: Config, seed: int, writer: str = "smollm2", number: int = 8, kept: int = 8
) -> np.ndarray:
    """Scores [stages + 1, tasks] of `lora()` with self-synthesised rehearsal in a fifth of rows.

    Args:
      config: of the run.
      seed: of all draws.
      writer: the base model, which continues demonstrations; the paper's is that which is trained.
      number: rehearsed instructions of each task.
      kept: demonstrations of each task, of its training rows.
    """
    experiment, base = build(config), pretrained(writer)
    sets = tasks(config.model, config.order, _length(config))
    write = partial(
        answers.continue_texts, base.apply, base.params, base.config, base.tokenizer,
        steps=48, batch=8, temperature=0.9, top_p=0.6, key=jax.random.key(seed),
    )  # fmt: skip
    program = jcl.make(
        methods.lora(), experiment.apply, experiment.loss, experiment.optimizer(config.lr),
        trainable=adapters.is_adapter, boundary="reset",
    )  # fmt: skip
    table = np.asarray(pretrained(config.model).params["embed"]["table"], np.float32)
    tokenizer = pretrained(config.model).tokenizer

    def features(texts: Any) -> np.ndarray:
        return np.stack([table[tokenizer(text)["input_ids"]].mean(0) for text in texts])

    def scores(state: jcl.State) -> np.ndarray:
        return np.asarray(jax.jit(partial(experiment.evaluate, program))(state))

    pool: list[tuple[str, str]] = []
    params, carried = experiment.init(jax.random.key(seed)), None
    rows: list[np.ndarray] = []
    for stage, task in enumerate(sets):
        texts = {task.name: (documents(task.train), documents(task.test))}
        mixed = None
        if pool:
            texts["rehearsed"] = (pool, pool)
            mixed = [{task.name: 0.8, "rehearsed": 0.2}]
        # as many fresh rows as the other methods have, and a quarter as many rehearsed
        batch = config.batch + (config.batch // 4 if pool else 0)
        stream = stream_of(config, texts, seed, mixed, batch)
        key = jax.random.fold_in(jax.random.key(seed), stage)
        if not rows:
            example = jcl.runs.experiment.example(stream)
            rows.append(scores(jax.jit(program.init)(params, example, key)))
        state = jcl.fit(program, params, key, stream, chunk=10, carried=carried).state
        params, carried = state.params, state
        rows.append(scores(state))
        print(f"seed {seed} after {task.name}: {rows[-1].round(3)}", flush=True)
        if stage + 1 == len(sets):
            break
        shown = np.random.default_rng((seed, stage)).permutation(len(task.train))[:kept]
        demonstrations = [documents(task.train)[i] for i in shown]
        prompt = demonstrations[0][0]
        written = rehearsal.synthesise(
            write,
            partial(
                answers.continue_texts, program.predict, state, experiment.model.config, tokenizer
            ),
            demonstrations,
            features,
            number=number,
            start=prompt[: prompt.index("\n") + 1],
            cue=prompt[prompt.rindex("\n") :],
            tries=2 * number,
            clusters=4,
            seed=seed,
        )
        print(f"  wrote {written.usable} of {written.tried}: {written.documents[:2]}", flush=True)
        room = _length(config) - 2  # for what begins and ends a document
        pool += [d for d in written.documents if len(tokenizer("".join(d))["input_ids"]) <= room]
    return np.stack(rows)


def measured(run: Path, rehearsal_run: Path | None) -> list[dict[str, Any]]:
    """The methods' `report.Scores`, as dicts."""
    runs = report.load(run)
    shown = report.labelled(runs)
    if rehearsal_run is not None:
        R = np.asarray(json.loads((rehearsal_run / "scores.json").read_text()))
        stages = runs[0].summary["stage_tasks"]
        lost = report.forgetting(R, stages, True)
        shown.insert(2, shown[0]._replace(label="lora() + SSR", scores=R, forgetting=lost))
    return [one._asdict() for one in shown]


def draw(found: list[dict[str, Any]], to: Path) -> None:
    """The figure: average in the end and forgetting of each method, with 95 % intervals."""
    from jcl.report import figures

    runs = [
        report.Scores(**one)._replace(
            scores=np.asarray(one["scores"], float), forgetting=np.asarray(one["forgetting"], float)
        )
        for one in found
    ]
    figures.ranking(runs).savefig(to)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    rehearse = commands.add_parser("rehearse")
    rehearse.add_argument("--seeds", type=int, default=3)
    rehearse.add_argument("--writer", default="smollm2")
    rehearse.add_argument("--out", type=Path, required=True)
    drawing = commands.add_parser("draw")
    drawing.add_argument("run", type=Path, nargs="?", default=Path("runs/instructions"))
    drawing.add_argument("rehearsed", type=Path, nargs="?")
    drawing.add_argument("--to", type=Path, default=Path("experiments/figures/instructions.png"))
    drawing.add_argument("--redraw", action="store_true", help="from the JSON beside the figure")
    given = parser.parse_args()
    if given.command == "draw":
        found = beside(given.to, given.redraw, lambda: measured(given.run, given.rehearsed))
        draw(found, given.to)
        return
    scores = [rehearsed(Config(), seed, given.writer) for seed in range(given.seeds)]
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "scores.json").write_text(json.dumps(np.stack(scores).tolist()))


if __name__ == "__main__":
    main()
