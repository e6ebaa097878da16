"""Noise for the models in torch that ours are compared with."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")


def perturb(model: Any) -> Any:
    """The model with noise on every parameter, for norms and biases start where they do nothing."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model
