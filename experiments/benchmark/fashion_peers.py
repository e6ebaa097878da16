"""Torch's hand-written loop, and Avalanche's, on the stream and network of `jcl run fashion`.

    PEERS/bin/python experiments/benchmark/fashion_peers.py avalanche --method er

trains on the first 10,000 images, one epoch a task, class-incrementally, and prints a JSON line
with the speed of training and the final accuracies. With `--turns STEPS` it trains so many steps of
the first task for every line that it reads, and prints the seconds of each turn, for
`fashion_turns.py`.

The network is Avalanche's `SlimResNet18` for images of one channel and 28 × 28 pixels, with He et
al.'s initialisation as ours has it. Both train by plain SGD. The loop's reservoir is filled at each
step and 32 rows of it are replayed beside each batch of 32; Avalanche's `ReplayPlugin` fills its
memory at a task's end, so that it replays nothing in the first task.
"""

import argparse
import gzip
import json
import os
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch loads its OpenMP

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMAGES = Path.home() / ".cache/jcl/fetched/fashion"
MEMORY, REPLAYED, RATE, TASKS = 500, 32, 0.1, 5

Task = tuple[Tensor, Tensor]


class Block(nn.Module):
    """Avalanche's basic block."""

    def __init__(self, before: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != planes:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, H, W] to [B, planes, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class ResNet(nn.Sequential):
    """Avalanche's `SlimResNet18`, but for one channel."""

    def __init__(self, width: int) -> None:
        sizes = (width, width, 2 * width, 4 * width, 8 * width)
        blocks = [
            block
            for a, b in pairwise(sizes)
            for block in (Block(a, b, 1 if a == b else 2), Block(b, b, 1))
        ]
        super().__init__(
            nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            *blocks, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(8 * width, 10),
        )  # fmt: skip
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")


def read(split: str, count: int) -> list[Task]:
    """The first images of a split, dealt to the tasks."""

    def values(name: str, header: int) -> np.ndarray:
        raw = gzip.decompress((IMAGES / f"{split}-{name}-ubyte.gz").read_bytes())
        return np.frombuffer(raw, np.uint8, offset=header)

    x = values("images-idx3", 16).reshape(-1, 1, 28, 28)[:count].astype(np.float32) / 255
    y = values("labels-idx1", 8)[:count].astype(np.int64)
    parts = [np.flatnonzero(y // 2 == task) for task in range(TASKS)]
    return [(torch.from_numpy(x[rows]), torch.from_numpy(y[rows])) for rows in parts]


class Loop:
    """Torch by hand."""

    def __init__(self, net: nn.Module, method: str, batch: int) -> None:
        self.net, self.batch, self.replays = net, batch, method == "er"
        self.sgd = torch.optim.SGD(net.parameters(), lr=RATE)
        self.rows = torch.empty(MEMORY, 1, 28, 28)
        self.labels = torch.empty(MEMORY, dtype=torch.int64)
        self.seen = 0

    def fill(self, x: Tensor, y: Tensor) -> None:
        """Reservoir sampling, a row at a time."""
        for row, label in zip(x, y, strict=True):
            place = self.seen if self.seen < MEMORY else int(torch.randint(self.seen + 1, ()))
            if place < MEMORY:
                self.rows[place], self.labels[place] = row, label
            self.seen += 1

    def train(self, task: Task) -> None:
        """One epoch."""
        self.net.train()
        for rows in torch.randperm(len(task[1])).split(self.batch):
            x, y = task[0][rows], task[1][rows]
            both = x, y
            if self.replays and self.seen:
                drawn = torch.randint(min(self.seen, MEMORY), (REPLAYED,))
                both = torch.cat([x, self.rows[drawn]]), torch.cat([y, self.labels[drawn]])
            self.sgd.zero_grad(set_to_none=True)
            F.cross_entropy(self.net(both[0]), both[1]).backward()
            self.sgd.step()
            if self.replays:
                self.fill(x, y)


def avalanche(net: nn.Module, method: str, batch: int) -> Callable[[Task], None]:
    """Avalanche's strategy, with everything optional turned off."""
    import peers_avalanche as lib

    strategy = lib.Naive(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=RATE),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=batch,
        train_epochs=1,
        evaluator=None,
        eval_every=-1,
        plugins=[lib.ReplayPlugin(MEMORY, batch_size_mem=REPLAYED)] if method == "er" else [],
    )

    def train(task: Task) -> None:
        dataset = lib._make_taskaware_tensor_classification_dataset(*task, task_labels=0)
        (experience,) = lib.benchmark_from_datasets(train=[dataset]).streams["train"]
        strategy.train(experience, num_workers=0, pin_memory=False, drop_last=False)

    return train


@torch.no_grad()
def accuracy(net: nn.Module, task: Task) -> float:
    """The share of right answers, over all ten classes."""
    net.eval()
    found = torch.cat([net(x).argmax(1) for x in task[0].split(250)])
    return (found == task[1]).float().mean().item()


def timed(train: Callable[[Task], None], task: Task) -> dict[str, float]:
    """The seconds of training on a task, and this process's of the processor."""
    began, cpu = time.perf_counter(), time.process_time()
    train(task)
    return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=("torch", "avalanche"))
    parser.add_argument("--method", choices=("naive", "er"), default="naive")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--turns", type=int, metavar="STEPS")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    net = ResNet(given.width)
    train: Callable[[Task], None] = (
        Loop(net, given.method, given.batch).train
        if given.peer == "torch"
        else avalanche(net, given.method, given.batch)
    )
    tasks = read("train", given.images)
    if given.turns:
        rows = given.turns * given.batch
        for turn, _ in enumerate(sys.stdin):
            x, y = tasks[turn % 2]  # the second turn's replays what the first left
            print(json.dumps(timed(train, (x[:rows], y[:rows]))), flush=True)
        return
    spent = [timed(train, task) for task in tasks]
    seconds, cpu = (sum(one[name] for one in spent) for name in ("seconds", "cpu"))
    found = [accuracy(net, task) for task in read("t10k", 2_000)]
    print(json.dumps({
        "peer": given.peer, "method": given.method,
        "examples_per_second": round(given.images / seconds, 1), "cpu_seconds": round(cpu, 1),
        "accuracy": [round(a, 3) for a in found], "average": round(sum(found) / TASKS, 3),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
