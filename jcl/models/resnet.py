"""A residual network of CIFAR's form for small images: a `flax.linen` module.

A convolution of 3 × 3 is followed by four groups of two basic blocks, of width w, 2w, 4w and 8w,
each group but the first halving the image; then the mean over places, and a linear head: 18 layers.
Width 64 is ResNet-18 with the stem that He et al. (arXiv 1512.03385, section 4.2) use for CIFAR;
width 20 is the reduced ResNet-18 of GEM (arXiv 1706.08840), which Mammoth and Avalanche
(`SlimResNet18`) took over. It needs `pip install 'jcl-kit[flax]'`; `jcl.models.flax.linen` makes a
model of it, with the head's path `head`.
"""

from __future__ import annotations

from functools import partial

import jax
from flax import linen as nn

from jcl.models.convolution import convolve

Norm = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)  # torch counts momentum as 1 - 0.9


def _convolution(features: int, window: int, stride: int = 1, name: str | None = None) -> nn.Conv:
    """A convolution without bias, padded so that stride 1 keeps the image's size."""
    return nn.Conv(
        features, (window, window), stride, padding=window // 2, use_bias=False,
        kernel_init=nn.initializers.he_normal(), conv_general_dilated=convolve, name=name,
    )  # fmt: skip


class Block(nn.Module):
    """A basic block: two convolutions of 3 × 3 beside a shortcut."""

    features: int
    """Channels of the outputs."""
    stride: int
    """2 halves the image."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, in] to [B, H / stride, W / stride, features]."""
        norm = partial(Norm, use_running_average=not train)
        y = nn.relu(norm()(_convolution(self.features, 3, self.stride)(x)))
        y = norm()(_convolution(self.features, 3)(y))
        if x.shape != y.shape:
            x = _convolution(self.features, 1, self.stride, "shortcut")(x)
            x = norm(name="shortcut_norm")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network of CIFAR's form; its averages are the collection `batch_stats`."""

    classes: int
    """How many outputs."""
    width: int = 20
    """Channels of the first group."""
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    """How many blocks each group has; each has twice the channels of the one before."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Images [B, H, W, channels] to logits [B, classes].

        Args:
          x: the images.
          train: whether batch norms take the batch's own statistics, and average them.
        """
        norm = partial(Norm, use_running_average=not train)
        x = nn.relu(norm()(_convolution(self.width, 3)(x)))
        for group, count in enumerate(self.blocks):
            for i in range(count):
                stride = 2 if group and not i else 1
                x = Block(self.width * 2**group, stride)(x, train)
        return nn.Dense(self.classes, name="head")(x.mean(axis=(1, 2)))
