"""What both peers share: options, the synthetic stream, the model, the clock and the JSON line.

The stream is a split of ten Gaussian classes into five tasks of two, as float32 tensors in
memory. A run is one epoch over each task in a shuffled order, work at task ends included,
evaluation, data preparation and model construction excluded; a short run on a tiny stream
comes first as a warm-up. A speed is examples of the stream (not replayed rows) a second of wall
time; where `seconds` is above `cpu_seconds` / threads, something else had the processor.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple, TypeVar

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch loads its OpenMP

import torch
from torch import Tensor, nn

INPUTS = 784
CLASSES = 10
TASKS = 5
CLASSES_A_TASK = CLASSES // TASKS
MEAN_SCALE = 0.1  # class means are 4 standard deviations apart: learnable, not trivial
TEST_ROWS_A_CLASS = 200

LEARNING_RATE = 1e-3
MEMORY = 500  # rows, over all tasks; as many rows as the batch has are replayed a step
EWC_STRENGTH = 100.0  # in 1/2 lambda F (theta - theta*)^2
LWF_STRENGTH = 1.0
LWF_TEMPERATURE = 2.0
DER_ALPHA = 0.1
DER_BETA = 0.5
SI_C = 0.1  # in c omega (theta - theta*)^2
PACKNET_PRUNE = 0.5

WARM_UP_STEPS = 4
INSERT_STEPS = 2000

T = TypeVar("T")


class Task(NamedTuple):
    """The rows of one task: inputs [N, 784] float32 and labels [N] int64."""

    x: Tensor
    y: Tensor


Predict = Callable[[Tensor, int], Tensor]  # (inputs, task) -> logits
Train = Callable[[], Predict]  # the timed part
Peer = Callable[["Settings", Sequence[Task]], Train]  # the untimed preparation
Insert = Callable[["Settings", Task], Callable[[], object]]


@dataclass(frozen=True)
class Settings:
    """The options of one run; `steps` are optimizer steps a task (or calls of insert)."""

    method: str
    batch: int
    steps: int
    threads: int
    hidden: int
    seed: int
    repeat: int


def parse(description: str, methods: Sequence[str]) -> Settings:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--method", default="naive", choices=[*methods, "insert"])
    parser.add_argument("--batch", type=int, help="default 128, and 10 for insert")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--steps",
        type=int,
        help="optimizer steps a task (default 200, 800 for a batch under 64); for insert, calls",
    )
    size.add_argument("--examples", type=int, help="instead of --steps: examples a task")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeat", type=int, default=1, help="timed runs; the median counts")
    given = parser.parse_args()

    inserting = given.method == "insert"
    batch = given.batch or (10 if inserting else 128)
    if given.examples and given.examples % batch:
        parser.error(f"--examples {given.examples} is no multiple of the batch, {batch}")
    default_steps = INSERT_STEPS if inserting else 200 if batch >= 64 else 800
    return Settings(
        method=given.method,
        batch=batch,
        steps=given.examples // batch if given.examples else given.steps or default_steps,
        threads=given.threads,
        hidden=given.hidden,
        seed=given.seed,
        repeat=given.repeat,
    )


def make_stream(seed: int, rows_a_task: int, *, part: int = 0) -> list[Task]:
    """Five tasks of two classes each; `part` draws other rows of the same classes."""
    means = torch.randn(CLASSES, INPUTS, generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(1_000_003 * (part + 1) + seed)
    stream = []
    for task in range(TASKS):
        y = torch.randint(CLASSES_A_TASK, (rows_a_task,), generator=generator)
        y += task * CLASSES_A_TASK
        x = torch.randn(rows_a_task, INPUTS, generator=generator)
        stream.append(Task(x.add_(MEAN_SCALE * means[y]), y))
    return stream


def make_model(settings: Settings) -> nn.Sequential:
    """784-hidden-hidden-10 with ReLU, torch's default initialisation."""
    torch.manual_seed(settings.seed)
    return nn.Sequential(
        nn.Linear(INPUTS, settings.hidden),
        nn.ReLU(inplace=True),
        nn.Linear(settings.hidden, settings.hidden),
        nn.ReLU(inplace=True),
        nn.Linear(settings.hidden, CLASSES),
    )


def make_adam(parameters: Sequence[nn.Parameter]) -> torch.optim.Adam:
    """Adam in its fused form, the fastest that torch has on a CPU too."""
    return torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)


@torch.no_grad()
def accuracy(predict: Predict, stream: Sequence[Task]) -> float:
    """Mean over tasks of the accuracy over all ten classes."""
    hits = [
        (predict(x, task).argmax(1) == y).float().mean().item()
        for task, (x, y) in enumerate(stream)
    ]
    return statistics.fmean(hits)


def main(peer: str, description: str, methods: Sequence[str], train: Peer, insert: Insert) -> None:
    """Warm up, time, and print one JSON line."""
    settings = parse(description, methods)
    torch.set_num_threads(settings.threads)
    torch.set_num_interop_threads(1)
    if settings.method == "insert":
        rows = settings.steps * settings.batch
        final = None
        (data, *_) = make_stream(settings.seed, rows)
        insert(settings, Task(*(column[: 20 * settings.batch] for column in data)))()
        seconds, cpu_seconds = [], []
        for _ in range(settings.repeat):
            took, cpu, _ = clock(insert(settings, data))
            seconds.append(took)
            cpu_seconds.append(cpu)
        steps = settings.steps
    else:
        rows = TASKS * settings.steps * settings.batch
        stream = make_stream(settings.seed, settings.steps * settings.batch)
        held_out = make_stream(settings.seed, TEST_ROWS_A_CLASS * CLASSES_A_TASK, part=1)
        train(settings, make_stream(settings.seed, WARM_UP_STEPS * settings.batch))()
        seconds, cpu_seconds = [], []
        for _ in range(settings.repeat):
            took, cpu, predict = clock(train(settings, stream))
            seconds.append(took)
            cpu_seconds.append(cpu)
        final = round(accuracy(predict, held_out), 4)
        steps = TASKS * settings.steps
    median = statistics.median(seconds)
    line = {
        "peer": peer,
        **asdict(settings),
        "steps": steps,
        "examples_per_second": round(rows / median, 1),
        "seconds": round(median, 4),
        "seconds_all": [round(one, 4) for one in seconds],
        "cpu_seconds": round(statistics.median(cpu_seconds), 4),
        "compile_seconds": 0,
        "final_accuracy": final,
        "torch": torch.__version__,
    }
    print(json.dumps(line))


def clock(run: Callable[[], T]) -> tuple[float, float, T]:
    """Wall seconds and this process's CPU seconds that a call took, and its result."""
    start, cpu_start = time.perf_counter(), time.process_time()
    result = run()
    return time.perf_counter() - start, time.process_time() - cpu_start, result
