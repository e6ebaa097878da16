"""Loads pretrained models from Hugging Face folders into parameter trees, and saves them again.

Weights go leaf by leaf from the files into (sharded) device arrays; the model is never held twice.
Code in a model's folder is never run.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jcl import trees
from jcl.method import Apply, Params, check
from jcl.models import decoder, encoder, gguf
from jcl.models.decoder_families import DECODERS
from jcl.models.encoder_families import ENCODERS
from jcl.models.layout import Family, Layout, Source
from jcl.models.tensors import Tensors, open_folder, write_folder
from jcl.models.vision_families import INSIDE, TOWERS
from jcl.parallel import mesh as meshes
from jcl.records import record

FAMILIES = DECODERS | ENCODERS | TOWERS
"""The families of models that can be loaded and saved, by `model_type`."""


@record
class Model(NamedTuple):
    """A loaded model: configuration, parameters, tokenizer and `apply`."""

    config: Any
    """A `decoder.Config`, `encoder.Config`, `t5.Config` or `vision.Config`."""
    params: Params
    """A nested dict of arrays."""
    tokenizer: Any
    """A transformers tokenizer, or None."""
    apply: Apply
    """The module's `apply_fn(config)`, such as `decoder`'s; make your own for other options."""
    given: dict[str, Any]
    """The contents of the folder's `config.json`, which `save` writes again."""
    collections: Any = ()
    """What it keeps beside its parameters, by name, as `jcl.fit(..., collections=...)` takes it."""

    def _facts(self) -> dict[str, Any]:
        leaves = jax.tree.leaves(self.params)
        return {
            "family": self.given.get("model_type"),
            "parameters": f"{sum(x.size for x in leaves) / 1e6:,.1f} million",
            "dtype": " ".join(sorted({str(x.dtype) for x in leaves})),
            "layers": getattr(self.config, "layers", None),
            "width": getattr(self.config, "width", None),
            "vocabulary": getattr(self.config, "vocabulary", None),
            "tokenizer": self.tokenizer and type(self.tokenizer).__name__,
        }


def load(
    source: str | Path,
    *,
    dtype: Any = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Model:
    """Loads a model from a folder, a `.gguf` file or a folder with one, or by a Hugging Face id.

    Of CLIP and SigLIP it loads the vision tower alone, which is then also saved alone.

    Args:
      source: a folder with `config.json` and safetensors, sharded or not; or an id such as
        `HuggingFaceTB/SmolLM2-135M`, which needs the internet once.
      dtype: the parameters' dtype; None keeps each tensor's own, float32 for quantised ones.
      mesh: the mesh over which `mesh.RULES` lay out the parameters; None takes the mesh set by
        `jax.set_mesh`, or else the default device.

    Raises:
      ValueError: if the architecture is unknown, a tensor is missing or has another shape than
        the configuration says, or a file is damaged.

    Source: the layouts as written by transformers 5; `config.json` of 4.x is read as well.
    """
    folder = _found(source)
    quantised = gguf.find(folder)
    if quantised is not None:
        given, tensors = gguf.open_file(quantised)
    else:
        given, tensors = _tower(_read_config(folder)), open_folder(folder)
    family = _family(given, folder)
    theirs = _configuration(given)
    config = family.heads(family.config(theirs), theirs, tensors.names)
    over = jax.sharding.get_mesh() if mesh is None else mesh
    params = _read(config, family, tensors, dtype, over)
    return Model(config, params, _tokenizer(folder, quantised), family.apply_fn(config), given)


def shapes(source: str | Path) -> tuple[Any, Params]:
    """The configuration and the shapes of the parameters that `load` would read, without weights.

    Args:
      source: as for `load`; in a folder only `config.json` is needed.

    Raises:
      ValueError: if the architecture is unknown.
    """
    folder = _found(source)
    quantised = gguf.find(folder)
    given = _tower(_read_config(folder)) if quantised is None else gguf.open_file(quantised)[0]
    family = _family(given, folder)
    config = family.config(_configuration(given))
    return config, jax.eval_shape(partial(family.init, config=config), jax.random.key(0))


def _found(source: str | Path) -> Path:
    path = Path(source)
    if path.exists():
        return path
    if str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise ValueError(
            f"there is no folder {str(source)!r}; a model is a folder, a .gguf file or a Hugging "
            "Face id such as 'HuggingFaceTB/SmolLM2-135M'"
        )
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "tokenizer*", "*.model", "merges.txt", "vocab.*"]
    try:  # never pickles, never code
        return Path(snapshot_download(str(source), allow_patterns=wanted))
    except Exception as error:
        raise ValueError(
            f"{str(source)!r} is no folder here, and can't be fetched from Hugging Face: {error}"
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.exists():
        raise ValueError(f"{folder} has no config.json, which says what the model is")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error


def _tower(given: dict[str, Any]) -> dict[str, Any]:
    """The vision tower's configuration, if the model has a text tower beside it."""
    kind = given.get("model_type")
    if kind not in INSIDE:
        return given
    inside = {k: v for k, v in given.get("vision_config", {}).items() if k != "architectures"}
    return {**inside, "model_type": INSIDE[kind]}


def _family(given: dict[str, Any], folder: Path) -> Family:
    kind = given.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(
            f"model_type is {kind!r} in {folder}, but must be one of {sorted(FAMILIES)}"
        )
    return FAMILIES[kind]


def _configuration(given: dict[str, Any]) -> Any:
    """A transformers configuration, which brings the 4.x form to that of 5.x."""
    from transformers import AutoConfig

    values = {k: v for k, v in given.items() if k not in ("model_type", "auto_map")}
    return AutoConfig.for_model(given["model_type"], **values)


def _tokenizer(folder: Path, quantised: Path | None) -> Any:
    from transformers import AutoTokenizer

    if quantised is not None:
        return gguf.tokenizer(quantised)
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt")
    if not any((folder / name).exists() for name in names):
        return None
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _tensor_name(tensors: Tensors, family: Family, name: str) -> str:
    """A tensor's name in these files, which may lack the body's prefix or have BERT's old names."""
    short = name.removeprefix(family.prefix)
    for full in (name, short):
        old = full.replace("LayerNorm.weight", "LayerNorm.gamma")
        for candidate in (full, old.replace("LayerNorm.bias", "LayerNorm.beta")):
            if candidate in tensors.names:
                return candidate
    raise ValueError(f"the weights have no tensor {name!r}, which the configuration calls for")


def _stack_axes(source: Source) -> int:
    """How many leading axes of the leaf are indices in the tensor's name: layers, experts."""
    return ("{layer}" in source.name) + ("{expert}" in source.name)


def _name(source: Source, index: tuple[int, ...]) -> str:
    return source.name.format(**dict(zip(("layer", "expert"), index, strict=False)))


def _aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array, aligned so that JAX's CPU backend can take it without a copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _read(
    config: Any,
    family: Family,
    tensors: Tensors,
    dtype: Any,
    mesh: jax.sharding.Mesh,
) -> Params:
    wanted = jax.eval_shape(partial(family.init, config=config), jax.random.key(0))
    layout = family.layout(config)

    def stored(source: Source, index: tuple[int, ...]) -> np.ndarray:
        name = _tensor_name(tensors, family, _name(source, index))
        found = tensors.read(name)
        if found.shape != source.shape:
            raise ValueError(
                f"tensor {name!r} in {tensors.file(name)} has shape {found.shape}, but must have "
                f"{source.shape} by the configuration"
            )
        return found

    def leaf(path: Any, shape: jax.ShapeDtypeStruct, sharding: Any = None) -> jax.Array:
        source = layout[trees.path_name(path)]
        depth = _stack_axes(source)
        # the first layer's dtype is taken for all
        kept = np.dtype(dtype or stored(source, (0,) * depth).dtype)

        def part(index: Any) -> np.ndarray:
            spans = [range(n)[i] for i, n in zip(index, shape.shape, strict=True)]
            out = _aligned([len(s) for s in spans], kept)
            for place in np.ndindex(*out.shape[:depth]):
                at = tuple(spans[axis][i] for axis, i in enumerate(place))
                view = source.view(stored(source, at)).reshape(shape.shape[depth:])
                out[place] = view[tuple(index[depth:])]
            return out

        if sharding is None:  # on the default device, but free to go where a program wants it
            return jax.device_put(part([slice(None)] * len(shape.shape)))
        return jax.make_array_from_callback(shape.shape, sharding, part)

    if mesh.empty:
        return jax.tree_util.tree_map_with_path(leaf, wanted)
    return jax.tree_util.tree_map_with_path(
        leaf, wanted, meshes.of_params(wanted, meshes.Layout(mesh))
    )


def save(
    model: Model, params: Params, folder: str | Path, *, dtype: Any = None, shard_gb: float = 2.0
) -> Path:
    """Writes a folder that transformers loads, and that gives the same logits.

    Args:
      model: as loaded, or made with `of`; its configuration and tokenizer are written too.
      params: the parameters to write, shaped like `model.params`; adapters must be merged first.
      folder: a new or empty folder.
      dtype: the dtype in which to store them; None keeps each leaf's own.
      shard_gb: how large a file is at most, in 10⁹ bytes.

    Raises:
      ValueError: if the folder holds something, or the tree isn't the model's.
    """
    out = Path(folder)
    empty = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    check(empty, "folder", str(folder), "new or empty")
    layout = FAMILIES[model.given["model_type"]].layout(model.config)
    leaves = {trees.path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(params)}
    for path in sorted(leaves.keys() ^ layout.keys()):
        kind = "isn't the model's; merge adapters first" if path in leaves else "is missing"
        raise ValueError(f"parameter {path!r} {kind}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as made:
        work = Path(made) / "model"
        work.mkdir()
        tensors = _tensors(layout, leaves, dtype)
        write_folder(work, tensors, int(shard_gb * 1e9))
        stored = np.dtype(dtype or leaves[next(iter(layout))].dtype).name
        given = {k: v for k, v in model.given.items() if k not in ("torch_dtype", "auto_map")}
        (work / "config.json").write_text(json.dumps({**given, "dtype": stored}, indent=2))
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(work)
        if out.exists():
            out.rmdir()
        shutil.move(str(work), out)
    return out


def _tensors(
    layout: Layout, leaves: dict[str, Any], dtype: Any
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors to store; those that hold several leaves are filled through views."""
    fused: dict[str, list[str]] = {}
    for path, source in layout.items():
        fused.setdefault(source.name, []).append(path)
    for paths in fused.values():
        first = layout[paths[0]]
        for index in np.ndindex(leaves[paths[0]].shape[: _stack_axes(first)]):
            kept = np.dtype(dtype or leaves[paths[0]].dtype)
            tensor = np.empty(first.shape, kept)
            for path in paths:
                view = layout[path].view(tensor)
                view[...] = np.asarray(leaves[path][index]).astype(kept).reshape(view.shape)
            yield _name(first, index), tensor


def of(config: decoder.Config, params: Params, tokenizer: Any = None) -> Model:
    """Makes a `Model` of a decoder trained here from scratch, so that `save` writes it as a Llama.

    Raises:
      ValueError: if its configuration isn't a Llama's.
    """
    assert config.rope is not None and config.head_width is not None
    given = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "hidden_act": config.activation,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.eps,
        "tie_word_embeddings": config.tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope.theta},
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    read = DECODERS["llama"].config(_configuration(given))
    # a width of None means the whole head's width
    turned = config.rope if config.rope.width else replace(config.rope, width=config.head_width)
    assert read.rope is not None
    expected = replace(read, rope=replace(read.rope, original=turned.original))
    same = expected == replace(config, rope=turned)
    check(same, "config", config, "a Llama's, for it is saved as one")
    return Model(config, params, tokenizer, decoder.apply_fn(config), given)


def classifier(
    model: Model, classes: int, key: jax.Array, pooling: encoder.Pooling = "mean"
) -> Model:
    """An encoder with a new classifier of its rows in place of its other heads.

    `save` writes one that reads the `first` token as transformers' `...ForSequenceClassification`.
    Pooling by `mean` has no such class: `load` reads it again, transformers reads the encoder only.

    Args:
      model: an encoder, as loaded.
      classes: how many classes there are.
      key: the PRNG key of the classifier's weights.
      pooling: what the classifier reads; see `encoder.Config`.

    Raises:
      ValueError: if the model is no encoder, or there is no class.
    """
    old, kind = model.config, str(model.given["model_type"])
    check(classes >= 1, "classes", classes, "at least 1")
    if not isinstance(old, encoder.Config):
        raise ValueError(f"model_type is {kind!r}, but must be an encoder's, such as 'bert'")
    config = replace(
        old, classes=classes, pooling=pooling, masked=False, pooler=old.pooler or pooling == "first"
    )
    body = {k: v for k, v in model.params.items() if k not in ("masked", "classifier")}
    # the body comes last, so that a pooler that it has is kept
    params = {**encoder.heads(key, config, body["embed"]["table"].dtype), **body}
    names = [f"LABEL_{i}" for i in range(classes)]
    given = {
        **model.given,
        "architectures": [
            f"{kind.capitalize()}{'Model' if pooling == 'mean' else 'ForSequenceClassification'}"
        ],
        "classifier_pooling": pooling,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }
    return Model(config, params, model.tokenizer, encoder.apply_fn(config), given)
