"""What devices send each other, counted in a compiled program.

A compiled program is read as HLO text. What is in a loop counts once per turn where the number of
turns is written there; the loop over steps has no such number, so that everything is per step.
"""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
    **dict.fromkeys(("f32", "s32", "u32"), 4),
    **dict.fromkeys(("f64", "s64", "u64", "c64"), 8),
}


class Collective(NamedTuple):
    """Collectives of one kind and size.

    Attributes:
      kind: one of `KINDS`.
      bytes: of the whole result on one device; of the whole argument for reduce-scatter.
      group: devices that take part together.
      count: how often it happens in a step; a loop's turns may make it a product.
    """

    kind: str
    bytes: float
    group: int
    count: float

    @property
    def moved(self) -> float:
        """Bytes that one device sends for all of them, by the algorithms for rings.

        (n - 1) / n of the array for all-gather, reduce-scatter and all-to-all, twice that for
        all-reduce, all of it for collective-permute.
        """
        if self.kind == "collective-permute":
            return self.count * self.bytes
        twice = 2 if self.kind == "all-reduce" else 1
        return self.count * twice * self.bytes * (self.group - 1) / self.group


class _Instruction(NamedTuple):
    name: str
    shape: str
    operation: str
    rest: str


def parse_collectives(hlo: str) -> list[Collective]:
    """Returns the collectives of a compiled program, given as text, per step."""
    computations, entry = _parse(hlo)
    found: list[Collective] = []
    seen: set[str] = set()

    def visit(name: str, turns: float) -> None:
        for instruction in computations.get(name, ()):
            kind = instruction.operation.removesuffix("-start")
            if kind in KINDS:
                # The parts of one that overlaps with other work all have its channel.
                channel = re.search(r"channel_id=(\d+)", instruction.rest)
                key = channel[1] if channel else f"{name} {instruction.name}"
                if key not in seen:
                    seen.add(key)
                    found.append(_collective(kind, instruction, turns))
            inner = turns
            if instruction.operation == "while":
                inner *= _turns(instruction.rest, computations)
            for called in _called(instruction):
                visit(called, inner)

    visit(entry, 1.0)
    return merge(c for c in found if c.group > 1 and c.bytes)


def merge(collectives: Iterable[Collective]) -> list[Collective]:
    """Returns them with equal ones counted together, the most bytes moved first."""
    counts: dict[tuple, float] = {}
    for c in collectives:
        counts[c[:3]] = counts.get(c[:3], 0.0) + c.count
    merged = [Collective(*key, count) for key, count in counts.items()]
    return sorted(merged, key=lambda c: -c.moved)


def by_kind(collectives: Iterable[Collective]) -> dict[str, tuple[float, float]]:
    """Returns {kind: (how many in a step, bytes that one device sends)}."""
    totals: dict[str, tuple[float, float]] = {}
    for c in collectives:
        count, moved = totals.get(c.kind, (0.0, 0.0))
        totals[c.kind] = (count + c.count, moved + c.moved)
    return totals


def _parse(hlo: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Returns {computation: instructions} and the name of the entry."""
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", None
    for line in hlo.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+)\s.*\{\s*$", line):
            current = header[2]
            computations[current] = []
            entry = current if header[1] else entry
        elif line.rstrip() == "}":  # more on the line: text inside of a kernel's description
            current = None
        elif current and (found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)", line)):
            shape, rest = _split_shape(found[2])
            operation = re.match(r"[\w\-]+", rest)
            computations[current].append(
                _Instruction(found[1], shape, operation[0] if operation else "", rest)
            )
    return computations, entry


def _split_shape(text: str) -> tuple[str, str]:
    """Returns the shape, which may be a tuple, and what follows it."""
    if not text.startswith("("):
        shape, _, rest = text.partition(" ")
        return shape, rest
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[: i + 1], text[i + 2 :]
    return text, ""


def _called(instruction: _Instruction) -> list[str]:
    """Returns the computations that an instruction runs; what a reduction adds with is none."""
    if instruction.operation in (*KINDS, "reduce", "scatter", "sort", "reduce-window", "map"):
        return []
    names = re.findall(r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)",
                       instruction.rest)  # fmt: skip
    branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
    return names + (re.findall(r"[\w.\-]+", branches[1]) if branches else [])


def _turns(rest: str, computations: dict[str, list[_Instruction]]) -> float:
    """Returns how often a loop turns; 1 where that is not written in the program."""
    if known := re.search(r"known_trip_count\D*(\d+)", rest):
        return float(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", rest)
    body = computations.get(condition[1], []) if condition else []
    limits = [
        int(found[1])
        for i in body
        if i.operation == "constant"
        and i.shape.startswith(("s32", "u32"))
        and (found := re.match(r"constant\((\d+)\)", i.rest))
    ]
    return float(limits[0]) if len(limits) == 1 else 1.0


def _collective(kind: str, instruction: _Instruction, turns: float) -> Collective:
    sizes = [
        BYTES.get(dtype, 4) * math.prod(int(n) for n in dims.split(",") if n)
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", instruction.shape)
    ]
    group = _group(kind, instruction.rest)
    if instruction.operation.endswith("-start") and kind != "all-reduce":
        size = max(sizes, default=0)  # (argument, result, flags)
    else:
        size = sum(sizes)
    if kind == "reduce-scatter" and not instruction.operation.endswith("-start"):
        size *= group
    return Collective(kind, float(size), group, turns)


def _group(kind: str, rest: str) -> int:
    """Returns how many devices take part together."""
    if kind == "collective-permute":
        return 2 if "source_target_pairs={{" in rest else 1
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'([^']+)'", mesh[2]))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(iota[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(listed[1].split(","))
    return 1
