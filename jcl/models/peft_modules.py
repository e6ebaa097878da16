"""The modules that PEFT names tensors after, and which of our dense layers each one holds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jcl.mechanisms import adapters
from jcl.models.layout import Source
from jcl.models.pretrained import FAMILIES, Model


class Module(NamedTuple):
    """A module of transformers that may have an adapter."""

    name: str
    """Its name, with `{layer}`."""
    parts: dict[str, Source]
    """The paths of our dense layers in it, and where each lies in the stored weight."""
    layers: int
    turned: bool
    """Whether the weight is stored [in, out], as GPT-2's are."""

    def split(self, stored: np.ndarray, path: str) -> np.ndarray:
        """A view of one part of `stored` [out, n], as [n, out of the part]."""
        view = self.parts[path].view(stored.T if self.turned else stored)
        return view.reshape(stored.shape[1], -1) if view.ndim > 2 else view

    def fill(self, stored: np.ndarray, path: str, rows: slice, value: np.ndarray) -> None:
        """Writes [n, out of the part] into `stored` [out, all n]."""
        view = self.parts[path].view(stored.T if self.turned else stored)[rows]
        view[...] = value.reshape(view.shape)

    @property
    def short(self) -> str:
        """The name without layer, as in peft's options."""
        return self.name.partition("{layer}.")[2]

    @property
    def outputs(self) -> int:
        """How many outputs the stored weight has."""
        return next(iter(self.parts.values())).shape[1 if self.turned else 0]


def modules_of(model: Model) -> list[Module]:
    """The modules of a model's family that hold our dense layers, routers left out."""
    kind = model.given["model_type"]
    found: dict[str, dict[str, Source]] = {}
    for leaf, source in FAMILIES[kind].layout(model.config).items():
        path, _, last = leaf.rpartition("/")
        if last == "kernel" and "{layer}" in source.name and "{expert}" not in source.name:
            found.setdefault(source.name.removesuffix(".weight"), {})[path] = source

    def layers(parts: dict[str, Source]) -> int:
        return adapters.shape(adapters.subtree(model.params, next(iter(parts)))["kernel"])[0]

    found = {name: parts for name, parts in found.items() if "blocks/router" not in parts}
    return [Module(n, parts, layers(parts), kind == "gpt2") for n, parts in found.items()]
