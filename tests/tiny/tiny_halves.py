"""Two tasks of four features, each of which asks for the sign of one, and where training starts."""

from __future__ import annotations

import jax
import numpy as np

from jcl import models

TASKS = [{"x": x, "y": (x[:, i] > 0).astype(np.int32)}
         for i, x in enumerate(
             np.random.default_rng(0).normal(size=(2, 40, 4)).astype(np.float32))]  # fmt: skip
PARAMS = models.mlp.init(jax.random.key(0), [4, 6, 2])
KEY = jax.random.key(1)
