"""Will it fit, and how fast could it be: a pod's training step, compiled with no pod.

python tpu/plan.py --topology v5e:4x4 --model llama-1b --mesh fsdp=16 --method "ewc(strength=1.)"

The real step, consolidate and predict go through the real compiler of the chips that are named,
over shapes that have no contents. What comes out is read: bytes on each chip, what collectives
send, and from these and the FLOPs a roofline, which is the best that this program could do.
With --draft the compiler is stopped before it writes machine code, for seconds instead of a minute.
What is sent and computed is the same, and so are arguments and outputs; temporaries are a lower
bound, for what the code itself needs isn't laid out yet (up to half as much again). Of TPUs a draft
also says what of all that is in use at once.

TPU topologies need `pip install libtpu`; h100:8 needs `pip install --no-deps jax-cuda13-plugin
jax-cuda13-pjrt`, both in jax's own version. Neither needs the chips.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import chips  # first: it tells JAX that no chip is here
import compiled
import hlo
from chips import GIB
from compiled import Memory, TooLarge
from program import FUNCTIONS, OPTIMIZERS, Request, build, call, draft, held, lower

from jcl import flops, mesh, trees
from jcl.method import check
from jcl.models.presets import PRESETS

ROWS_EACH = 4
"""Rows of a step for each device that shares them, where no batch is given."""
LADDER = (
    (1, "none"), (1, "dots"), (1, "block"), (2, "block"), (4, "block"), (8, "block"),
)  # fmt: skip
"""Microbatches and remat, from what computes and sends least to what holds least."""


class Function(NamedTuple):
    """What a compiled function takes, on each chip."""

    memory: Memory
    moved: hlo.Moved
    flops: float
    """Multiplications and additions of products, what is computed twice counted twice."""
    seconds: float
    """It took to compile."""

    def times(self, chip: chips.Chip) -> dict[str, float]:
        """Seconds that its parts would take alone; together, at best, as long as the longest."""
        return {
            "compute": self.flops / chip.flops,
            "memory": self.moved.memory / chip.bandwidth,
            "wires": sum(self.moved.wires.values()) / chip.wires,
        }


class Plan(NamedTuple):
    """What was asked for, and what it takes."""

    request: Request
    chip: chips.Chip
    chips: int
    parameters: int
    functions: dict[str, Function]
    tokens: int
    """That a step learns from, replayed ones not counted."""
    useful: float
    """FLOPs of a step on each chip, nothing computed twice."""

    @property
    def seconds(self) -> float:
        """A step, at best."""
        return max(self.functions["step"].times(self.chip).values())


class Unfit(ValueError):
    """What was asked for needs more memory than there is, in a sentence."""


def plan(request: Request, functions: Sequence[str] = FUNCTIONS, drafts: bool = False) -> Plan:
    """Compiles what is asked for, to the end or as drafts.

    Raises:
      ValueError: if a name isn't known, or a size is out of range.
      Unfit: if a function doesn't fit.
    """
    check(request.model in PRESETS, "model", request.model, f"one of {list(PRESETS)}")
    known = list(OPTIMIZERS)
    check(request.optimizer in known, "optimizer", request.optimizer, f"one of {known}")
    chip, there = chips.devices(request.topology)
    on = mesh.make(devices=there, **request.axes)
    check(on.size == len(there), "mesh", request.axes, f"one that makes up {len(there)} devices")
    if request.batch is None:
        rows = ROWS_EACH * on.size // (on.shape["tensor"] * on.shape["sequence"])
        request = dataclasses.replace(request, batch=max(rows, 1))
    built = build(request, on, remat=request.remat)
    # counted as if on one device, cut evenly: see `flops.count`
    alone = build(request, None, remat=request.remat, logits_limit=on.size * 2**25)
    once = dataclasses.replace(request, microbatches=1)
    useful = flops.count(*_flat(call(build(once, None, logits_limit=2**62), "step"))) / on.size
    measured = {}
    for name in functions:
        count = flops.count(*_flat(call(alone, name))) / on.size
        begin = time.perf_counter()
        try:
            if drafts:
                text, memory = draft(request, built, name)
            else:
                text, memory = compiled.whole(lower(built, name))
            if memory.peak > chip.memory:  # GPUs' compiler only warns
                raise TooLarge(memory.peak, chip.memory)
        except TooLarge as error:
            raise Unfit(_unfit(request, name, held(built.state), error)) from error
        seconds = time.perf_counter() - begin
        measured[name] = Function(memory, hlo.moved(text), count, seconds)
    tokens = request.batch * request.length if request.batch else 0
    size = trees.size(built.state.params)
    return Plan(request, chip, on.size, size, measured, tokens, useful)


def _flat(called: tuple[Any, tuple[Any, ...]]) -> tuple[Any, ...]:
    return called[0], *called[1]


def _unfit(request: Request, name: str, held: float, error: TooLarge) -> str:
    """What a user needs to know of a function that doesn't fit."""
    cures = []
    if held > 0.9 * error.capacity:
        cures.append(f"at least {held / error.capacity:.1f} times the chips along fsdp")
        if request.params == "float32":
            cures.append("--params bfloat16")
    else:
        if request.remat != "block":
            cures.append("--remat block")
        rows = request.batch or 1
        if request.microbatches < rows:
            cures.append(f"--microbatches {2 * request.microbatches} or more")
        cures += ["more chips along fsdp", "fewer --batch rows"]
    return (
        f"{request.model} with {request.method or 'no method'} does not fit {request.topology}: "
        f"{name} needs {error.used / GIB:.2f} GiB a chip of {error.capacity / GIB:.2f}, "
        f"{(error.used - error.capacity) / GIB:.2f} too much, {held / GIB:.2f} of them for its "
        f"state; what would help: {', '.join(cures)}"
    )


def search(
    request: Request,
    compiles: int,
    functions: Sequence[str],
    drafts: bool,
    say: Callable[[str], None],
) -> Plan:
    """Of meshes, microbatches and remat that fit, the fastest by the roofline, compiled.

    Drafts tell how fast each would be: per mesh from what computes least to what holds least, as
    far as what fits. Where the fastest doesn't fit once it is compiled to the end, its mesh goes
    one further, and the search goes on with what is then the fastest.

    Args:
      request: the rest.
      compiles: at most so many drafts.
      functions: which of the program's to compile in the end.
      drafts: end with a draft too.
      say: told of each.

    Raises:
      ValueError: if there is to be no draft.
      Unfit: if nothing fits.
    """
    check(compiles >= 1, "compiles", compiles, "at least 1")
    _, there = chips.devices(request.topology)
    count, config = len(there), PRESETS[request.model]
    if request.batch is None:  # the same work for all
        request = dataclasses.replace(request, batch=ROWS_EACH * count)
    left, last = compiles, f"no mesh of {count} chips shares {request.batch} rows"

    def rungs(tensor: int) -> Iterator[Request]:
        axes = {"fsdp": count // tensor, "tensor": tensor}
        for microbatches, remat in LADDER:
            if (request.batch or 1) % (microbatches * axes["fsdp"]) == 0:
                yield dataclasses.replace(
                    request, axes=axes, microbatches=microbatches, remat=remat
                )

    def tried(one: Request, functions: Sequence[str], drafts: bool) -> Plan | None:
        nonlocal last
        try:
            return plan(one, functions, drafts)
        except Unfit as error:
            last = f"nothing that was tried fits, at last {error}"
            say(f"{_named(one)}: does not fit{'' if drafts else ' when compiled to the end'}")
            return None

    def down(ladder: Iterator[Request]) -> Plan | None:
        """The next of a mesh's ladder that fits as a draft."""
        nonlocal left
        for one in ladder:
            if not left:
                break
            left -= 1
            if found := tried(one, ("step",), True):
                say(f"{_named(one)}: {found.seconds:.3f} s a step at best")
                return found
        return None

    sizes = [t for t in (1, 2, 4, 8, 16) if count % t == config.kv_heads % t == 0]
    ladders = {t: rungs(t) for t in sizes}
    fits = {t: found for t in sizes if (found := down(ladders[t]))}
    while fits:
        tensor, best = min(fits.items(), key=lambda x: x[1].seconds)
        if found := tried(best.request, functions, drafts):
            return found
        del fits[tensor]
        if further := down(ladders[tensor]):
            fits[tensor] = further
    raise Unfit(last if left else f"{last}; --compiles above {compiles} tries more")


def _named(request: Request) -> str:
    """What a search varies."""
    axes = ", ".join(f"{axis}={size}" for axis, size in request.axes.items())
    return f"{axes}, microbatches {request.microbatches}, remat {request.remat}"


def facts(found: Plan) -> dict[str, Any]:
    """A plan for a JSON file, with what follows from it."""
    step = found.functions.get("step")
    made = {}
    for name, function in found.functions.items():
        made[name] = {
            "memory": {**function.memory._asdict(), "peak": function.memory.peak},
            "sent": function.moved.wires,
            "collectives": function.moved.calls,
            "memory_traffic": function.moved.memory,
            "flops": function.flops,
            "seconds_at_best": function.times(found.chip),
            "compile_seconds": round(function.seconds, 1),
        }
    out = {
        "request": dataclasses.asdict(found.request),
        "chips": found.chips,
        "parameters": found.parameters,
        "functions": made,
    }
    if step is None:
        return out
    days = 86_400 / found.seconds
    return out | {
        "step_seconds": found.seconds,
        "bound_by": max(step.times(found.chip).items(), key=lambda x: x[1])[0],
        "utilisation": found.useful / (found.seconds * found.chip.flops),
        "tokens_a_day": days * found.tokens,
        "chip_hours_a_billion_tokens": found.chips * found.seconds / 3600 / found.tokens * 1e9,
    }


def show(found: Plan) -> str:
    """A plan as text."""
    asked, chip = found.request, found.chip
    lines = [
        f"{asked.model}, {found.parameters / 1e9:.2f} G parameters in {asked.params}, computing in "
        f"{asked.compute}; {asked.method or 'no method'}; {asked.optimizer}",
        f"{found.chips} x {asked.topology.partition(':')[0]}, {_named(asked)}; {asked.batch} rows "
        f"of {asked.length}",
    ]
    for name, function in found.functions.items():
        m, moved = function.memory, function.moved
        lines += [
            "",
            f"{name}, compiled in {function.seconds:.0f} s",
            f"  a chip holds    {m.peak / GIB:8.2f} GiB of {chip.memory / GIB:.2f}: arguments "
            f"{m.arguments / GIB:.2f}, outputs {m.outputs / GIB:.2f} ({m.aliased / GIB:.2f} in the "
            f"arguments' place), temporaries {m.temporaries / GIB:.2f}, code {m.code / GIB:.2f}",
        ]
        if m.live is not None:
            lines.append(f"  in use at once  {m.live / GIB:8.2f} GiB; the rest are gaps")
        for kind in sorted(moved.wires, key=lambda k: -moved.wires[k]):
            lines.append(f"  {kind:<16}{moved.wires[kind] / 1e6:8.1f} MB in {moved.calls[kind]}")
        parts = function.times(chip)
        lines.append(
            f"  at best         {max(parts.values()):8.3f} s: compute {parts['compute']:.3f} "
            f"({function.flops / 1e12:.2f} TFLOPs), memory {parts['memory']:.3f} "
            f"({moved.memory / 1e9:.1f} GB), wires {parts['wires']:.3f}"
        )
    if "step" in found.functions:
        told = facts(found)
        lines += [
            "",
            f"a step takes {found.seconds:.3f} s at best, bound by {told['bound_by']}; "
            f"{100 * told['utilisation']:.0f} % of the chips' peak does useful work",
            f"{told['tokens_a_day'] / 1e9:.1f} G tokens a day, "
            f"{told['chip_hours_a_billion_tokens']:.1f} chip hours a billion tokens",
        ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Plans what the command line asks for; 2 if that is wrong or doesn't fit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = {f.name: f.default for f in dataclasses.fields(Request)}
    add = parser.add_argument
    add("--topology", required=True, help="such as v5e:4x4, v5p:4x4x4 or h100:8")
    add("--model", required=True, help=f"one of {', '.join(PRESETS)}")
    add("--method", default="", help='an expression such as "ewc(strength=1.) + er(rows=16)"')
    add("--mesh", default="fsdp=-1", help="such as fsdp=16,tensor=4")
    add("--batch", type=int, help=f"rows a step in all; {ROWS_EACH} a device that shares them")
    add("--length", type=int, default=default["length"], help="tokens a row")
    add("--microbatches", type=int, default=1, help="parts of a step, one after another")
    add("--remat", default="block", choices=("none", "dots", "block"), help="computed again")
    for name in ("params", "compute"):
        add(f"--{name}", default=default[name], choices=("float32", "bfloat16"), help="dtype")
    add("--optimizer", default="adamw", choices=OPTIMIZERS, help="with its default settings")
    add("--functions", default=",".join(FUNCTIONS), help="which of the program's to compile")
    add("--draft", action="store_true", help="stop before machine code is written")
    add("--search", action="store_true", help="find mesh, microbatches and remat")
    add("--compiles", type=int, default=24, help="drafts of a search, at most")
    add("--json", type=Path, help="write what was found there too")
    given = vars(parser.parse_args(argv))

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        axes = mesh.parse(given["mesh"])
        names = [f.name for f in dataclasses.fields(Request) if f.name in given]
        request = Request(axes=axes, **{name: given[name] for name in names})
        functions = given["functions"].split(",")
        ok = set(functions) <= set(FUNCTIONS)
        check(ok, "functions", functions, f"of {list(FUNCTIONS)}")
        if given["search"]:
            found = search(request, given["compiles"], functions, given["draft"], say)
        else:
            found = plan(request, functions, drafts=given["draft"])
    except ValueError as error:
        hint = isinstance(error, Unfit) and not given["search"]
        say(f"plan: {error}{'; --search finds what fits' if hint else ''}")
        return 2
    print(show(found))
    if given["json"]:
        given["json"].write_text(json.dumps(facts(found), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
