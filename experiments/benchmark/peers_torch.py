"""The methods as well-written loops in plain torch: no framework, no module overhead, no compiler.

Parameters are a list of six tensors, the forward pass three `F.linear`, gradients come from
`torch.autograd.grad`, and Adam is torch's fused one. Choices that matter for the time:

- ewc: one quadratic of running sums (of F and of F theta*), whose gradient is added to the
  loss's; the Fisher is exact per example, in closed form from activations and back-propagated
  errors, over all rows of the task.
- er, der++: a reservoir filled at every step, as published; as many rows as the batch are drawn
  with replacement and go through one joint forward pass with the batch. der++ replays one draw
  for both of its terms, as Avalanche does.
- lwf: the old model runs on each batch; distillation is over the classes seen before, without T^2.
- agem: 100 rows a task are stored at its end; there is no reference gradient in the first task.
- si: the path integral takes the task's gradient, before the penalty is added.
- packnet: half of each layer's free weights are zeroed at a task's end, with no retraining
  afterwards; the rest is frozen by a mask on the gradients and a fresh Adam, biases after the
  first task. Pruned weights are zero, so no mask is needed in training's forward pass.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from peers_common import (
    CLASSES,
    CLASSES_A_TASK,
    DER_ALPHA,
    DER_BETA,
    EWC_STRENGTH,
    INPUTS,
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

FISHER_CHUNK = 512
SI_DAMPING = 1e-3

Tensors = Sequence[Tensor]


def forward(params: Tensors, x: Tensor) -> Tensor:
    """The logits of a 784-hidden-hidden-10 network."""
    w1, b1, w2, b2, w3, b3 = params
    h = F.linear(x, w1, b1).relu_()
    h = F.linear(h, w2, b2).relu_()
    return F.linear(h, w3, b3)


def copies(tensors: Tensors) -> list[Tensor]:
    """Detached copies."""
    return [tensor.detach().clone() for tensor in tensors]


def zeros(tensors: Tensors) -> list[Tensor]:
    """Zeros of the same shapes."""
    return [torch.zeros_like(tensor, requires_grad=False) for tensor in tensors]


class Naive:
    """Plain fine-tuning; the methods override what they need."""

    def __init__(self, settings: Settings) -> None:
        self.batch = settings.batch
        self.params = list(make_model(settings).parameters())
        self.adam = make_adam(self.params)
        self.task = 0

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of a batch."""
        return F.cross_entropy(forward(self.params, x), y)

    def gradients(self, x: Tensor, y: Tensor) -> Tensors:
        """Its gradients."""
        return torch.autograd.grad(self.loss(x, y), self.params)

    def update(self, gradients: Tensors) -> None:
        """One step of Adam."""
        for parameter, gradient in zip(self.params, gradients, strict=True):
            parameter.grad = gradient
        self.adam.step()

    def step(self, x: Tensor, y: Tensor) -> None:
        """Train on a batch."""
        self.update(self.gradients(x, y))

    def end_task(self, data: Task) -> None:
        """Work at a task's end, before `task` is counted up."""

    def predict(self, x: Tensor, task: int) -> Tensor:
        """The logits, as `task` is predicted with."""
        return forward(self.params, x)

    def fit(self, stream: Sequence[Task]) -> Predict:
        """Run through the stream once."""
        for data in stream:
            for rows in torch.randperm(len(data.y)).split(self.batch):
                self.step(data.x.index_select(0, rows), data.y.index_select(0, rows))
            with torch.no_grad():
                self.end_task(data)
            self.task += 1
        return self.predict


class Ewc(Naive):
    """Elastic weight consolidation: 1/2 lambda sum F (theta - theta*)^2."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.fisher = zeros(self.params)  # lambda sum F
        self.pull = zeros(self.params)  # lambda sum F theta*

    def gradients(self, x: Tensor, y: Tensor) -> Tensors:
        """The loss's gradients and the quadratic's."""
        gradients = super().gradients(x, y)
        if self.task:
            with torch.no_grad():
                torch._foreach_addcmul_(gradients, self.fisher, self.params)
                torch._foreach_sub_(gradients, self.pull)
        return gradients

    def end_task(self, data: Task) -> None:
        """Add this task's Fisher and where it was taken."""
        fisher = fisher_diagonal(self.params, data)
        torch._foreach_mul_(fisher, EWC_STRENGTH)
        torch._foreach_add_(self.fisher, fisher)
        torch._foreach_addcmul_(self.pull, fisher, self.params)


def fisher_diagonal(params: Tensors, data: Task) -> list[Tensor]:
    """Mean over examples of the squared per-example gradient, with the data's labels.

    A dense layer's per-example gradient is an outer product, error times input, so the sum of
    its squares over examples is one matrix product of squared errors and squared inputs.
    """
    w1, b1, w2, b2, w3, b3 = params
    sums = zeros(params)
    for x, y in zip(data.x.split(FISHER_CHUNK), data.y.split(FISHER_CHUNK), strict=True):
        h1 = F.linear(x, w1, b1).relu_()
        h2 = F.linear(h1, w2, b2).relu_()
        error3 = F.linear(h2, w3, b3).softmax(1) - F.one_hot(y, CLASSES)
        error2 = (error3 @ w3).mul_(h2 > 0)
        error1 = (error2 @ w2).mul_(h1 > 0)
        for layer, (inputs, error) in enumerate([(x, error1), (h1, error2), (h2, error3)]):
            squares = error.square_()
            sums[2 * layer].addmm_(squares.T, inputs.square())
            sums[2 * layer + 1].add_(squares.sum(0))
    torch._foreach_div_(sums, len(data.y))
    return sums


class Reservoir:
    """A uniform sample of the stream, in fixed tensors, filled a batch at a time."""

    def __init__(self, capacity: int, *, logits: bool = False) -> None:
        self.columns = [torch.zeros(capacity, INPUTS), torch.zeros(capacity, dtype=torch.long)]
        if logits:
            self.columns.append(torch.zeros(capacity, CLASSES))
        self.capacity = capacity
        self.seen = 0

    def insert(self, *rows: Tensor) -> None:
        """Offer rows: column by column, as the memory has them."""
        count = len(rows[0])
        position = torch.arange(self.seen, self.seen + count)
        self.seen += count
        slot = (torch.rand(count, dtype=torch.float64) * (position + 1)).long()
        slot = torch.where(position < self.capacity, position, slot)
        taken = (slot < self.capacity).nonzero().squeeze(1)
        if len(taken):
            slot = slot[taken]
            for column, values in zip(self.columns, rows, strict=True):
                column.index_copy_(0, slot, values.index_select(0, taken))

    def sample(self, count: int) -> list[Tensor]:
        """Draw rows with replacement."""
        rows = torch.randint(min(self.seen, self.capacity), (count,))
        return [column.index_select(0, rows) for column in self.columns]


class Er(Naive):
    """Experience replay: the batch and as many remembered rows in one loss."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.memory = Reservoir(MEMORY)

    def step(self, x: Tensor, y: Tensor) -> None:
        """Train on the batch and remembered rows, then remember the batch."""
        if self.memory.seen:
            old_x, old_y = self.memory.sample(self.batch)
            self.update(self.gradients(torch.cat([x, old_x]), torch.cat([y, old_y])))
        else:
            self.update(self.gradients(x, y))
        self.memory.insert(x, y)


class DerPlusPlus(Naive):
    """Dark experience replay ++: remembered logits and labels."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.memory = Reservoir(MEMORY, logits=True)

    def step(self, x: Tensor, y: Tensor) -> None:
        """Train on the batch and remembered rows, then remember the batch."""
        if self.memory.seen:
            old_x, old_y, old_logits = self.memory.sample(self.batch)
            logits, replayed = forward(self.params, torch.cat([x, old_x])).split(self.batch)
            loss = F.cross_entropy(logits, y)
            loss = loss + DER_ALPHA * F.mse_loss(replayed, old_logits)
            loss = loss + DER_BETA * F.cross_entropy(replayed, old_y)
        else:
            logits = forward(self.params, x)
            loss = F.cross_entropy(logits, y)
        self.update(torch.autograd.grad(loss, self.params))
        self.memory.insert(x, y, logits.detach())


class Lwf(Naive):
    """Learning without forgetting: distillation from the model of the last task's end."""

    teacher: Tensors = ()

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy and distillation."""
        logits = forward(self.params, x)
        loss = F.cross_entropy(logits, y)
        if self.task:
            old = self.task * CLASSES_A_TASK
            with torch.no_grad():
                target = (forward(self.teacher, x)[:, :old] / LWF_TEMPERATURE).softmax(1)
            student = (logits[:, :old] / LWF_TEMPERATURE).log_softmax(1)
            loss = loss + LWF_STRENGTH * F.kl_div(student, target, reduction="batchmean")
        return loss

    def end_task(self, data: Task) -> None:
        """Keep a copy of the model."""
        self.teacher = copies(self.params)


class Agem(Naive):
    """A-GEM: no gradient against the mean gradient of remembered rows."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.x = torch.zeros(MEMORY, INPUTS)
        self.y = torch.zeros(MEMORY, dtype=torch.long)
        self.filled = 0

    def gradients(self, x: Tensor, y: Tensor) -> Tensors:
        """Project where the two gradients disagree."""
        gradients = super().gradients(x, y)
        if not self.task:
            return gradients
        rows = torch.randint(self.filled, (self.batch,))
        reference = super().gradients(self.x.index_select(0, rows), self.y.index_select(0, rows))
        with torch.no_grad():
            along = inner(gradients, reference)
            if along < 0:
                scale = -(along / inner(reference, reference)).item()
                torch._foreach_add_(gradients, reference, alpha=scale)
        return gradients

    def end_task(self, data: Task) -> None:
        """Remember an equal share of rows."""
        rows = torch.randperm(len(data.y))[: MEMORY // TASKS]
        here = slice(self.filled, self.filled + len(rows))
        self.x[here], self.y[here] = data.x[rows], data.y[rows]
        self.filled += len(rows)


def inner(a: Tensors, b: Tensors) -> Tensor:
    """The inner product of two lists of tensors."""
    return sum(torch.dot(left.view(-1), right.view(-1)) for left, right in zip(a, b, strict=True))


class Si(Naive):
    """Synaptic intelligence: c sum omega (theta - theta*)^2."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.path = zeros(self.params)
        self.strength = zeros(self.params)  # 2 c omega
        self.pull = zeros(self.params)  # 2 c omega theta*
        self.before = zeros(self.params)
        self.anchor = copies(self.params)

    def step(self, x: Tensor, y: Tensor) -> None:
        """Train on a batch and integrate along the path."""
        of_task = gradients = self.gradients(x, y)
        with torch.no_grad():
            if self.task:
                gradients = torch._foreach_addcmul(of_task, self.strength, self.params)
                torch._foreach_sub_(gradients, self.pull)
            torch._foreach_copy_(self.before, self.params)
            self.update(gradients)
            torch._foreach_sub_(self.before, self.params)
            torch._foreach_addcmul_(self.path, of_task, self.before)

    def end_task(self, data: Task) -> None:
        """Turn the path integral into strengths."""
        everything = zip(self.params, self.anchor, self.path, self.strength, self.pull, strict=True)
        for param, anchor, path, strength, pull in everything:
            moved = (param - anchor).square_().add_(SI_DAMPING)
            strength.add_(path.div_(moved).clamp_min_(0), alpha=2 * SI_C)
            pull.copy_(strength * param)
            anchor.copy_(param)
            path.zero_()


class PackNet(Naive):
    """PackNet: each task keeps half of each layer's free weights for ever."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.weights, self.biases = self.params[::2], self.params[1::2]
        self.owner = [torch.full_like(w, TASKS, dtype=torch.uint8) for w in self.weights]
        self.free: list[Tensor] = []

    def gradients(self, x: Tensor, y: Tensor) -> Tensors:
        """Frozen weights get none."""
        if not self.task:
            return super().gradients(x, y)
        gradients = torch.autograd.grad(self.loss(x, y), self.weights)
        torch._foreach_mul_(gradients, self.free)
        return gradients

    def update(self, gradients: Tensors) -> None:
        """One step of Adam on what is not frozen."""
        trained = self.weights if self.task else self.params
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient
        self.adam.step()

    def end_task(self, data: Task) -> None:
        """Keep the larger half of each layer's free weights, free the rest."""
        self.free = []
        for weight, owner in zip(self.weights, self.owner, strict=True):
            free = owner == TASKS
            size = weight.abs()
            candidates = size[free]
            rank = int(len(candidates) * PACKNET_PRUNE)
            kept = free & (size > candidates.kthvalue(rank).values) if rank else free.clone()
            owner[kept] = self.task
            free &= ~kept
            weight.masked_fill_(free, 0)
            self.free.append(free.float())
        for bias in self.biases:
            bias.requires_grad_(False)
        self.adam = make_adam(self.weights)

    def predict(self, x: Tensor, task: int) -> Tensor:
        """The logits of the task's own subnetwork."""
        params = list(self.params)
        params[::2] = [w * (o <= task) for w, o in zip(self.weights, self.owner, strict=True)]
        return forward(params, x)


METHODS: dict[str, type[Naive]] = {
    "naive": Naive,
    "ewc": Ewc,
    "er": Er,
    "lwf": Lwf,
    "agem": Agem,
    "si": Si,
    "der++": DerPlusPlus,
    "packnet": PackNet,
}


def train(settings: Settings, stream: Sequence[Task]) -> Train:
    """Everything but the training itself."""
    learner = METHODS[settings.method](settings)
    return lambda: learner.fit(stream)


def insert(settings: Settings, data: Task) -> Callable[[], Reservoir]:
    """A reservoir that is offered the rows a batch at a time."""
    memory = Reservoir(MEMORY)
    batches = list(zip(data.x.split(settings.batch), data.y.split(settings.batch), strict=True))

    def run() -> Reservoir:
        for x, y in batches:
            memory.insert(x, y)
        return memory

    return run


if __name__ == "__main__":
    main("torch", __doc__.splitlines()[0], list(METHODS), train, insert)
