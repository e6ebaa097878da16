"""What a compiled module moves, read from its text: over the wires, and to and from memory.

XLA's own counts take the body of a loop once. Here bodies count as often as they run, of a
conditional's branches the dearest counts, and a collective that the compiler has threaded through
several fusions, so that it runs beside them, counts once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    type: str
    """Such as `bf16[8,128]{1,0:T(8,128)S(1)}`; S(1) is a TPU core's own fast memory."""
    op: str
    operands: tuple[str, ...]
    rest: str
    """Attributes, as they stand there."""
    root: bool


Computation = dict[str, Instruction]


class Moved(NamedTuple):
    """What one chip moves in one call of a computation."""

    wires: dict[str, float]
    """Bytes that it sends to others, by kind of collective."""
    calls: dict[str, int]
    """Collectives carried out, by kind."""
    memory: float
    """Bytes read from and written to its main memory; fusions read no more of an operand than they
    slice out of it."""

    def plus(self, other: Moved, times: int = 1) -> Moved:
        """The sum, the other taken so many times."""
        kinds = {*self.wires, *other.wires}
        return Moved(
            {k: self.wires.get(k, 0) + times * other.wires.get(k, 0) for k in kinds},
            {k: self.calls.get(k, 0) + times * other.calls.get(k, 0) for k in kinds},
            self.memory + times * other.memory,
        )


NOTHING = Moved({}, {}, 0.0)


def moved(text: str) -> Moved:
    """What the module of a compiled function, `compiled.as_text()`, moves in one call."""
    computations, entry = parse(text)
    return _Reader(computations).cost(entry)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a module by name, and the name of the one that is called."""
    computations: dict[str, Computation] = {}
    entry, current = "", ""
    for line in text.splitlines():
        begin = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if begin:
            current = begin[2]
            computations[current] = {}
            entry = current if begin[1] else entry
        elif current and (found := _instruction(line)):
            for operand in found.operands:
                _take_apart(computations[current], operand)
            computations[current][found.name] = found
    return computations, entry


def _take_apart(here: Computation, operand: str) -> None:
    """Writes an element of a tuple as an instruction of its own: `%x#1`, as it stands in modules of
    libtpu 0.0.50 and later, is `get-tuple-element(%x), index=1` in older ones.
    """
    name, _, index = operand.partition("#")
    if index and name in here and operand not in here:
        kind = _elements(here[name].type)[int(index)]
        element = Instruction(
            operand, kind, "get-tuple-element", (name,), f", index={index}", False
        )
        here[operand] = element


def _instruction(line: str) -> Instruction | None:
    begin = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if begin is None:
        return None
    kind, line = _balanced(line[begin.end() :])
    op, _, line = line.lstrip().partition("(")
    inner, rest = _balanced(f"({line}")
    if op in ("parameter", "constant"):
        return Instruction(begin[2], kind, op, (), inner + rest, bool(begin[1]))
    operands = tuple(re.findall(r"%([\w.\-]+(?:#\d+)?)", inner))
    return Instruction(begin[2], kind, op, operands, rest, bool(begin[1]))


def _balanced(text: str) -> tuple[str, str]:
    """The first word of a text, spaces inside brackets belonging to it, and what follows."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if depth == 0 and (c == " " or (c == ")" and text[0] == "(")):
            return text[: i + 1].strip(), text[i + 1 :]
    return text, ""


def nbytes(kind: str, main: bool = False) -> float:
    """Bytes of a type, a tuple's elements together; `main` leaves out what isn't in main memory."""
    total = 0.0
    for dtype, shape, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", kind):
        bits = re.match(r"[a-z]+(\d+)", dtype)
        size = 1.0 if dtype == "pred" else int(bits[1]) / 8 if bits else 0.0
        if not (main and re.search(r"S\([1-9]", layout)):
            total += size * math.prod(int(n) for n in shape.split(",") if n)
    return total


def group_size(rest: str) -> int:
    """Among how many devices a collective is, from its attributes."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return listed[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(iota[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    if "source_target_pairs" in rest:
        return 2
    raise ValueError(f"a collective's groups are {rest[:200]!r}, which can't be read")


def sent(kind: str, size: float, group: int) -> float:
    """Bytes that each of a group's devices sends in a ring, of operands of `size` bytes on each."""
    return {
        "all-gather": size * (group - 1),
        "all-reduce": 2 * size * (group - 1) / group,
        "reduce-scatter": size * (group - 1) / group,
        "all-to-all": size * (group - 1) / group,
        "collective-permute": size,
    }[kind]


def _called(rest: str, key: str) -> str:
    found = re.search(rf"{key}=%?([\w.\-]+)", rest)
    return found[1] if found else ""


class _Reader:
    """Walks from the entry; holds which threaded collectives it has met."""

    def __init__(self, computations: dict[str, Computation]) -> None:
        self.computations = computations
        self.chains: set[str] = set()

    def cost(self, name: str) -> Moved:
        total = NOTHING
        here = self.computations.get(name, {})
        for it in here.values():
            total = total.plus(*self.one(here, it))
        return total

    def one(self, here: Computation, it: Instruction) -> tuple[Moved, int]:
        if it.op == "while":
            return self.cost(_called(it.rest, "body")), self.trips(here, it)
        if it.op == "conditional":
            listed = re.search(r"branch_computations=\{([^}]*)\}", it.rest)
            names = re.findall(r"[\w.\-]+", listed[1]) if listed else []
            names = names or [_called(it.rest, f"{x}_computation") for x in ("true", "false")]
            branches = [self.cost(branch) for branch in names]
            return max(branches, key=lambda b: (sum(b.wires.values()), b.memory)), 1
        if it.op == "call":
            return self.cost(_called(it.rest, "to_apply")), 1
        if it.op == "async-start":
            return self.cost(_called(it.rest, "calls")), 1
        if it.op == "fusion":
            inner = self.computations.get(_called(it.rest, "calls"), {})
            total = Moved({}, {}, self.read_by(inner, here, it) + self.written_by(inner, it))
            for part in self.collectives(inner):
                total = total.plus(part)
            return total, 1
        if found := self.collective(here, it):
            return found, 1
        free = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all")
        if it.op in free or it.op.endswith(("-done", "-update")):
            return NOTHING, 1
        inputs = sum(nbytes(here[o].type, main=True) for o in it.operands if o in here)
        if it.op in ("dynamic-slice", "slice", "gather"):
            inputs = nbytes(it.type)
        if it.op == "copy-start":  # (to, from, a flag)
            return Moved({}, {}, inputs + nbytes(_elements(it.type)[0], main=True)), 1
        if it.op == "dynamic-update-slice":
            return Moved({}, {}, 2 * nbytes(here[it.operands[1]].type)), 1
        return Moved({}, {}, inputs + nbytes(it.type, main=True)), 1

    def trips(self, here: Computation, it: Instruction) -> int:
        """How often a loop runs: as noted, or from the constant that its counter is held against.

        1 where that isn't known, as of a loop over data.
        """
        if noted := re.search(r'known_trip_count":\{"n":"(\d+)"', it.rest):
            return int(noted[1])
        condition = self.computations.get(_called(it.rest, "condition"), {})
        body = self.computations.get(_called(it.rest, "body"), {})
        test = next((x for x in condition.values() if x.root and x.op == "compare"), None)
        if test is None or "direction=LT" not in test.rest:
            return 1
        counter, last = (condition[name] for name in test.operands)
        index = re.search(r"index=(\d+)", counter.rest)
        if index is None:
            return 1
        place = int(index[1])
        start = _constant(here, here[it.operands[0]].operands, place)
        after = next(x for x in body.values() if x.root).operands
        grown = body.get(after[place]) if place < len(after) else None
        added = [_number(body[o]) for o in grown.operands if o in body] if grown else []
        stride = next((n for n in added if n), 1)  # above 1 where the compiler unrolled
        limit = _number(last)
        return 1 if limit is None else max(1, -(-(limit - start) // stride))

    def collective(self, here: Computation, it: Instruction, scatter: bool = False) -> Moved | None:
        kind = it.op.removesuffix("-start")
        if kind not in KINDS:
            return None
        chain = re.search(r'chain_id="(\d+)"', it.rest)
        if chain:
            if chain[1] in self.chains:
                return NOTHING
            self.chains.add(chain[1])
        size = sum(nbytes(here[o].type) for o in it.operands)
        kind = "reduce-scatter" if scatter and kind == "all-reduce" else kind
        group = group_size(it.rest)
        wires = sent(kind, size, group)
        out = size * group if kind == "all-gather" else size
        return Moved({kind: wires}, {kind: 1}, size + out)

    def collectives(self, inner: Computation) -> Iterator[Moved]:
        """Those inside a fusion. TPUs have reduce-scatters as fusions of an all-reduce, cut."""
        scatter = not any("AsyncCollective" in x.rest for x in inner.values()) and any(
            x.op in ("dynamic-slice", "partition-id") for x in inner.values()
        )
        for it in inner.values():
            if it.op == "fusion":
                yield from self.collectives(self.computations.get(_called(it.rest, "calls"), {}))
            elif found := self.collective(inner, it, scatter):
                yield found

    def read_by(self, inner: Computation, here: Computation, it: Instruction) -> float:
        """Bytes of main memory that a fusion reads: of each operand what its users take of it."""
        total = 0.0
        for index, operand in enumerate(it.operands):
            whole = nbytes(here[operand].type, main=True) if operand in here else 0.0
            total += min(whole, self.taken(inner, index))
        return total

    def taken(self, inner: Computation, index: int) -> float:
        """Bytes of parameter `index` that a fusion's instructions take."""
        names = [
            n for n, x in inner.items() if x.op == "parameter" and x.rest.startswith(f"({index})")
        ]
        total, size = 0.0, nbytes(inner[names[0]].type) if names else 0.0
        while names:
            name = names.pop()
            for user in inner.values():
                if name not in user.operands:
                    continue
                if user.op == "bitcast":
                    names.append(user.name)
                elif user.op in ("dynamic-slice", "slice", "gather"):
                    total += nbytes(user.type)
                elif user.op == "dynamic-update-slice" and user.operands[0] == name:
                    pass  # written in place
                elif user.op == "fusion":
                    called = self.computations.get(_called(user.rest, "calls"), {})
                    total += self.taken(called, user.operands.index(name))
                elif user.op != "tuple" and not _threaded(user):
                    return size
        return min(total, size)

    def written_by(self, inner: Computation, it: Instruction) -> float:
        """Bytes of main memory that a fusion writes; of what it updates in place, the update."""
        root = next((x for x in inner.values() if x.root), None)
        parts = [root.name] if root and root.op != "tuple" else list(root.operands) if root else []
        total = 0.0
        for kind, name in zip(_elements(it.type), parts, strict=False):
            made = inner[name]
            while made.op in ("bitcast", "get-tuple-element") and made.operands[0] in inner:
                made = inner[made.operands[0]]
            if made.op == "dynamic-update-slice":
                kind = inner[made.operands[1]].type
            if made.op != "parameter" and not _threaded(made):
                total += nbytes(kind, main=True)
        return total


def _number(it: Instruction) -> int | None:
    """The value of an integer constant."""
    found = re.match(r"\((-?\d+)\)", it.rest) if it.op == "constant" else None
    return int(found[1]) if found else None


def _constant(here: Computation, names: Sequence[str], place: int) -> int:
    """The integer that a tuple of these names has at a place, seen through copies, or 0."""
    it = here.get(names[place]) if place < len(names) else None
    while it is not None and it.op in ("copy", "bitcast") and it.operands:
        it = here.get(it.operands[0])
    return (_number(it) or 0) if it is not None else 0


def _threaded(it: Instruction) -> bool:
    """Whether this is part of a collective that runs beside the fusion it stands in."""
    return "AsyncCollective" in it.rest or "chain_id=" in it.rest


def _elements(kind: str) -> Sequence[str]:
    """The types in a tuple's type, or the type itself."""
    if not kind.startswith("("):
        return [kind]
    found, left = list[str](), re.sub(r"/\*.*?\*/", "", kind[1:-1])
    while left:
        first, left = _balanced(left)
        found.append(first.rstrip(","))
        left = left.lstrip(", ")
    return found
