"""The commands of a life: `jcl run finetune`, `continue`, `rollback`, `forget`, `log`, `diff`."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from jcl.method import check
from jcl.parallel import processes, signals
from jcl.report import screen
from jcl.runs import launch
from jcl.runs.life import shown
from jcl.runs.life.begin import begin, named
from jcl.runs.life.life import Life, Outcome
from jcl.runs.life.plan import source_of
from jcl.runs.life.rows import Row, read_rows
from jcl.runs.life.states import has_optimizer
from jcl.runs.life.watching import watch as watch_inbox

REJECTED = 4
"""The exit code where a stage was trained and its state wasn't accepted."""
Mesh = Annotated[str, arg(metavar="AXIS=N,...")]
Distributed = Annotated[str, arg(metavar="PROCESSES")]
Files = Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME=FILE")]


def finetune(
    model: Annotated[str, arg(metavar="MODEL")],
    data: Files = (),
    test: Files = (),
    task: Literal["", "text", "chat", "classify", "prefer"] = "",
    method: Annotated[str, arg(metavar="EXPR")] = "",
    lr: float = 0.0,
    length: int = 0,
    batch: int = 8,
    epochs: float = 3.0,
    steps: int = 0,
    optimizer: Literal["keep", "reset", "reset_moments"] = "keep",
    held_out: float = 0.1,
    test_rows: int = 256,
    keep: int = 2,
    room: int = 0,
    probe: tuple[str, ...] = (),
    items: int = 48,
    seed: int = 0,
    mesh: Mesh = "",
    distributed: Distributed = "",
    accept: Annotated[str, arg(metavar="CONDITIONS")] = "",
    repeats: FlagCreatePairsOff[bool] = False,
    out: Annotated[Path | None, arg(metavar="DIR")] = None,
) -> int:
    """Tunes a model on files, a stage each, in a folder to which further ones can be added.

    What isn't said is chosen by the model's size and the first rows, printed, and kept.

    Args:
      model: a folder that transformers loads, a name of jcl fetch, or a Hugging Face id.
      data: a stage's name and files, such as jan=a.jsonl or feb=b.csv,c.csv; repeat the flag.
      test: a stage's own test, such as jan=test.jsonl; else a part of its rows is held out.
      task: what rows are: texts, chats or prompts with answers, texts with labels, or pairs of
        answers of which one is preferred; by default what the columns' names say.
      method: such as "lora() + er(capacity=512, fraction=0.25)".
      lr: AdamW's learning rate.
      length: tokens of a row.
      batch: rows a step.
      epochs: passes over a stage's rows, of at least 20 and at most 1000 steps.
      steps: of each stage, in place of epochs.
      optimizer: what happens to its state between stages.
      held_out: share of rows that is tested on, by their hashes.
      test_rows: how many of a test are scored at most.
      keep: of how many stages the whole state is kept; of older ones all but the optimizer's.
      room: how many classes the head has room for.
      probe: probes of general ability, such as boolq piqa, asked before and after each stage.
      items: how many items of each are asked at most.
      seed: of all draws.
      mesh: train over many devices, such as fsdp=2.
      distributed: which of several processes, that share the folder, this is: auto, or
        HOST:PORT,PROCESSES,INDEX.
      accept: what must hold for a new state to count, such as "forgetting<2, average>80".
      repeats: train again on rows of earlier stages that come again.
      out: the folder; by default a new one under runs/.
    """
    check(bool(data), "data", "", "given, such as --data jan=a.jsonl")
    stages = [named(text) for text in data]
    tests = dict(named(text) for text in test)
    unknown = sorted(tests.keys() - {name for name, _ in stages})
    check(not unknown, "test", ", ".join(unknown), "of a stage that --data names")
    _gather(mesh, distributed)
    first = read_rows(stages[0][1], task or None)
    name = Path(model).name
    place = Path(processes.from_leader(
        lambda: str(launch.next_folder("finetune", [name]) if out is None else out)
    ))  # fmt: skip
    pairs = [*(f"--data={d}" for d in data), *(f"--test={t}" for t in test)]
    judged = [*(["--accept", accept] if accept else []), *(["--repeats"] if repeats else [])]
    command = shlex.join(["jcl", "run", "finetune", "--model", model, *pairs, *judged])
    facts = {
        "command": command, **launch.versions(), "accept": accept, "repeats": repeats,
        "given": [[name, [str(p.resolve()) for p in files],
                   [str(p.resolve()) for p in tests.get(name, ())]] for name, files in stages],
    }  # fmt: skip
    life = begin(
        place, model, first, task=task or None, method=method, lr=lr, length=length, batch=batch,
        epochs=epochs, steps=steps, optimizer=optimizer, held_out=held_out, test_rows=test_rows,
        keep=keep, room=room, probe=probe, items=items, seed=seed, mesh=mesh or None, facts=facts,
        say=_say,
    )  # fmt: skip
    return _ahead(life)


def go_on(
    run: Annotated[Path, Positional, arg(metavar="RUN")],
    data: Annotated[str, arg(metavar="NAME=FILE")] = "",
    test: Annotated[str, arg(metavar="FILE")] = "",
    method: Annotated[str, arg(metavar="EXPR")] = "",
    accept: Annotated[str, arg(metavar="CONDITIONS")] = "",
    repeats: FlagCreatePairsOff[bool] = False,
    drop: FlagCreatePairsOff[bool] = False,
    when: Literal["always", "drift"] = "always",
    watch: Annotated[Path | None, arg(metavar="DIR")] = None,
    every: float = 5.0,
    mesh: Mesh = "",
    distributed: Distributed = "",
) -> int:
    """Learns another stage on the state of the last, and scores every test again.

    Without data it goes on with a stage that was cut short, and those that were given with it.

    Args:
      run: the folder of jcl run finetune.
      data: the stage's name and files, such as march=c.jsonl.
      test: its own test; else a part of its rows is held out.
      method: another method from here on.
      accept: what must hold for the new state to count, such as "forgetting<2, average>80".
      repeats: train again on rows of earlier stages that come again.
      drop: drop a stage that was cut short, before anything else.
      when: drift trains only if the model knows the rows less well than its tests.
      watch: take each new file of this folder as a stage, until it has a file called stop.
      every: seconds between two looks into it.
      mesh: train over other devices than it was begun on, such as fsdp=2.
      distributed: which of several processes, that share the folder, this is: auto, or
        HOST:PORT,PROCESSES,INDEX.
    """
    life = Life(run, mesh=mesh or None)
    _gather(life.settings.mesh or "", distributed)
    if drop:
        name = life.drop()
        _say(f"dropped {name}, which was cut short" if name else "no stage was cut short")
    if watch is not None:
        check(not (data or test), "data", data or test, "left out where a folder is watched")
        options: dict[str, Any] = {
            "accept": accept,
            "method": method or None,
            "repeats": repeats,
            "when": when,
        }
        signals.hold(f"go on with: jcl continue {shlex.quote(str(run))} --watch {watch}")
        watch_inbox(life, watch, every=every, say=_say, **options)
        return 0
    if not data:
        return 0 if drop else _ahead(life)
    name, files = named(data)
    tests = read_rows(named(test)[1], life.settings.task) if test else None
    rows = read_rows(files, life.settings.task)
    source = source_of(files)
    return _learn(life, name, rows, tests, accept, method or None, source, repeats, when)


def rollback(
    run: Annotated[Path, Positional, arg(metavar="RUN")],
    to: Annotated[str, arg(metavar="STAGE")],
) -> None:
    """Makes the state after an earlier stage the current one; nothing is deleted.

    Args:
      run: the folder of jcl run finetune.
      to: the stage's name.
    """
    life = Life(run)
    stage = life.rollback(to)
    kept = "" if has_optimizer(life.book, stage) else "; its optimizer begins anew"
    _say(f"the current state is that after {stage.name}{kept}")


def forget(
    run: Annotated[Path, Positional, arg(metavar="RUN")],
    data: Annotated[str, arg(metavar="FILE")] = "",
    stage: Annotated[str, arg(metavar="STAGE")] = "",
) -> None:
    """Takes rows out of every memory and every file of a run, and says what that can't undo.

    Args:
      run: the folder of jcl run finetune.
      data: a file with the rows, such as complaint.jsonl.
      stage: in its place all rows of a stage; a bank by task then forgets its entry too, exactly.
    """
    life = Life(run)
    rows = read_rows(named(data)[1], life.settings.task) if data else ()
    launch.cache()
    _say(life.forget(rows, stage).said)


def log(run: Annotated[Path, Positional, arg(metavar="RUN")]) -> None:
    """Prints what was learned when, of which data, with which scores, and the bytes of each state.

    A star marks the current state, a plus what led to it, a minus what was rolled back.

    Args:
      run: the folder of jcl run finetune.
    """
    for line in shown.log_lines(Life(run)):
        _say(line)


def diff(
    run: Annotated[Path, Positional, arg(metavar="RUN")],
    one: Annotated[str, Positional, arg(metavar="STAGE")],
    other: Annotated[str, Positional, arg(metavar="STAGE")],
    examples: int = 3,
) -> None:
    """Prints what got better and worse from one state to another, item by item, with examples.

    Args:
      run: the folder of jcl run finetune.
      one: the stage after which the first state is.
      other: the stage after which the second is.
      examples: how many items are shown of each test, both ways.
    """
    for line in shown.diff(Life(run), one, other, examples):
        _say(line)


def _gather(mesh: str, distributed: str) -> None:
    """Makes the devices of a mesh, of this process or of several, before anything is computed."""
    if distributed:
        launch.join(distributed)
    elif mesh:
        launch.split_cpu()
    launch.cache()


def _ahead(life: Life) -> int:
    """Learns what was cut short, and what was given at the beginning and isn't in the book."""
    known = {stage.name for stage in life.book.stages}
    given = [one for one in life.saved.get("given", []) if one[0] not in known]
    options = life.saved.get("accept", ""), life.saved.get("repeats", False)
    pending = life.book.pending()
    if pending is not None:
        code = _learn(life, pending["name"], (), None, "", None, {}, False)
        given = [one for one in given if one[0] != pending["name"]]
        if code or not given:
            return code
    elif not given:
        raise ValueError(f"{life.folder} has nothing to go on with; give --data name=file")
    for name, files, tests in given:
        paths = [Path(p) for p in files]
        rows = read_rows(paths, life.settings.task)
        exam = read_rows(tests, life.settings.task) if tests else None
        code = _learn(life, name, rows, exam, options[0], None, source_of(paths), options[1])
        if code:
            return code
    return 0


def _learn(
    life: Life,
    name: str,
    rows: list[Row] | tuple[()],
    tests: list[Row] | None,
    accept: str,
    method: str | None,
    source: dict[str, object],
    repeats: bool,
    when: Literal["always", "drift"] = "always",
) -> int:
    """Learns one stage before the user's eyes, and gives the exit code."""
    again = f"go on with: jcl continue {shlex.quote(str(life.folder))}"
    signals.hold(again)
    each = life.settings.length
    watch = screen.Watch(name, 1, [name], ("tokens", each))
    try:
        with watch:
            done = life.stage(
                name, rows, tests, accept=accept, method=method, source=source,
                repeats=repeats, when=when, on_event=watch, say=_say,
            )  # fmt: skip
    except KeyboardInterrupt:
        _say(f"stopped, what was trained is saved; {again}")
        return signals.INTERRUPTED
    except signals.Preempted:
        _say(f"told to stop by SIGTERM, what was trained is saved; {again}")
        return signals.PREEMPTED
    _say(_words(done))
    if done.accepted:
        _say(f"report: {life.folder / 'report.html'}")
    return 0 if done.accepted or math.isnan(done.before) else REJECTED


def _words(done: Outcome) -> str:
    """What became of a stage, in a line."""
    if math.isnan(done.before):
        return f"{done.name} is not trained: {done.why}"
    if not done.accepted:
        return f"{done.name} is rejected, and the state before it stays: {done.why}"
    each = "  ".join(f"{name} {score:.3f}" for name, score in done.scores.items())
    return f"after {done.name}: {each} ({done.name} was {done.before:.3f} before it)"


def _say(text: str) -> None:
    screen.console().print(text, markup=False, soft_wrap=True)
