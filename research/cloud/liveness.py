"""What a computation needs of memory and of memory bandwidth, read off its jaxpr.

A jaxpr names every intermediate value; a compiler stores only some of them. This model of it is
coarse and fast, and knows no shapes but those of the jaxpr:

- Products, gathers, kernels and loops store what they return. Elementwise work is fused into what
  reads it, so that its value is stored only where a product, a gather, a kernel or a loop reads it.
- Fused work that reads a buffer for the last time writes into it. A product whose only reader is
  fused work that ends in something no larger is never stored itself.
- Casts, transposes and broadcasts cost nothing, but for a broadcast that a loop starts from.
- A loop needs what one turn needs, beside what it carries and stacks.
- A value that is stored lives until the last equation that reads it, directly or through fused
  work.

Bytes moved are those that are stored, and those that are read by what is stored.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jax.extend import core

from research.training.budget import bodies

PRODUCTS = {"dot_general", "conv_general_dilated"}
LOOPS = {"scan", "while", "cond"}
WHOLE = {
    *("gather", "scatter", "scatter-add", "sort", "top_k", "dynamic_update_slice", "fft"),
    *("pallas_call", "custom_call", "cumsum", "cumprod", "cumlogsumexp"),
}
"""What reads its first operand whole, so that this has to be stored, and stores what it returns."""
LAYOUT = {
    *("broadcast_in_dim", "reshape", "transpose", "convert_element_type", "squeeze", "rev"),
    *("expand_dims", "sharding_constraint", "copy", "slice", "dynamic_slice", "iota"),
    *("reduce_precision", "stop_gradient"),
}
"""What computes nothing."""

Fraction = Callable[[tuple[int, ...], Any], float]
"""(shape, dtype) -> the part of such an array that one device holds."""


class Need(NamedTuple):
    """What a computation needs, in bytes.

    Attributes:
      peak: most that is stored at once, beside its arguments.
      saved: what loops leave for other loops: the residuals of layers for their gradients.
      moved: read from and written to memory.
    """

    peak: float
    saved: float
    moved: float


class Value:
    """A value of a jaxpr whose calls are inlined: users are (equation, operand) numbers."""

    __slots__ = ("shape", "dtype", "users")

    def __init__(self, aval: Any):
        self.shape: tuple[int, ...] = getattr(aval, "shape", ())
        self.dtype = getattr(aval, "dtype", None)
        self.users: list[tuple[int, int]] = []


class Equation(NamedTuple):
    """An equation between values; None stands for a literal."""

    name: str
    inputs: list[Value | None]
    outputs: list[Value]
    params: dict[str, Any]

    @property
    def stores(self) -> bool:
        """Whether it is no fused work."""
        return self.name in PRODUCTS | LOOPS or self.whole

    @property
    def whole(self) -> bool:
        """Whether it reads its first operand whole; one row per index is fused work."""
        numbers = self.params.get("dimension_numbers")
        return self.name in WHOLE and not (
            self.name.startswith("scatter") and getattr(numbers, "operand_batching_dims", ())
        )

    def carries(self, operand: int) -> bool:
        """Whether a loop starts from this operand."""
        if self.name == "scan":
            first = self.params["num_consts"]
            return first <= operand < first + self.params["num_carry"]
        return self.name == "while"


@dataclass
class _Buffers:
    """What is stored. Keys are ids of values; those of arguments have a size and no birth."""

    size: dict[int, float] = field(default_factory=dict)
    born: dict[int, int] = field(default_factory=dict)
    last: dict[int, int] = field(default_factory=dict)
    roots: dict[int, set[int]] = field(default_factory=dict)
    plain: set[int] = field(default_factory=set)
    products: set[int] = field(default_factory=set)
    feeds: dict[int, set[int]] = field(default_factory=dict)
    inner: dict[int, float] = field(default_factory=dict)

    def under(self, value: Value | None) -> set[int]:
        """The buffers that have to be there for this value."""
        return self.roots.get(id(value), set()) if value is not None else set()


def measure(jaxpr: core.Jaxpr, fraction: Fraction, carried: Sequence[int] = ()) -> Need:
    """Returns what a jaxpr needs on one device.

    Args:
      jaxpr: with the shapes of one device, but for those that `fraction` knows.
      fraction: see `Fraction`.
      carried: numbers of the arguments that a loop around it carries; adding to them is in place.
    """
    arguments = [Value(v.aval) for v in jaxpr.invars]
    equations, results = _inline(jaxpr, arguments)
    for number, equation in enumerate(equations):
        for operand, value in enumerate(equation.inputs):
            if value is not None:
                value.users.append((number, operand))
    held = _Buffers()
    for value in arguments:
        held.size[id(value)] = _bytes(value, fraction)
        held.roots[id(value)] = {id(value)}
        held.plain.add(id(value))
    out = {id(v) for v in results if v is not None}
    totals = {id(arguments[i]) for i in carried}
    saved = moved = 0.0
    for number, equation in enumerate(equations):
        loop = _loop(equation, fraction)
        held.inner[number] = loop.peak
        saved = max(saved, loop.saved) + _stacked(equation, equations, fraction)
        stored = _place(number, equation, equations, held, fraction, out, totals)
        moved += loop.moved + (_read(equation, held, fraction) + stored if stored else 0.0)
    for value in results:
        for root in held.under(value):
            held.last[root] = len(equations)
    _drop_fused_products(held, len(equations))
    return Need(_sweep(equations, held), saved, moved)


def _inline(jaxpr: core.Jaxpr, inputs: Sequence[Value]) -> tuple[list[Equation], list]:
    """Returns the equations with calls (not loops and kernels) opened, and the results."""
    constants = [Value(v.aval) for v in jaxpr.constvars]
    environment = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *inputs], strict=True))

    def look(atom: Any) -> Value | None:
        return None if isinstance(atom, core.Literal) else environment[atom]

    equations = []
    for eqn in jaxpr.eqns:
        name, body = eqn.primitive.name, next(bodies(eqn.params), None)
        opened = body is not None and name not in LOOPS | WHOLE
        if opened and len(body.invars) <= len(eqn.invars):
            atoms = eqn.invars[len(eqn.invars) - len(body.invars) :]
            inner, found = _inline(body, [look(a) or Value(a.aval) for a in atoms])
            equations += inner
            outputs = [f or Value(v.aval) for f, v in zip(found, eqn.outvars, strict=True)]
        else:
            outputs = [Value(v.aval) for v in eqn.outvars]
            equations.append(Equation(name, [look(v) for v in eqn.invars], outputs, eqn.params))
        environment.update(zip(eqn.outvars, outputs, strict=True))
    return equations, [look(v) for v in jaxpr.outvars]


def _bytes(value: Value, fraction: Fraction) -> float:
    if value.dtype is None:
        return 0.0
    item = getattr(value.dtype, "itemsize", 4)
    return math.prod(value.shape) * item * fraction(value.shape, value.dtype)


def _loop(equation: Equation, fraction: Fraction) -> Need:
    """Returns what one turn of a loop needs at most, and what all its turns move."""
    if equation.name not in LOOPS:
        return Need(0.0, 0.0, 0.0)
    params = equation.params
    turns = params["length"] if equation.name == "scan" else 1
    found = [
        measure(
            body,
            fraction,
            [
                i
                for i in range(len(body.invars))
                if equation.name != "cond" and (equation.name == "while" or equation.carries(i))
            ],
        )
        for body in bodies(params)
    ]
    peak, saved, moved = (max(column) for column in zip(*found, strict=True))
    return Need(peak, saved, moved * turns)


def _stacked(equation: Equation, equations: Sequence[Equation], fraction: Fraction) -> float:
    """Returns the bytes that a scan stacks for another scan to read."""
    if equation.name != "scan":
        return 0.0
    stacks = equation.outputs[equation.params["num_carry"] :]
    read = [v for v in stacks if any(equations[i].name == "scan" for i, _ in v.users)]
    return sum(_bytes(v, fraction) for v in read)


def _place(
    number: int,
    equation: Equation,
    equations: Sequence[Equation],
    held: _Buffers,
    fraction: Fraction,
    out: set[int],
    totals: set[int],
) -> float:
    """Decides what an equation stores, and returns its bytes."""
    below = set().union(*(held.under(v) for v in equation.inputs))
    for root in below:
        held.last[root] = number
    if equation.stores:
        held.products -= below
    stored = 0.0
    for index, value in enumerate(equation.outputs):
        key, size = id(value), _bytes(value, fraction)
        if equation.name == "scan" and index < equation.params["num_carry"]:
            start = held.under(equation.inputs[equation.params["num_consts"] + index])
            place = next(
                (r for r in start if held.size[r] == size and held.last[r] == number), None
            )
            if place is not None:
                held.roots[key] = {place}
                held.plain.add(key)
                continue
        plain = equation.name in LAYOUT and all(
            v is None or id(v) in held.plain for v in equation.inputs
        )
        if not _is_stored(equation, value, equations, plain, key in out):
            held.roots[key] = below if equation.name != "iota" else set()
            held.plain |= {key} if plain else set()
            continue
        if (
            key in out
            and not equation.stores
            and any(
                v is not None and id(v) in totals and v.shape == value.shape
                for v in equation.inputs
            )
        ):
            size = 0.0
        for root in below:
            held.feeds.setdefault(root, set()).add(key)
        held.size[key], held.born[key], held.last[key] = size, number, number
        held.roots[key] = {key}
        held.plain.add(key)
        held.products |= {key} if equation.name in PRODUCTS else set()
        stored += size
    return stored


def _is_stored(
    equation: Equation, value: Value, equations: Sequence[Equation], plain: bool, out: bool
) -> bool:
    """Whether a value is stored, rather than computed where it is read."""
    if equation.stores:
        return True
    layout = equation.name in LAYOUT
    readers = [(equations[i], operand) for i, operand in value.users]
    if layout and equation.name != "convert_element_type":
        if any(reader.carries(operand) for reader, operand in readers):
            return True
    elif equation.name.startswith("reduce_") or any(
        (reader.whole and (operand == 0 or reader.name == "pallas_call")) or reader.name in LOOPS
        for reader, operand in readers
    ):
        return True
    return (out and not layout) or (
        not plain and any(reader.name in PRODUCTS for reader, _ in readers)
    )


def _read(equation: Equation, held: _Buffers, fraction: Fraction) -> float:
    """Returns the bytes that an equation reads; of what it takes a part of, no more than that."""
    if equation.name in LOOPS:
        return 0.0
    if equation.name == "gather":
        return sum(_bytes(v, fraction) for v in equation.outputs)
    return sum(
        min(sum(held.size[r] for r in held.under(v)), 2 * _bytes(v, fraction))
        for v in equation.inputs
        if v is not None
    )


def _drop_fused_products(held: _Buffers, end: int) -> None:
    """Has products that fused work makes into something no larger stored as that, and only that."""
    for root in held.products:
        readers = held.feeds.get(root, set())
        if len(readers) == 1 and held.last[root] < end:
            reader = next(iter(readers))
            # Much smaller ones are sums over it, which come after it is complete.
            if 0.3 * held.size[root] < held.size[reader] <= held.size[root]:
                held.size[root] = 0.0
                held.born[reader] = min(held.born[reader], held.born[root])


def _sweep(equations: Sequence[Equation], held: _Buffers) -> float:
    """Returns the most that is alive at once."""
    begin: dict[int, list[int]] = {}
    end: dict[int, list[int]] = {}
    for key, number in held.born.items():
        begin.setdefault(number, []).append(key)
        end.setdefault(held.last[key], []).append(key)
    alive: set[int] = set()
    live = peak = 0.0
    for number, equation in enumerate(equations):
        for key in begin.get(number, ()):
            if not equation.stores:
                over = [
                    k
                    for k in end.get(number, ())
                    if k != key and k in alive and held.size[k] == held.size[key]
                ]
                if over:
                    alive.remove(over[0])
                    live -= held.size[over[0]]
            alive.add(key)
            live += held.size[key]
        peak = max(peak, live + held.inner[number])
        for key in end.get(number, ()):
            if key in alive:
                alive.remove(key)
                live -= held.size[key]
    return peak
