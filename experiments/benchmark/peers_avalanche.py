"""The methods as Avalanche 0.6 has them, set up as lean as its public options allow.

No loggers, no metrics, no evaluation (`evaluator=None`, `eval_every=-1`), no worker processes,
no pinned memory, in-memory tensors, the same model and the same fused Adam as the loops in
plain torch. Every method runs; what differs from those loops is Avalanche's own doing:

- ewc: `separate`, Avalanche's default: one penalty for each task before. `ewc-online` keeps one,
  with a decay of 1. Its Fisher squares the gradient of a batch's mean, not of each example
  (less work than the right one, except in closed form), in a pass over the task.
- er, der++: the memory is filled at a task's end, so nothing is replayed in the first task (the
  loops replay from the second step on). Replayed batches are full (`drop_last`).
- agem: 100 rows a task are stored, and a reference batch takes the next rows of each task's, in
  stored order, the last ones before starting again fewer: at batch 128 it has 100 rows on average
  instead of 128, at batch 10 it has 8 to 10. That favours Avalanche.
- si: Avalanche's strength is c Omega (theta - theta*)^2 with lambda = 2c; its path integral takes
  the gradient with the penalty in it.
- der++: logits are stored at the task's end, in a pass over the task.
- packnet: the plugin prunes only before an epoch, so that without retraining epochs it would
  never prune; a subclass of two lines prunes at the task's end instead. Needs task labels.

A stream without task labels gets torch's own loader, with them Avalanche's balanced one, which
is slower at batch 10; only packnet gets labels. Data sets are built before the clock starts.

torchvision's operators are declared, not loaded (there is no build of them for torch's CPU
wheel), and packages that only loggers, metrics and data sets want are stubbed.
"""

import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from peers_common import (
    DER_ALPHA,
    DER_BETA,
    EWC_STRENGTH,
    LWF_STRENGTH,
    LWF_TEMPERATURE,
    MEMORY,
    PACKNET_PRUNE,
    SI_C,
    TASKS,
    Predict,
    Settings,
    Task,
    Train,
    main,
    make_adam,
    make_model,
)
from torch import Tensor

UNUSED = {
    "GPUtil",
    "gdown",
    "matplotlib",
    "pytorchcv",
    "qpsolvers",
    "tensorboard",
    "torchmetrics",
    "wandb",
}
OPERATORS = torch.library.Library("torchvision", "DEF")


class Stub(ModuleType):
    """A module in which every name is a class that does nothing."""

    def __getattr__(self, name: str) -> type:
        """Make the class; dunder names stay absent, as the import system expects."""
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a stub for the packages that Avalanche imports and this benchmark never runs."""

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Claim the unused packages and their submodules."""
        unused = fullname.partition(".")[0] in UNUSED or fullname == "torch.utils.tensorboard"
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if unused else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Make the stub."""
        return Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


def allow_import() -> None:
    """Make `import avalanche` work without what this benchmark does not need."""
    for name in ("nms", "qnms"):
        OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    sys.meta_path.insert(0, StubFinder())


allow_import()
warnings.filterwarnings("ignore", module="avalanche")

from avalanche.benchmarks import (  # noqa: E402
    benchmark_from_datasets,
    with_classes_timeline,
    with_task_labels,
)
from avalanche.benchmarks.utils import AvalancheDataset  # noqa: E402
from avalanche.benchmarks.utils.classification_dataset import (  # noqa: E402
    _make_taskaware_tensor_classification_dataset,
)
from avalanche.models.packnet import PackNetModel, PackNetPlugin  # noqa: E402
from avalanche.training import (  # noqa: E402
    AGEM,
    DER,
    EWC,
    LwF,
    Naive,
    ReservoirSamplingBuffer,
    SynapticIntelligence,
)
from avalanche.training.plugins import ReplayPlugin  # noqa: E402
from avalanche.training.templates import SupervisedTemplate  # noqa: E402

METHODS = ("naive", "ewc", "ewc-online", "er", "lwf", "agem", "si", "der++", "packnet")


class PruneAtTheEnd(PackNetPlugin):
    """PackNet without retraining: prune and freeze at a task's end."""

    def __init__(self) -> None:
        """No epochs after pruning."""
        super().__init__(post_prune_epochs=0, prune_proportion=PACKNET_PRUNE)

    def after_training_exp(self, strategy: SupervisedTemplate, **kwargs: object) -> None:
        """Prune, then freeze."""
        strategy.model.prune(PACKNET_PRUNE)
        super().after_training_exp(strategy)


def make_strategy(settings: Settings) -> SupervisedTemplate:
    """The strategy of a method, with everything optional turned off."""
    model = make_model(settings)
    if settings.method == "packnet":
        model = PackNetModel(model)
    common = {
        "model": model,
        "optimizer": make_adam(list(model.parameters())),
        "criterion": torch.nn.CrossEntropyLoss(),
        "train_mb_size": settings.batch,
        "train_epochs": 1,
        "evaluator": None,
        "eval_every": -1,
    }
    ewc_lambda = EWC_STRENGTH / 2  # Avalanche's penalty has no 1/2
    match settings.method:
        case "naive":
            return Naive(**common)
        case "ewc":
            return EWC(ewc_lambda=ewc_lambda, mode="separate", **common)
        case "ewc-online":
            return EWC(ewc_lambda=ewc_lambda, mode="online", decay_factor=1.0, **common)
        case "er":
            replay = ReplayPlugin(mem_size=MEMORY, batch_size_mem=settings.batch)
            return Naive(plugins=[replay], **common)
        case "lwf":
            return LwF(alpha=LWF_STRENGTH, temperature=LWF_TEMPERATURE, **common)
        case "agem":
            return AGEM(patterns_per_exp=MEMORY // TASKS, sample_size=settings.batch, **common)
        case "si":
            return SynapticIntelligence(si_lambda=2 * SI_C, **common)
        case "der++":
            der = {"alpha": DER_ALPHA, "beta": DER_BETA, "batch_size_mem": settings.batch}
            return DER(mem_size=MEMORY, **der, **common)
        case "packnet":
            return Naive(plugins=[PruneAtTheEnd()], **common)
    raise ValueError(f"method {settings.method!r}: expected one of {', '.join(METHODS)}")


def make_dataset(data: Task, label: int) -> AvalancheDataset:
    """Tensors as Avalanche wants them, with one task label for all rows."""
    return _make_taskaware_tensor_classification_dataset(data.x, data.y, task_labels=label)


def train(settings: Settings, stream: Sequence[Task]) -> Train:
    """Everything but the training itself."""
    labelled = settings.method == "packnet"
    datasets = [make_dataset(data, index if labelled else 0) for index, data in enumerate(stream)]
    benchmark = benchmark_from_datasets(train=datasets)
    if labelled:
        benchmark = with_task_labels(with_classes_timeline(benchmark))
    strategy = make_strategy(settings)

    def predict(x: Tensor, task: int) -> Tensor:
        model = strategy.model.eval()
        return model(x, torch.full((len(x),), task)) if labelled else model(x)

    def run() -> Predict:
        for experience in benchmark.streams["train"]:
            # the stream's tasks are whole batches, so drop_last only keeps replayed batches full
            strategy.train(experience, num_workers=0, pin_memory=False, drop_last=True)
        return predict

    return run


def insert(settings: Settings, data: Task) -> Callable[[], ReservoirSamplingBuffer]:
    """A reservoir that is offered the rows a batch at a time, as subsets of one data set.

    The subsets, which an online stream would make as it goes, are made before the clock starts.
    """
    memory = ReservoirSamplingBuffer(MEMORY)
    dataset = make_dataset(data, 0)
    batches = [
        dataset.subset(rows.tolist()) for rows in torch.arange(len(data.y)).split(settings.batch)
    ]

    def run() -> ReservoirSamplingBuffer:
        for batch in batches:
            memory.update_from_dataset(batch)
        return memory

    return run


if __name__ == "__main__":
    main("avalanche", __doc__.splitlines()[0], METHODS, train, insert)
