"""Models as `apply(params, batch, tap) -> outputs` over nested dicts of arrays."""

from jcl.models import decoder, mlp
from jcl.models.folder import Model, load, of, save
from jcl.models.generation import generate, write
from jcl.models.layers import dense, init_dense
from jcl.models.peft import Adapter, load_adapter, save_adapter

__all__ = [
    "Adapter",
    "Model",
    "decoder",
    "dense",
    "generate",
    "init_dense",
    "load",
    "load_adapter",
    "mlp",
    "of",
    "save",
    "save_adapter",
    "write",
]
