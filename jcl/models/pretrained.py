"""Loads pretrained models from Hugging Face folders into parameter trees, and saves them again.

Weights go leaf by leaf from the files into (sharded) device arrays; the model is never held twice.
Code in a model's folder is never run.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcl import trees
from jcl.data.registry.archives import SOURCES
from jcl.data.registry.fetch import fetched
from jcl.mechanisms import growth
from jcl.method import Apply, Params, check
from jcl.models import attention, decoder, encoder, gguf, vocabulary
from jcl.models.decoder_families import DECODERS
from jcl.models.dequantize import dequantised
from jcl.models.encoder_families import ENCODERS
from jcl.models.layout import Family
from jcl.models.sequence_classifier import sequence_classifier
from jcl.models.settings import Settings, configuration
from jcl.models.tensors import check_free, open_folder, write_folder
from jcl.models.vision_families import INSIDE, TOWERS
from jcl.models.weights import read_params, refuse_unread, stored_tensors, untie, widened
from jcl.parallel import mesh as meshes
from jcl.records import record

FAMILIES = DECODERS | ENCODERS | TOWERS
HEAD = "classifier"
"""Where the parameters of a head of classes stand in a tree."""
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
    generation: dict[str, Any] | None = None
    """Those of its `generation_config.json`, likewise; None if there is none."""

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
    resize: bool = False,
) -> Model:
    """Loads a model from a folder, a `.gguf` file or a folder with one, or by a Hugging Face id.

    Of CLIP and SigLIP it loads the vision tower alone, which is then also saved alone. What would
    change the function and isn't read, a setting or a tensor, is refused.

    Args:
      source: a folder with `config.json` and safetensors, sharded or not; what `jcl fetch` got,
        such as `glassllm`; or an id such as `HuggingFaceTB/SmolLM2-135M`, which needs the internet
        once.
      dtype: the parameters' dtype, in which `apply` computes too. None keeps each tensor's own;
        but those of 16 bits or quantised are held in float32, so that small steps of training
        aren't lost, and `apply` computes in the 16 bits. Give bfloat16 for a base that stays
        frozen. On CPUs float32 is computed in where it would be float16.
      mesh: the mesh over which `mesh.RULES` lay out the parameters; None takes the mesh set by
        `jax.set_mesh`, or else the default device.
      resize: whether the vocabulary grows where the tokenizer has more ids, such as tokens that
        were added (see `growth.expand_vocabulary`); otherwise that is refused.

    Raises:
      ValueError: if the architecture is unknown, has a setting that we don't support, a tensor is
        missing, has no place or has another shape than the configuration says, the tokenizer has
        ids beyond the vocabulary, or a file is damaged.

    Source: the layouts as written by transformers 5; `config.json` of 4.x is read as well.
    """
    folder = _found(source)
    quantised = gguf.find(folder)
    if quantised is not None:
        given, tensors = gguf.open_file(quantised)
        family = _family(given, folder)
    else:
        given = _part(_read_config(folder))
        family = _family(given, folder)  # before the files, which may be there in another format
        said = given.pop("quantization_config", None)
        tensors = dequantised(open_folder(folder), said, folder)
    theirs = Settings(configuration(given, str(folder)), family.also)
    read = family.heads(family.config(theirs), theirs, tensors.names)
    theirs.refuse_unread(str(folder))
    config = untie(read, family, tensors)
    if config != read and family is not FAMILIES["t5"]:  # where the key says another thing
        given = {**given, "tie_word_embeddings": False}
    wanted = _shapes(config, family)
    refuse_unread(config, family, tensors, wanted)
    tokenizer = _tokenizer(folder, quantised)
    ids = getattr(config, "vocabulary", None)  # a tower of images has none
    # a GGUF file has as many rows as tokens, to which transformers adds those that it takes for
    # missing, such as <|endoftext|>
    if ids is not None and quantised is None and not resize:
        vocabulary.check_tokenizer(tokenizer, ids, str(folder))
    over = jax.sharding.get_mesh() if mesh is None else mesh
    params, stored = read_params(config, family, tensors, wanted, dtype, over)
    more = vocabulary.beyond(tokenizer, ids) if resize and ids is not None else {}
    if more:
        params, config = growth.expand_vocabulary(params, config, max(more.values()) + 1)[:2]
        given = {**given, "vocab_size": config.vocabulary}
        if not over.empty:
            params = jax.device_put(params, meshes.of_params(params, meshes.Layout(over)))
    asked, held = jnp.dtype(dtype or stored), jnp.dtype(dtype or widened(stored))
    if asked == jnp.float16 and attention.platform() == "cpu":  # which XLA can't compute there
        asked = jnp.dtype(jnp.float32)
    apply = family.apply_fn(config, compute=None if asked == held else asked)
    generation = _read_json(folder / "generation_config.json") if quantised is None else None
    return Model(config, params, tokenizer, apply, given, generation=generation)


def shapes(source: str | Path) -> tuple[Any, Params]:
    """The configuration and the shapes of the parameters that `load` would read, without weights.

    Args:
      source: as for `load`; in a folder only `config.json` is needed.

    Raises:
      ValueError: if the architecture is unknown.
    """
    folder = _found(source)
    quantised = gguf.find(folder)
    given = _part(_read_config(folder)) if quantised is None else gguf.open_file(quantised)[0]
    family = _family(given, folder)
    theirs = Settings(configuration(given, str(folder)), family.also)
    config = family.config(theirs)
    theirs.refuse_unread(str(folder))
    return config, _shapes(config, family)


def _shapes(config: Any, family: Family) -> Params:
    return jax.eval_shape(partial(family.init, config=config), jax.random.key(0))


def _found(source: str | Path) -> Path:
    path = Path(source)
    if path.exists():
        return path
    if str(source) in SOURCES:
        folder = fetched(str(source))
        if folder is None:
            raise ValueError(
                f"{str(source)!r} isn't on this machine yet; get it with jcl fetch {source}"
            )
        return folder
    if str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise ValueError(
            f"there is no folder {str(source)!r}; a model is a folder, a .gguf file, what jcl "
            "fetch got or a Hugging Face id such as 'HuggingFaceTB/SmolLM2-135M'"
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
    found = _read_json(folder / "config.json")
    if found is None:
        raise ValueError(f"{folder} has no config.json, which says what the model is")
    return found


def _read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no file."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, but must hold an object")
    return found


def _part(given: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the part that is read, if the model is of a text and a vision part."""
    kind = given.get("model_type")
    if not isinstance(kind, str) or kind not in INSIDE:
        return given
    key, family = INSIDE[kind]
    inside = given.get(key, {})
    check(isinstance(inside, dict), key, inside, "an object of settings")
    beside = ("dtype", "eos_token_id", "bos_token_id", "pad_token_id", "quantization_config")
    shared = {k: given[k] for k in beside if k in given}
    kept = {k: v for k, v in inside.items() if k != "architectures"}
    return {**shared, **kept, "model_type": family}


def _family(given: dict[str, Any], folder: Path) -> Family:
    kind = given.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(
            f"model_type is {kind!r} in {folder}, but must be one of {sorted(FAMILIES)}"
        )
    return FAMILIES[kind]


def _tokenizer(folder: Path, quantised: Path | None) -> Any:
    from transformers import AutoTokenizer

    if quantised is not None:
        return gguf.tokenizer(quantised)
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt")
    if not any((folder / name).exists() for name in names):
        return None
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def save(
    model: Model,
    params: Params,
    folder: str | Path,
    *,
    dtype: Any = None,
    shard_gb: float = 2.0,
    labels: Sequence[str] = (),
) -> Path:
    """Writes a folder that transformers loads, and that gives the same logits.

    Args:
      model: as loaded, or made with `of`; its configuration and tokenizer are written too.
      params: the parameters to write, shaped like `model.params`; adapters must be merged first. A
        decoder may have a `classifier` besides, a kernel alone, in whose place its own head is left
        out: it is written as transformers' `...ForSequenceClassification`.
      folder: a new or empty folder.
      dtype: the dtype in which to store them; None keeps each leaf's own.
      shard_gb: how large a file is at most, in 10⁹ bytes.
      labels: the names of a decoder's classes; () numbers them.

    Raises:
      ValueError: if the folder holds something, the model is of no family that transformers has,
        such as a Flax module, or the tree isn't the model's.
    """
    out = Path(folder)
    check_free(out)
    kind = model.given.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(
            f"model_type is {kind!r}, but must be one of {sorted(FAMILIES)} to be a folder that "
            "transformers loads; a model of your own is in its run's checkpoints"
        )
    layout = FAMILIES[kind].layout(model.config)
    leaves = {trees.path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(params)}
    given = {k: v for k, v in model.given.items() if k not in ("torch_dtype", "auto_map")}
    if kind in DECODERS and "classifier/kernel" in leaves:
        shapes, pad = {path: x.shape for path, x in leaves.items()}, given.get("pad_token_id")
        pad = getattr(model.tokenizer, "pad_token_id", None) if pad is None else pad
        layout, more = sequence_classifier(kind, layout, shapes, pad, labels)
        given |= more
        leaves = {path: x for path, x in leaves.items() if not path.startswith("head/")}
    for path in sorted(leaves.keys() ^ layout.keys()):
        kind = "isn't the model's; merge adapters first" if path in leaves else "is missing"
        raise ValueError(f"parameter {path!r} {kind}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as made:
        work = Path(made) / "model"
        work.mkdir()
        write_folder(work, stored_tensors(layout, leaves, dtype), int(shard_gb * 1e9))
        stored = np.dtype(dtype or leaves[next(iter(layout))].dtype).name
        (work / "config.json").write_text(json.dumps({**given, "dtype": stored}, indent=2))
        if model.generation:
            generation = json.dumps(model.generation, indent=2)
            (work / "generation_config.json").write_text(generation)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(work)
        if out.exists():
            out.rmdir()
        shutil.move(str(work), out)
    return out


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
    read = DECODERS["llama"].config(Settings(configuration(given, "a decoder's config")))
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
