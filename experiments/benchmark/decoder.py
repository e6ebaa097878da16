"""A decoder's training step and forward pass beside transformers in torch, side by side.

    python experiments/benchmark/decoder.py --model gpt2 --mode train --rounds 3

Each side is a process of its own, and the rounds of the two alternate; one JSON line a round, then
a line with the medians of tokens/s, their ratio with its range, and the share of the measured rate
of matrix products that jcl reaches. `--mode lora` trains rank 8 on query and value (PEFT in torch),
`--mode forward` predicts. AdamW, float32 unless `--dtype bf16` (torch only, as a further side).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

SHAPES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "small": (
        {
            "model_type": "llama", "vocab_size": 8192, "hidden_size": 256,
            "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 8,
            "num_key_value_heads": 4, "tie_word_embeddings": True,
        },
        (8, 256),
    ),
    "gpt2": ({"model_type": "gpt2"}, (4, 128)),
    "smollm2": (
        {
            "model_type": "llama", "vocab_size": 49152, "hidden_size": 576,
            "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
            "num_key_value_heads": 3, "tie_word_embeddings": True,
        },
        (4, 128),
    ),
}  # fmt: skip
"""Configuration, and rows × length of a batch."""


def jcl_side(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds a step, compile time, and how fast this machine multiplies matrices."""
    import jax
    import jax.numpy as jnp
    import optax
    from transformers import AutoConfig

    import jcl
    from jcl import adapters, losses, methods
    from jcl.models import decoder
    from jcl.models.decoder_families import DECODERS

    values, (rows, length) = SHAPES[given.model]
    config = DECODERS[values["model_type"]].config(AutoConfig.for_model(**values))
    params = jax.jit(lambda k: decoder.init(k, config))(jax.random.key(0))
    apply = decoder.apply_fn(config)
    tokens = jax.random.randint(jax.random.key(1), (given.steps, rows, length), 0, 1000)
    call: Any
    if given.mode == "forward":
        call = jax.jit(
            lambda p, t: jax.lax.map(lambda x: jnp.sum(apply(p, {"tokens": x})[:, -1, 0]), t)
        )
        first = params
    else:
        lora = given.mode == "lora"
        method = methods.lora(rank=8, targets="blocks/(query|value)") if lora else methods.naive()
        program = jcl.make(
            method, apply, losses.fused_next_token(), optax.adamw(1e-4),
            trainable=adapters.is_adapter if lora else jcl.trees.every_leaf,
        )  # fmt: skip
        first = jax.jit(program.init)(params, {"tokens": tokens[0]}, jax.random.key(0))
        call = jax.jit(lambda s, t: jcl.advance(program, s, {"tokens": t})[0], donate_argnums=0)
    start = time.perf_counter()
    compiled = call.lower(first, tokens).compile()
    compiling = time.perf_counter() - start
    seconds = []
    for i in range(2):
        start = time.perf_counter()
        out = jax.block_until_ready(compiled(first, tokens))
        first = first if given.mode == "forward" else out
        if i:
            seconds.append((time.perf_counter() - start) / given.steps)
    return {
        "seconds": seconds[0], "compile": compiling, "product_rate": _product_rate(),
        "flops": _flops(params, config, rows * length, length, given.mode),
    }  # fmt: skip


def _product_rate() -> float:
    """Float32 operations a second of a 1024 × 1024 product."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones((1024, 1024)) / 1024
    many = jax.jit(lambda a, b: jax.lax.fori_loop(0, 20, lambda _, c: c @ b, a))
    many(x, x).block_until_ready()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        many(x, x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 20 * 2 * 1024**3 / min(times)


def _flops(params: Any, config: Any, tokens: int, length: int, mode: str) -> float:
    """Operations of the products of one step: 2 a weight and token forward, twice that backward."""
    import jax

    kernels = sum(x.size for x in jax.tree.leaves(params["blocks"]) if x.ndim == 3)
    head = config.width * config.vocabulary
    looked = config.layers * config.heads * config.head_width * length  # causal: half of 2 products
    forward = 2 * tokens * (kernels + head + 2 * looked)
    return forward * {"forward": 1, "train": 3, "lora": 2}[mode]


def torch_side(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds a step of transformers in eager torch, or PEFT, with AdamW."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(given.threads)
    values, (rows, length) = SHAPES[given.model]
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))
    tokens = torch.randint(0, 1000, (given.steps, rows, length))
    if given.mode == "lora":
        from peft import LoraConfig, get_peft_model

        names = ["c_attn"] if values["model_type"] == "gpt2" else ["q_proj", "v_proj"]
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=names))
    learning = [p for p in model.parameters() if p.requires_grad]
    tx = torch.optim.AdamW(learning, lr=1e-4)
    half = torch.autocast("cpu", torch.bfloat16, enabled=given.dtype == "bf16")

    def step(ids: Any) -> None:
        if given.mode == "forward":
            with torch.no_grad(), half:
                model(ids)
            return
        with half:
            loss = model(ids, labels=ids).loss
        loss.backward()
        tx.step()
        tx.zero_grad()

    step(tokens[0])
    start = time.perf_counter()
    for ids in tokens:
        step(ids)
    return {"seconds": (time.perf_counter() - start) / given.steps}


def once(given: argparse.Namespace, side: str) -> dict[str, Any]:
    """One round of one side, in a process of its own."""
    name, _, dtype = side.partition("-")
    command = [sys.executable, __file__, "--side", name, "--dtype", dtype or "f32"]
    for option in ("model", "mode", "steps", "threads"):
        command += [f"--{option}", str(getattr(given, option))]
    env = os.environ | {
        "OMP_WAIT_POLICY": "PASSIVE", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "JAX_PLATFORMS": "cpu",
    }  # fmt: skip
    cores = ",".join(str(c) for c in sorted(os.sched_getaffinity(0))[: given.threads])
    ran = subprocess.run(
        ["taskset", "-c", cores, *command], env=env, capture_output=True, text=True, check=False
    )
    if ran.returncode:
        raise SystemExit(f"{side}: {ran.stderr[-2000:]}")
    return json.loads(ran.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=list(SHAPES), default="small")
    parser.add_argument("--mode", choices=["train", "lora", "forward"], default="train")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="also torch under bf16 autocast")
    parser.add_argument("--side", choices=["jcl", "torch"], help="one round of one side, inside")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    given = parser.parse_args()
    if given.side:
        run = {"jcl": jcl_side, "torch": torch_side}[given.side]
        print(json.dumps(run(given)))
        return
    sides = ["jcl", "torch", *(["torch-bf16"] if given.bf16 else [])]
    found: dict[str, list[dict[str, Any]]] = {s: [] for s in sides}
    for _ in range(given.rounds):
        for side in sides:
            found[side].append(once(given, side))
            print(json.dumps({"side": side, **found[side][-1]}), flush=True)
    _, (rows, length) = SHAPES[given.model]
    speed = {s: [rows * length / r["seconds"] for r in rs] for s, rs in found.items()}
    for side in sides[1:]:
        over = [a / b for a, b in zip(speed["jcl"], speed[side], strict=True)]
        print(
            f"{given.model} {given.mode}: jcl {statistics.median(speed['jcl']):,.0f} tokens/s, "
            f"{side} {statistics.median(speed[side]):,.0f}, ratio {statistics.median(over):.2f} "
            f"({min(over):.2f}–{max(over):.2f})"
        )
    share = [r["flops"] / r["seconds"] / r["product_rate"] for r in found["jcl"]]
    compiling = statistics.median(r["compile"] for r in found["jcl"])
    print(f"{statistics.median(share):.0%} of the product rate; compiled in {compiling:.1f} s")


if __name__ == "__main__":
    main()
