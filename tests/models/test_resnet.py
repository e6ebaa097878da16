"""The residual network, against the one that GEM, Mammoth and Avalanche train, in torch."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import jcl
from jcl import losses, methods, trees
from jcl.models import flax
from jcl.models.resnet import ResNet

pytestmark = pytest.mark.quick


class TorchBlock(nn.Module):
    """As in Avalanche's slim_resnet18.py, which has it from GEM's code."""

    def __init__(self, before, planes, stride):
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

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class TorchResNet(nn.Module):
    """The same, for images of any size and number of channels."""

    def __init__(self, channels, classes, width):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        sizes = [width, width, 2 * width, 4 * width, 8 * width]
        self.layers = nn.Sequential(
            *[
                nn.Sequential(TorchBlock(a, b, 1 if a == b else 2), TorchBlock(b, b, 1))
                for a, b in pairwise(sizes)
            ]
        )
        self.linear = nn.Linear(8 * width, classes)

    def forward(self, x):
        return self.linear(self.layers(F.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


ROWS, SIZE, CHANNELS, CLASSES, WIDTH = 6, 12, 3, 4, 2


def layers(theirs):
    """Each layer of torch's, by the path of ours."""
    found = {"Conv_0": theirs.conv1, "BatchNorm_0": theirs.bn1, "head": theirs.linear}
    for i, block in enumerate(block for group in theirs.layers for block in group):
        names = {"Conv_0": block.conv1, "Conv_1": block.conv2}
        names |= {"BatchNorm_0": block.bn1, "BatchNorm_1": block.bn2}
        names |= dict(zip(("shortcut", "shortcut_norm"), block.shortcut, strict=False))
        found |= {f"Block_{i}/{name}": layer for name, layer in names.items()}
    return found


def as_ours(theirs, of):
    """A tree like ours of what `of` takes from each of torch's tensors."""
    tree = {}
    for path, layer in layers(theirs).items():
        value = of(layer.weight).detach().numpy()
        if value.ndim > 1:
            named = {"kernel": value.transpose(*range(2, value.ndim), 1, 0)}
        else:
            named = {"scale": value}
        if layer.bias is not None:
            named["bias"] = of(layer.bias).detach().numpy()
        tree |= {f"{path}/{name}": np.array(x) for name, x in named.items()}
    return nested(tree)


def nested(flat):
    """A tree of leaves by their paths."""
    tree = {}
    for path, x in flat.items():
        *above, last = path.split("/")
        at = tree
        for name in above:
            at = at.setdefault(name, {})
        at[last] = x
    return tree


@pytest.fixture(scope="module")
def both():
    """Torch's network, ours with its weights, and a batch."""
    torch.manual_seed(0)
    theirs = TorchResNet(CHANNELS, CLASSES, WIDTH)
    with torch.no_grad():
        for layer in layers(theirs).values():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(0, 0.1)
    rng = np.random.default_rng(0)
    batch = {
        "x": rng.standard_normal((ROWS, SIZE, SIZE, CHANNELS), np.float32),
        "y": rng.integers(CLASSES, size=ROWS).astype(np.int32),
    }
    ours = flax.linen(ResNet(CLASSES, WIDTH), batch, jax.random.key(0), head="head")
    assert jax.tree.map(jnp.shape, ours.params) == jax.tree.map(
        np.shape, as_ours(theirs, lambda x: x)
    )
    return theirs, ours, batch


def images(batch):
    return torch.from_numpy(batch["x"].transpose(0, 3, 1, 2).copy())


def test_a_training_step_is_torch_s(both):
    """Outputs, gradients and running statistics, and then the outputs of evaluation."""
    theirs, ours, batch = both
    params = as_ours(theirs, lambda x: x.clone())
    program = jcl.make(methods.naive(), ours.apply, losses.cross_entropy(), optax.sgd(0.5))
    state = program.init(params, batch, jax.random.key(0), ours.collections)
    after, aux = jax.jit(program.step)(state, batch)

    theirs.train()
    loss = F.cross_entropy(theirs(images(batch)), torch.from_numpy(batch["y"]).long())
    np.testing.assert_allclose(aux["loss"], loss.item(), rtol=1e-5)
    loss.backward()
    slopes = jax.tree.map(lambda a, b: (a - b) / 0.5, params, after.params)
    jax.tree.map(
        lambda found, wanted: np.testing.assert_allclose(found, wanted, atol=2e-5, rtol=2e-3),
        slopes, as_ours(theirs, lambda x: x.grad),
    )  # fmt: skip
    kept = after.collections["batch_stats"]
    for path, layer in layers(theirs).items():
        if not isinstance(layer, nn.BatchNorm2d):
            continue
        found = kept
        for name in path.split("/"):
            found = found[name]
        np.testing.assert_allclose(found["mean"], layer.running_mean, atol=1e-5)
        count = counted(path)  # torch averages variances over n - 1, flax over n
        wanted = 0.9 + (layer.running_var.numpy() - 0.9) * (count - 1) / count
        np.testing.assert_allclose(found["var"], wanted, rtol=1e-4)
        layer.running_var.copy_(torch.from_numpy(np.array(found["var"])))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter -= 0.5 * parameter.grad
        wanted = theirs.eval()(images(batch))
    np.testing.assert_allclose(program.predict(after, batch), wanted, rtol=1e-3, atol=1e-4)


def counted(path):
    """Over how many values of a channel a batch norm goes."""
    block = path.removeprefix("Block_").split("/")[0]
    halved = int(block) // 2 if block.isdigit() else 0
    side = SIZE
    for _ in range(halved):
        side = -(-side // 2)
    return ROWS * side**2


def test_its_size_is_that_of_gem_s_network():
    """Three channels, width 20 and 100 outputs."""
    batch = {"x": jnp.zeros((1, 32, 32, 3))}
    shapes = jax.eval_shape(
        lambda key: ResNet(100).init(key, batch["x"], train=False), jax.random.key(0)
    )
    with torch.device("meta"):
        wanted = sum(p.numel() for p in TorchResNet(3, 100, 20).parameters())
    assert trees.size(shapes["params"]) == wanted == 1_109_240
