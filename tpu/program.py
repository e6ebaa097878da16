"""What is planned: a request, and the functions of its program over shapes without contents."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import chips  # first: it tells JAX that no chip is here
import compiled
import jax
import jax.numpy as jnp
import optax
from compiled import Memory

import jcl
from jcl import losses, mesh
from jcl.models import decoder
from jcl.models.presets import PRESETS
from jcl.runs import expression

FUNCTIONS = ("step", "consolidate", "predict")
OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "adamw": optax.adamw,
    "adafactor": optax.adafactor,
    "lion": optax.lion,
    "sgd": optax.sgd,
}


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be planned; `python tpu/plan.py --help` says what each means."""

    topology: str
    model: str
    method: str = ""
    axes: dict[str, int] = dataclasses.field(default_factory=lambda: {"fsdp": -1})
    batch: int | None = None
    length: int = 2048
    microbatches: int = 1
    remat: Any = "block"
    params: str = "float32"
    compute: str = "bfloat16"
    optimizer: str = "adamw"


class Built(NamedTuple):
    """A program, and the shapes of what it is called with."""

    program: jcl.Program
    state: Any
    batch: Any


def build(request: Request, on: jax.sharding.Mesh | None, **options: Any) -> Built:
    """The program of a request, on a mesh or on one device; `options` are the model's."""
    method = expression.build(expression.parse(request.method)) if request.method else jcl.chain()
    config = PRESETS[request.model]
    # cuDNN's attention can't be compiled without a GPU; XLA's own holds each block's scores
    backend: Any = "xla" if request.topology.startswith("h100") else "auto"
    compute = jnp.dtype(request.compute)
    apply = decoder.apply_fn(config, compute=compute, backend=backend, **options)
    dtype = jnp.dtype(request.params)
    params = jax.eval_shape(lambda: decoder.init(jax.random.key(0), config, dtype))
    rows = request.batch
    shapes = {
        "tokens": ((rows, request.length), jnp.int32),
        "segments": ((rows, request.length), jnp.int32),
        "mask": ((rows, request.length - 1), jnp.float32),
        "weight": ((rows,), jnp.float32),
        "task": ((rows,), jnp.int32),
    }
    batch = {name: jax.ShapeDtypeStruct(*of) for name, of in shapes.items()}

    def made(loss: Any) -> Built:
        program = jcl.make(
            method, apply, loss, OPTIMIZERS[request.optimizer](1e-4),
            microbatches=request.microbatches, mesh=on,
        )  # fmt: skip
        state = jax.eval_shape(program.init, params, batch, jax.random.key(0))
        if program.layout is not None:
            state = _placed(state, mesh.of_state(state, program.layout))
        jax.eval_shape(program.step, state, batch)
        return Built(program, state, batch)

    try:
        built = made(losses.fused_next_token())
    except ValueError:  # a method that reads all logits
        built = made(losses.next_token)
    if built.program.layout is not None:
        batch = _placed(batch, mesh.of_batch(batch, built.program.layout))
    return built._replace(batch=batch)


def _placed(tree: Any, where: Any) -> Any:
    def place(x: Any, to: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to)

    return jax.tree.map(place, tree, where)


def call(built: Built, name: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """One of the program's functions, and what it is called with."""
    program, state, batch = built
    if name == "step":
        return program.step, (state, batch)
    if name == "predict":  # as a loss has it, with no [B, L, V] logits
        return program.predict, (state, {**batch, "targets": batch["tokens"]})

    def stacked(x: Any) -> Any:  # a boundary's batches [n, B, ...], of which one will do
        where = x.sharding and jax.NamedSharding(x.sharding.mesh, jax.P(None, *x.sharding.spec))
        return jax.ShapeDtypeStruct((1, *x.shape), x.dtype, sharding=where)

    return program.consolidate, (state, jax.tree.map(stacked, batch))


def lower(built: Built, name: str) -> jax.stages.Lowered:
    """One function as the compiler gets it; what changes the state gives its memory away."""
    fn, args = call(built, name)
    return jax.jit(fn, donate_argnums=() if name == "predict" else (0,)).lower(*args)


def draft(request: Request, built: Built, name: str) -> tuple[str, Memory]:
    """The text of one function and what it holds, without machine code; see `compiled.draft`."""
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import program; program.child(*sys.argv[1:])"
    asked = json.dumps(dataclasses.asdict(request))
    found = compiled.draft([sys.executable, "-c", code, asked, name], f"jit_{name}")
    given, kept = held(call(built, name)[1]), held(built.state)
    if name == "predict":  # what comes out counts as a temporary
        kept = 0
    return found.text, Memory(given, kept, kept, max(found.total - given, 0), 0, found.live)


def child(asked: str, name: str) -> None:
    """What `draft`'s child does."""
    request = Request(**json.loads(asked))
    on = mesh.make(devices=chips.devices(request.topology)[1], **request.axes)
    lower(build(request, on, remat=request.remat), name).compile()


def held(tree: Any) -> int:
    """Bytes of a tree on one chip."""

    def nbytes(x: Any) -> int:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return 0
        shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
        return math.prod(shape) * x.dtype.itemsize

    return sum(nbytes(x) for x in jax.tree.leaves(tree))
