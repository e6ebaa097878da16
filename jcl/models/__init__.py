"""Models as `apply(params, batch, tap) -> outputs` over nested dicts of arrays."""

from jcl.models import decoder, encoder, flax, mlp, multimodal, t5, vision
from jcl.models.generation import generate, stop_ids, write
from jcl.models.gguf_write import save_gguf
from jcl.models.layers import dense, init_dense
from jcl.models.peft import Adapter, load_adapter, save_adapter
from jcl.models.pretrained import Model, classifier, load, of, save, shapes
from jcl.models.quantize import quantize

__all__ = [
    "Adapter",
    "Model",
    "classifier",
    "decoder",
    "dense",
    "encoder",
    "flax",
    "generate",
    "init_dense",
    "load",
    "load_adapter",
    "mlp",
    "multimodal",
    "of",
    "quantize",
    "save",
    "save_adapter",
    "save_gguf",
    "shapes",
    "stop_ids",
    "t5",
    "vision",
    "write",
]
