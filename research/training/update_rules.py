"""Optimizers: what makes an update of a gradient.

Parameters may be stacked over layers and shaped by heads, so everything that is done to a matrix
(factored moments, orthogonalization) goes by the roles that the model declares for its dimensions,
never by their number or size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from research.attention.parameters import IN, OUT, Axes
from research.options import Part, option

Transformations = tuple[optax.GradientTransformation, ...]
Rate = Callable[[jax.Array], jax.Array]
"""Maps a step, counted from 0, to its learning rate."""

BETA1, BETA2, EPSILON = 0.9, 0.99, 1e-8


@dataclass(frozen=True, kw_only=True)
class UpdateRule(Part):
    """The update direction, before weight decay and learning rate.

    Attributes:
      carries_over: whether updates are of one size whatever that of the gradient, so that muP's
        rule for Adam holds.
    """

    carries_over: ClassVar[bool] = False

    def scaling(self, axes: PyTree) -> Transformations:
        """Returns the transformations from a clipped gradient to an update direction.

        Args:
          axes: tree like the parameters, with the `Axes` of each.
        """
        raise NotImplementedError

    def wrapped(self, update: Transformations, rate: Rate) -> Transformations:
        """Returns the transformations from a clipped gradient to what is added to the parameters.

        Args:
          update: from a clipped gradient to an update, weight decay and learning rate included.
          rate: the learning rate.
        """
        return update

    def gradient_point(self, state: Any, params: PyTree) -> PyTree:
        """Returns the parameters at which the next gradient is taken.

        Args:
          state: state of the optimizer.
          params: the parameters that are evaluated and kept.
        """
        return params


@dataclass(frozen=True, kw_only=True)
class AdamW(UpdateRule):
    """Adam with decoupled weight decay."""

    source = "Loshchilov and Hutter 2019, algorithm 2"
    carries_over = True
    beta1: float = option(BETA1, "decay rate of the moving average of gradients", least=0, below=1)
    beta2: float = option(
        BETA2, "decay rate of the moving average of squared gradients", least=0, below=1
    )
    epsilon: float = option(EPSILON, "added to the square root of the second moment", above=0)

    def scaling(self, axes: PyTree) -> Transformations:
        return (optax.scale_by_adam(self.beta1, self.beta2, self.epsilon),)


@dataclass(frozen=True, kw_only=True)
class Lion(UpdateRule):
    """The sign of a mean of gradients; wants a third to a tenth of AdamW's learning rate."""

    source = "Chen et al. 2023 (Lion), algorithm 2"
    carries_over = True
    beta1: float = option(
        BETA1, "decay rate of the moving average whose sign is taken", least=0, below=1
    )
    beta2: float = option(BETA2, "decay rate of the moving average that is kept", least=0, below=1)

    def scaling(self, axes: PyTree) -> Transformations:
        return (optax.scale_by_lion(self.beta1, self.beta2),)


@dataclass(frozen=True, kw_only=True)
class Adafactor(UpdateRule):
    """The gradient over roots of squares that are kept as row and column means of each matrix."""

    source = "Shazeer and Stern 2018 (Adafactor), algorithms 4 and 5"
    decay_exponent: float = option(
        0.8, "c of the mean of squares: its beta is 1 - step^-c", above=0, most=1
    )
    clip_update: float = option(
        1.0, "most root mean square of the update of a matrix or vector", above=0
    )
    relative: bool = option(
        True, "the learning rate is a fraction of the root mean square of a matrix or vector"
    )

    def scaling(self, axes: PyTree) -> Transformations:
        return (scale_by_factored_rms(self, axes),)


@dataclass(frozen=True, kw_only=True)
class Muon(UpdateRule):
    """Orthogonalized momentum for matrices between hidden vectors, AdamW for everything else."""

    source = "Jordan et al. 2024 (Muon); Liu et al. 2025, equation 4"
    momentum: float = option(
        0.95, "decay rate of the moving average of gradients", least=0, below=1
    )
    newton_schulz_steps: int = option(5, "iterations of the orthogonalization", least=1, most=20)
    match_rms: float = option(
        0.2,
        "root mean square of a matrix's update; 0.2 is that of AdamW, whose learning rate then "
        "fits; 0: an orthogonal matrix times sqrt(max(1, outputs / inputs))",
        least=0,
    )
    beta1: float = option(BETA1, "of AdamW", least=0, below=1)
    beta2: float = option(BETA2, "of AdamW", least=0, below=1)
    epsilon: float = option(EPSILON, "of AdamW", above=0)

    def scaling(self, axes: PyTree) -> Transformations:
        hidden = jax.tree.map(lambda a: a.hidden, axes)
        # Under `optax.masked` the tree of gradients has these nodes in place of other leaves.
        mine = jax.tree.map(lambda a: a if a.hidden else optax.MaskedNode(), axes)
        dimensions = jax.tree.map(
            lambda a: MuonDimensionNumbers(a.positions(IN), a.positions(OUT)), mine
        )
        orthogonal = scale_by_muon(
            ns_steps=self.newton_schulz_steps,
            beta=self.momentum,
            weight_dimension_numbers=lambda _: dimensions,
        )
        sized = optax.stateless(lambda u, _: jax.tree.map(self._sized, u, mine))
        adam = optax.scale_by_adam(self.beta1, self.beta2, self.epsilon)
        others = jax.tree.map(lambda h: not h, hidden)
        return optax.masked(optax.chain(orthogonal, sized), hidden), optax.masked(adam, others)

    def _sized(self, update: jax.Array, axes: Axes) -> jax.Array:
        ins, outs = (math.prod(update.shape[i] for i in axes.positions(role)) for role in (IN, OUT))
        if self.match_rms:
            return update * (self.match_rms * max(ins, outs) ** 0.5)
        return update * max(1.0, outs / ins) ** 0.5


@dataclass(frozen=True, kw_only=True)
class ScheduleFree(UpdateRule):
    """AdamW whose iterates are averaged instead of slowed down; the average is evaluated."""

    source = "Defazio et al. 2024 (Schedule-Free), algorithm 1"
    carries_over = True
    beta1: float = option(
        BETA1, "share of the average in the point at which gradients are taken", above=0, below=1
    )
    beta2: float = option(
        BETA2, "decay rate of the moving average of squared gradients", least=0, below=1
    )
    epsilon: float = option(EPSILON, "added to the square root of the second moment", above=0)

    def scaling(self, axes: PyTree) -> Transformations:
        root = {"eps_in_sqrt": False, "bias_correction": True}
        return (optax.scale_by_rms(self.beta2, self.epsilon, **root),)

    def wrapped(self, update: Transformations, rate: Rate) -> Transformations:
        return (average_iterates(optax.chain(*update), rate, self.beta1),)

    def gradient_point(self, state: Any, params: PyTree) -> PyTree:
        return interpolated(state[-1].iterate, params, self.beta1)


@dataclass(frozen=True, kw_only=True)
class SGD(UpdateRule):
    """The plain gradient, without momentum."""

    def scaling(self, axes: PyTree) -> Transformations:
        return ()


OPTIMIZERS: dict[str, type[UpdateRule]] = {
    "adafactor": Adafactor,
    "adamw": AdamW,
    "lion": Lion,
    "muon": Muon,
    "schedule_free": ScheduleFree,
    "sgd": SGD,
}


WIDE = ("width", "heads", "kv_heads", "head_width", "feedforward", "hidden")
"""Logical axes that grow with the width of the model."""


def scale_by_width(ratio: float, axes: PyTree) -> optax.GradientTransformation:
    """Returns a transformation that multiplies updates of maps from wide vectors by `ratio`.

    Weight decay comes after it: the product of rate and decay is the same at all widths.

    Args:
      ratio: base width over width.
      axes: tree like the parameters, with the `Axes` of each.

    Source: Yang et al. 2022, table 8, learning rates of Adam.
    """

    def scaled(u: jax.Array, a: Axes) -> jax.Array:
        wide = a.hidden and any(a.names[i] in WIDE for i in a.positions(IN))
        return u * ratio if wide else u

    return optax.stateless(lambda updates, _: jax.tree.map(scaled, updates, axes))


class Averaged(NamedTuple):
    """State of `average_iterates`.

    Attributes:
      count: number of updates, int32.
      weight: sum of the weights of the average so far, float32.
      iterate: z, what the update is added to.
      inner: state of the update.
    """

    count: jax.Array
    weight: jax.Array
    iterate: PyTree
    inner: optax.OptState


def interpolated(iterate: PyTree, average: PyTree, beta: float) -> PyTree:
    """Returns y = (1 - beta) z + beta x, where gradients are taken."""
    return jax.tree.map(lambda z, x: z + beta * (x - z), iterate, average)


def average_iterates(
    update: optax.GradientTransformation, rate: Rate, beta: float
) -> optax.GradientTransformation:
    """Returns a transformation whose parameters are the average x of iterates z.

    z += update(gradient at y); x += c (z - x), where c is the share of this step's squared learning
    rate in the sum so far. The parameters being x, whatever reads parameters reads those to be
    evaluated, and only the gradient has to be taken elsewhere. optax.contrib.schedule_free keeps y
    as the parameters and recovers x from it.

    Source: Defazio et al. 2024, algorithm 1.
    """

    def init(params: PyTree) -> Averaged:
        return Averaged(jnp.int32(0), jnp.float32(0), params, update.init(params))

    def step(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Averaged]:
        point = interpolated(state.iterate, params, beta)
        change, inner = update.update(updates, state.inner, point)
        iterate = optax.apply_updates(state.iterate, change)
        weight = jnp.square(rate(state.count))
        total = state.weight + weight
        share = jnp.where(total > 0, weight / total, 1.0)
        moved = jax.tree.map(lambda z, x: share * (z - x), iterate, params)
        return moved, Averaged(state.count + 1, total, iterate, inner)

    return optax.GradientTransformation(init, step)


class FactoredMoments(NamedTuple):
    """State of `scale_by_factored_rms`, trees like the parameters.

    Attributes:
      count: number of updates, int32.
      rows: of matrices, the mean of squares over the outputs, which stay as dimensions of size 1;
        of other parameters, the squares.
      columns: of matrices, the mean over the inputs; of others, None.
    """

    count: jax.Array
    rows: PyTree
    columns: PyTree


def scale_by_factored_rms(rule: Adafactor, axes: PyTree) -> optax.GradientTransformation:
    """Returns Adafactor's transformation from gradients to update directions.

    optax.scale_by_factored_rms factors the two largest dimensions, which may be any among heads or
    stacked layers, and clips a stack as a whole. Here they are the declared inputs and outputs, and
    each matrix of a stack is one.
    """
    squares, smallest = 1e-30, 1e-3  # epsilon 1 and 2 of algorithm 4

    def moments(p: jax.Array, a: Axes) -> tuple[jax.Array, jax.Array | None]:
        ins, outs = a.positions(IN), a.positions(OUT)
        if not (ins and outs):
            return p, None
        return p.mean(outs, keepdims=True), p.mean(ins, keepdims=True)

    def rms(x: jax.Array, a: Axes) -> jax.Array:
        # The mean of no dimension is the array itself, as it should be for one number per head.
        return jnp.sqrt(jnp.square(x).mean(a.positions(IN, OUT), keepdims=True))

    def init(params: PyTree) -> FactoredMoments:
        zeros = jax.tree.map(jnp.zeros_like, params)
        rows, columns = (
            jax.tree.map(lambda p, a, i=i: moments(p, a)[i], zeros, axes) for i in (0, 1)
        )
        return FactoredMoments(jnp.int32(0), rows, columns)

    def direction(g: jax.Array, p: jax.Array, a: Axes, rows: Any, columns: Any) -> jax.Array:
        if columns is None:
            u = g * jax.lax.rsqrt(rows)
        else:
            mean = rows.mean(a.positions(IN), keepdims=True)
            u = g * jax.lax.rsqrt(rows / mean) * jax.lax.rsqrt(columns)
        u = u / jnp.maximum(1.0, rms(u, a) / rule.clip_update)
        return u * jnp.maximum(smallest, rms(p, a)) if rule.relative else u

    def step(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, FactoredMoments]:
        beta = 1 - (state.count + 1.0) ** -rule.decay_exponent

        def kept(i: int, old: PyTree) -> PyTree:
            def one(g: jax.Array, a: Axes, before: Any) -> Any:
                new = moments(jnp.square(g) + squares, a)[i]
                return None if new is None else beta * before + (1 - beta) * new

            return jax.tree.map(one, updates, axes, old)

        rows, columns = kept(0, state.rows), kept(1, state.columns)
        found = jax.tree.map(direction, updates, params, axes, rows, columns)
        return found, FactoredMoments(state.count + 1, rows, columns)

    return optax.GradientTransformation(init, step)
