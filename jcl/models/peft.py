"""Loads and saves adapters as PEFT folders: LoRA (rsLoRA and DoRA), (IA)³, prompts and prefixes.

PEFT names an adapter's tensors after their module. Where a family stores query, key and value as
one module, each of our layers gets a copy of the module's A and its own part of B. Written back,
the A are stacked and the B lie along a diagonal, so that ranks add up.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcl import trees
from jcl.mechanisms import adapters
from jcl.method import Params, check
from jcl.models.decoder_families import DECODERS
from jcl.models.peft_modules import Module, modules_of
from jcl.models.peft_prompts import (
    Leaves,
    Read,
    Written,
    load_prefix,
    load_prompt,
    write_prefix,
    write_prompt,
)
from jcl.models.pretrained import FAMILIES, Model
from jcl.models.tensors import check_free, make_readable
from jcl.records import record

_UNREAD = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "lora_bias",
    "modules_to_save", "monteclora_config", "target_parameters", "trainable_token_indices",
    "use_bdlora", "use_qalora", "velora_config",
)  # fmt: skip
"""Options that change what an adapter computes and that we don't support."""
_PLAIN = (True, False, "gaussian", "orthogonal", "eva")
"""Ways to draw a pair that leave the base as it is."""


@record
class Adapter(NamedTuple):
    """A loaded adapter, see `load_adapter`."""

    params: Params
    """The model's parameters with the adapter's leaves."""
    method: str
    """The name of the method that trains it further: `lora`, `ia3`, `prompt_tuning` or
    `prefix_tuning`."""
    settings: dict[str, Any]
    """The method's arguments."""


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    for path in (config, weights):
        if not path.exists():
            raise ValueError(f"{folder} has no {path.name}, which a PEFT adapter is stored in")
    try:
        return json.loads(config.read_text()), load_file(weights)
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} holds a damaged adapter: {error}") from error


def load_adapter(folder: str | Path, model: Model) -> Adapter:
    """Loads an adapter that peft wrote, as leaves beside a model's own.

    >>> adapter = load_adapter(folder, model)                              # doctest: +SKIP
    >>> method = getattr(methods, adapter.method)(**adapter.settings)      # doctest: +SKIP

    Args:
      folder: a folder with `adapter_config.json` and `adapter_model.safetensors`.
      model: the base, as loaded.

    Returns:
      The adapter, float32. If modules or layers differ in rank, pairs are padded with zeros; if
      they differ in scale, b takes up the difference.

    Raises:
      ValueError: if the kind of adapter is unknown, it has an option that we don't support, or a
        tensor doesn't belong to a dense layer of the model.
    """
    given, tensors = _read(Path(folder))
    kind = str(given.get("peft_type"))
    readers = {
        "LORA": _load_lora, "IA3": _load_ia3, "PROMPT_TUNING": load_prompt,
        "PREFIX_TUNING": load_prefix,
    }  # fmt: skip
    check(kind in readers, f"peft_type in {folder}", kind, f"one of {list(readers)}")
    for option in _UNREAD:
        check(not given.get(option), f"{option} in {folder}", given.get(option), "unset")
    bias, drawn = given.get("bias", "none"), given.get("init_lora_weights", True)
    check(bias == "none", f"bias in {folder}", bias, "'none'")
    check(drawn in _PLAIN, f"init_lora_weights in {folder}", drawn, f"one of {_PLAIN}")
    short = {k.removeprefix("base_model.model."): v for k, v in tensors.items()}
    adapter = Adapter(*readers[kind](given, short, model))
    # the readers have taken out what they read
    check(not short, f"tensors of {folder}", sorted(short), "on dense layers of the model")
    return adapter


def _take(
    tensors: dict[str, np.ndarray], model: Model, module: Module, suffix: str
) -> dict[int, np.ndarray]:
    """Takes one kind of a module's tensors out of `tensors`, by layer, as float32."""
    prefix = FAMILIES[model.given["model_type"]].prefix
    found = {}
    for layer in range(module.layers):
        name = f"{module.name.format(layer=layer)}.{suffix}"
        for candidate in (name, name.removeprefix(prefix)):
            if candidate in tensors:
                found[layer] = tensors.pop(candidate).astype(np.float32)
    return found


def _fits(name: str, found: np.ndarray | None, wanted: tuple[int, ...]) -> np.ndarray:
    shape = None if found is None else found.shape
    check(shape == wanted, f"shape of {name}", shape, f"{wanted} for this model")
    assert found is not None
    return found


def _pattern(patterns: dict[str, Any], name: str, default: Any) -> Any:
    """A module's own value among `patterns`, looked up as in peft."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _load_lora(given: dict[str, Any], tensors: Leaves, model: Model) -> Read:
    rank, alpha = given["r"], given["lora_alpha"]
    rslora, dora = bool(given.get("use_rslora")), bool(given.get("use_dora"))
    factor = adapters.scale(rank, alpha, rslora)
    params = model.params
    targets: list[str] = []
    for module in modules_of(model):
        first, second, magnitude = (
            _take(tensors, model, module, f"lora_{part}")
            for part in ("A.weight", "B.weight", "magnitude_vector")
        )
        if not first:
            continue
        widest = max(len(a) for a in first.values())
        for path in module.parts:
            kernel = adapters.subtree(params, path)["kernel"]
            layers, fan_in, fan_out = adapters.shape(kernel)
            a = np.zeros((layers, fan_in, widest), np.float32)
            b = np.zeros((layers, widest, fan_out), np.float32)
            for layer, stored in first.items():
                own = len(stored)
                name = module.name.format(layer=layer)
                _fits(f"{name}.lora_A.weight", stored, (own, fan_in))
                output = second.get(layer)
                output = _fits(f"{name}.lora_B.weight", output, (module.outputs, own))
                of = _pattern(given.get("alpha_pattern") or {}, name, alpha)
                a[layer, :, :own] = stored.T
                b[layer, :own] = module.split(output, path)
                b[layer] *= adapters.scale(own, of, rslora) / factor
            lora = {"a": jnp.asarray(a), "b": jnp.asarray(b)}
            if dora:
                norms = np.array(adapters.column_norm(kernel))
                for layer, stored in magnitude.items():
                    name = f"{module.name.format(layer=layer)}.lora_magnitude_vector"
                    _fits(name, stored, (module.outputs,))
                    norms[layer] = module.split(stored.reshape(-1, 1), path)[0]
                lora["magnitude"] = jnp.asarray(norms)
            params = adapters.with_subtree(params, path, {"lora": lora})
            targets.append(path)
    settings = {"rank": rank, "alpha": alpha, "targets": "|".join(targets)}
    return params, "lora", settings | {"rslora": rslora, "dora": dora}


def _load_ia3(given: dict[str, Any], tensors: Leaves, model: Model) -> Read:
    params = model.params
    outputs: list[str] = []
    inputs: list[str] = []
    for module in modules_of(model):
        found = _take(tensors, model, module, "ia3_l")
        if not found:
            continue
        before = next(iter(found.values())).shape[0] == 1  # scales the input
        for path in module.parts:
            layers, fan_in, fan_out = adapters.shape(adapters.subtree(params, path)["kernel"])
            gain = np.ones((layers, fan_in if before else fan_out), np.float32)
            for layer, stored in found.items():
                name = f"{module.name.format(layer=layer)}.ia3_l"
                _fits(name, stored, (1, fan_in) if before else (module.outputs, 1))
                gain[layer] = stored[0] if before else module.split(stored, path)[0]
            key = "input_gain" if before else "gain"
            params = adapters.with_subtree(params, path, {key: jnp.asarray(gain)})
            (inputs if before else outputs).append(path)
    settings = {"outputs": "|".join(outputs) or None, "inputs": "|".join(inputs) or None}
    return params, "ia3", settings


def save_adapter(
    model: Model,
    params: Params,
    folder: str | Path,
    *,
    scale: float | None = None,
    base: str = "",
) -> Path:
    """Writes a model's adapter as a folder that peft loads, and that gives the same logits.

    Args:
      model: the base, as loaded.
      params: the whole tree, with one kind of adapter: that of `lora`, `ia3`, `prompt_tuning` or
        `prefix_tuning`.
      folder: a new or empty folder.
      scale: the factor of low-rank pairs, see `adapters.scale`; it becomes the α of plain LoRA.
      base: the base's folder or Hugging Face id, for peft to find it.

    Raises:
      ValueError: if the folder holds something, PEFT has no place for the adapter, there are
        low-rank pairs and no `scale`, or the base has learned too, which would be lost.
    """
    from safetensors.numpy import save_file

    out = Path(folder)
    check_free(out)
    _check_base(model, params)
    named = ((trees.path_name(p), x) for p, x in jax.tree_util.tree_leaves_with_path(params))
    leaves = {path: np.asarray(x) for path, x in named if adapters.is_adapter(path)}
    keys = {key for path in leaves for key in path.split("/") if key in adapters.NAMES}
    names = {key.removeprefix("input_") for key in keys}
    ok = len(names) == 1 and names <= {"lora", "gain", "prompt", "prefix"}
    known = "one of lora, gain (with or without input_gain), prompt and prefix"
    check(ok, "adapter", sorted(names), known)
    if names == {"lora"}:
        given, tensors = _lora(model, params, leaves, scale)
    elif names == {"gain"}:
        given, tensors = _ia3(model, leaves)
    else:
        given, tensors = (write_prompt if names == {"prompt"} else write_prefix)(model, leaves)
    check(not leaves, "adapters", sorted(leaves), "on layers for which PEFT has a place")
    task = "CAUSAL_LM" if model.given["model_type"] in DECODERS else None
    given |= {"base_model_name_or_path": base, "task_type": task, "inference_mode": True}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as made:
        work = Path(made) / "adapter"
        work.mkdir()
        whole = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
        save_file(whole, work / "adapter_model.safetensors", metadata={"format": "pt"})
        make_readable(work)
        (work / "adapter_config.json").write_text(json.dumps(given, indent=2))
        if out.exists():
            out.rmdir()
        shutil.move(str(work), out)
    return out


def _check_base(model: Model, params: Params) -> None:
    """Refuses parameters whose base isn't the model's; one of another dtype is compared in it."""
    base = trees.by_path(model.params)
    for path, x in trees.by_path(params).items():
        own = base.get(path, x)  # a kernel in int8 has other leaves
        if own is x or (isinstance(own, jax.Array) and own.is_deleted()):
            continue
        if not bool(jnp.array_equal(jnp.asarray(own).astype(x.dtype), x)):
            raise ValueError(
                f"params at {path!r} are not the model's own, but a PEFT folder holds nothing but "
                "adapters; where the base has learned too, write all of it by "
                "models.save(model, adapters.merge(params, scale), folder)"
            )


def _lora(model: Model, params: Params, leaves: Leaves, scale: float | None) -> Written:
    if scale is None:
        raise ValueError("scale is None, but must be that of the low-rank pairs: adapters.scale()")
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    dora = any(path.endswith("/magnitude") for path in leaves)
    for module in modules_of(model):
        pairs = {
            path: {k: leaves.pop(f"{path}/lora/{k}") for k in ("a", "b")}
            for path in module.parts
            if f"{path}/lora/a" in leaves
        }
        if not pairs:
            continue
        widths = {pair["a"].shape[-1] for pair in pairs.values()}
        check(len(widths) == 1, f"ranks in {module.short}", widths, "one, for it is one module")
        rank = widths.pop()
        ranks[module.short] = total = rank * len(pairs)
        alphas[module.short] = float(scale) * total
        lengths = {}
        for path in module.parts if dora else ():
            norms = adapters.column_norm(adapters.subtree(params, path)["kernel"])
            lengths[path] = leaves.pop(f"{path}/lora/magnitude", np.asarray(norms))
        for layer in range(module.layers):
            at = f"base_model.model.{module.name.format(layer=layer)}"
            b = np.zeros((module.outputs, total), np.float32)
            for i, (path, pair) in enumerate(pairs.items()):
                module.fill(b, path, slice(i * rank, (i + 1) * rank), pair["b"][layer])
            tensors[f"{at}.lora_A.weight"] = np.concatenate(
                [p["a"][layer].T for p in pairs.values()]
            )
            tensors[f"{at}.lora_B.weight"] = b
            if dora:
                magnitude = np.zeros((module.outputs, 1), np.float32)
                for path, length in lengths.items():
                    module.fill(magnitude, path, slice(1), length[layer])
                tensors[f"{at}.lora_magnitude_vector"] = magnitude[:, 0]
    given = {
        "peft_type": "LORA",
        "r": max(ranks.values(), default=0),
        "lora_alpha": max(alphas.values(), default=0),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "target_modules": list(ranks),
        "use_dora": dora,
        "fan_in_fan_out": model.given["model_type"] == "gpt2",
        "bias": "none",
    }
    return given, tensors


def _ia3(model: Model, leaves: Leaves) -> Written:
    tensors: dict[str, np.ndarray] = {}
    outputs: list[str] = []
    inputs: list[str] = []
    for module in modules_of(model):
        gains = {p: leaves.pop(f"{p}/gain") for p in module.parts if f"{p}/gain" in leaves}
        before = {p: f"{p}/input_gain" for p in module.parts if f"{p}/input_gain" in leaves}
        if not gains and not before:
            continue
        ok = not before or (len(module.parts) == 1 and not gains)
        check(ok, f"gains on {module.short}", [*gains, *before], "of its outputs or its inputs")
        (inputs if before else outputs).append(module.short)
        for layer in range(module.layers):
            name = f"base_model.model.{module.name.format(layer=layer)}.ia3_l"
            if before:
                tensors[name] = leaves[next(iter(before.values()))][layer][None]
                continue
            tensors[name] = np.ones((module.outputs, 1), np.float32)
            for path, gain in gains.items():
                module.fill(tensors[name], path, slice(1), gain[layer])
        for path in before.values():
            del leaves[path]
    given = {
        "peft_type": "IA3",
        "target_modules": outputs + inputs,
        "feedforward_modules": inputs,
        "fan_in_fan_out": model.given["model_type"] == "gpt2",
    }
    return given, tensors
