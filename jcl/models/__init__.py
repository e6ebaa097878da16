"""Models as `apply(params, batch, tap) -> outputs` over nested dicts of arrays."""

from jcl.models import decoder, mlp
from jcl.models.folder import Model, load, of, save
from jcl.models.generation import generate, write
from jcl.models.layers import dense, init_dense

__all__ = [
    "Model",
    "decoder",
    "dense",
    "generate",
    "init_dense",
    "load",
    "mlp",
    "of",
    "save",
    "write",
]
