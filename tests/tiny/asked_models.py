"""What models in torch are asked, and what they say, which ours must say too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")


def batch_of(kind: str, config: Any) -> dict[str, np.ndarray]:
    """Random rows for a model of a family, with fewer ids than its vocabulary has."""
    draw = np.random.default_rng(0)
    if "vision" in kind:
        side, channels = config.image_size, config.num_channels
        return {"image": draw.normal(size=(1, side, side, channels)).astype(np.float32)}
    ids = draw.integers(4, 60, (2, 21))
    return {"inputs": ids, "tokens": ids[:, :9]} if kind == "t5" else {"tokens": ids}


def answer(kind: str, model: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    """The logits of a model in torch, or what comes last where it has none.

    That of CLIP's tower is without the class's place, which ours leaves out.
    """
    given = {k: torch.tensor(v) for k, v in batch.items()}
    with torch.no_grad():
        if kind == "t5":
            out = model(input_ids=given["inputs"], decoder_input_ids=given["tokens"])
        elif "vision" in kind:
            out = model(given["image"].permute(0, 3, 1, 2))
        else:
            out = model(given["tokens"])
    last = np.asarray(out.logits if "logits" in out else out.last_hidden_state)
    return last[:, 1:] if kind.startswith("clip") else last
