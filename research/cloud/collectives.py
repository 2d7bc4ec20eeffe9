"""Counts the collectives (communication between devices) of a compiled program.

The compiled program is parsed as HLO text. An instruction in a loop counts once per iteration if
the trip count is known. The loop over training steps has no known trip count and counts as one
iteration, so all counts are per step.
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
      bytes: size of the whole result on one device; for reduce-scatter, of the whole argument.
      group: number of devices that take part in one collective.
      count: executions per step, including loop iterations.
    """

    kind: str
    bytes: float
    group: int
    count: float

    @property
    def moved(self) -> float:
        """Total bytes that one device sends per step with ring algorithms.

        Each execution sends (n - 1) / n of the array for all-gather, reduce-scatter and all-to-all,
        twice that for all-reduce, and all of it for collective-permute.
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
    """Returns the collectives per step of a compiled program, given as HLO text."""
    computations, entry = _parse(hlo)
    found: list[Collective] = []
    seen: set[str] = set()

    def visit(name: str, turns: float) -> None:
        for instruction in computations.get(name, ()):
            kind = instruction.operation.removesuffix("-start")
            if kind in KINDS:
                # An asynchronous collective appears as several instructions with the same channel.
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
    """Merges equal collectives by adding their counts; sorts by bytes moved, largest first."""
    counts: dict[tuple, float] = {}
    for c in collectives:
        counts[c[:3]] = counts.get(c[:3], 0.0) + c.count
    merged = [Collective(*key, count) for key, count in counts.items()]
    return sorted(merged, key=lambda c: -c.moved)


def total_by_kind(collectives: Iterable[Collective]) -> dict[str, tuple[float, float]]:
    """Returns {kind: (executions per step, bytes that one device sends per step)}."""
    totals: dict[str, tuple[float, float]] = {}
    for c in collectives:
        count, moved = totals.get(c.kind, (0.0, 0.0))
        totals[c.kind] = (count + c.count, moved + c.moved)
    return totals


def _parse(hlo: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Returns {computation: instructions} and the name of the entry computation."""
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", None
    for line in hlo.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+)\s.*\{\s*$", line):
            current = header[2]
            computations[current] = []
            entry = current if header[1] else entry
        elif line.rstrip() == "}":  # with more on the line, it is text in a kernel's description
            current = None
        elif current and (found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)", line)):
            shape, rest = _split_shape(found[2])
            operation = re.match(r"[\w\-]+", rest)
            computations[current].append(
                _Instruction(found[1], shape, operation[0] if operation else "", rest)
            )
    return computations, entry


def _split_shape(text: str) -> tuple[str, str]:
    """Splits an instruction into its shape, which may be a tuple, and the rest of the text."""
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
    """Returns the computations that an instruction calls, except the combiners of reductions."""
    if instruction.operation in (*KINDS, "reduce", "scatter", "sort", "reduce-window", "map"):
        return []
    names = re.findall(r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)",
                       instruction.rest)  # fmt: skip
    branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
    return names + (re.findall(r"[\w.\-]+", branches[1]) if branches else [])


def _turns(rest: str, computations: dict[str, list[_Instruction]]) -> float:
    """Returns the trip count of a loop; 1 if the program does not state it."""
    if known := re.search(r"known_trip_count\D*(\d+)", rest):
        return float(known[1])
    # Without the annotation, a single integer constant in the loop condition is the trip count.
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
    """Returns the number of devices that take part in one collective."""
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
