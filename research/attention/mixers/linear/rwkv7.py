"""RWKV-7: a delta rule that decays per channel and replaces a share of its own per channel."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from research.attention.mixers.linear import low_rank_transition, short_convolution
from research.attention.mixers.linear.delta_rule import unit
from research.attention.mixers.linear.linear_time import (
    LinearTime,
    LinearTimeOptions,
    at_least_float32,
)
from research.attention.mixers.mixer import Mixer
from research.attention.mixers.mixer_options import Context
from research.attention.mixers.projections import merge_heads, split_heads
from research.attention.parameters import Constant, Parameter, matrix_axes, matrix_init, vector_axes
from research.options import OptionError

# Shares of the token before in what each projection reads start at 1 - (c / M)^power in channel c,
# as in the first layer of the authors' models.
POWERS = {"query": 0.2, "key": 0.7, "value": 0.7, "decay": 0.9, "rate": 0.9, "gate": 0.2}
# Ranks are this times sqrt(M), rounded to multiples of 32.
RANKS = {"decay": 2.5, "rate": 2.5, "gate": 5.0}
# A decay is at least exp(-exp(-0.5)), about 0.545.
STRONGEST = math.exp(-0.5)
# Times D, added to the variance of a head.
EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Ramp:
    """Fills an array of n entries with first + (last - first) (i / (n - 1))^power."""

    first: float
    last: float
    power: float = 1.0

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: Any = "float32") -> Array:
        ramp = np.linspace(0, 1, math.prod(shape)) ** self.power
        return jnp.asarray((self.first + (self.last - self.first) * ramp).reshape(shape), dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rwkv7(LinearTime):
    """The time mixing of RWKV-7 (Peng et al. 2025, "Goose", section 4.1), as in its first layer.

    With x' = x_t + (x_{t-1} - x_t) mu, a mu for every use: S_t = S_{t-1} (diag(w_t) -
    u_t^T (a_t u_t)) + v_t^T k_t (1 + (a_t - 1) alpha), where u is k xi of length 1 in each head,
    w = exp(-exp(-0.5) sigmoid(tanh(x' W) W' + b)) and a = sigmoid(x' A A' + c), each per channel.
    The outputs S_t r_t go through a group norm with scale and shift, (r . rho k) v is added, and
    the sum is multiplied by sigmoid(x' G) G'.

    The authors mix the values of later layers with those of the first; a mixer sees one layer only,
    so that is left out. Nor do initial values depend on the layer: they are those of the first,
    without the zigzag within heads.
    """

    # What its gate reads is not only the token that `merge` is shown, so there is no trace.
    attention_trace = Mixer.attention_trace
    merge = Mixer.merge

    @property
    def name(self) -> str:
        """The mixer's name in the registry."""
        return "rwkv7"

    @property
    def chunk(self) -> int:
        """The number of tokens per chunk in the chunkwise form."""
        return self.block_size or low_rank_transition.CHUNK

    def parameters(self) -> dict[str, Parameter]:
        """Returns the projections of `SelfAttention`, of which "query" is r, and those of RWKV-7.

        Shares of the token before, mu: "shift_query", "shift_key", "shift_value", "shift_decay",
        "shift_rate" and "shift_gate" (M,). Pairs of matrices "decay_in" (M, R) and "decay_out"
        (R, H, D), so for "rate" (a) and "gate"; "decay_bias" and "rate_bias" (H, D). And (H, D):
        "removal" xi, "key_rate" alpha, "bonus" rho, "norm_scale" and "norm_shift".
        """
        heads, axes = (self.num_heads, self.head_width), ("heads", "head_width")
        found = self.projection_parameters()
        for name, power in POWERS.items():
            share = Ramp(1.0, 0.0, power)
            found[f"shift_{name}"] = Parameter((self.width,), share, vector_axes("width"))
        for name, factor in RANKS.items():
            rank = max(32, 32 * round(factor * self.width**0.5 / 32))
            down = matrix_init(self.init_stddev, self.width)
            up = matrix_init(self.init_stddev, rank)
            found[f"{name}_in"] = Parameter((self.width, rank), down, matrix_axes("width", ""))
            found[f"{name}_out"] = Parameter((rank, *heads), up, matrix_axes("", *axes))
        vectors = {
            "decay_bias": Ramp(-5.5, 0.5),
            "rate_bias": Constant(-0.19),
            "removal": Constant(0.71),
            "key_rate": Constant(1.02),
            "bonus": Constant(-0.04),
            "norm_scale": Constant(1.0),
            "norm_shift": Constant(0.0),
        }
        return found | {n: Parameter(heads, i, vector_axes(*axes)) for n, i in vectors.items()}

    def init_inputs(self, batch: int, dtype: Any) -> dict[str, Array]:
        """Returns the token before the first: zeros."""
        return {"x": jnp.zeros((batch, 1, self.width), at_least_float32(dtype))}

    def mix(
        self,
        params: dict[str, Array],
        state: PyTree,
        x: Float[Array, "B T M"],
        form: str,
        places: Int[Array, "B T"] | None = None,
    ) -> tuple[PyTree, Float[Array, "B T M"]]:
        """Mixes the next T tokens; see `LinearTime`."""
        one_back = jnp.asarray([[0.0], [1.0]], x.dtype) * jnp.ones((self.width,), x.dtype)
        before, last = short_convolution.apply(x, one_back, state["inputs"]["x"], places)
        reads = {n: x + (before - x) * params[f"shift_{n}"].astype(x.dtype) for n in POWERS}
        wide = at_least_float32(x.dtype)
        r, k, v = (split_heads(params, n, reads[n]).astype(wide) for n in ("query", "key", "value"))
        vectors = {n: p.astype(wide) for n, p in params.items()}
        low = jnp.tanh(reads["decay"] @ params["decay_in"].astype(x.dtype))
        logits = _up(params, "decay", low).astype(wide) + vectors["decay_bias"]
        log_decay = -STRONGEST * jax.nn.sigmoid(logits)
        low = reads["rate"] @ params["rate_in"].astype(x.dtype)
        rate = jax.nn.sigmoid(_up(params, "rate", low).astype(wide) + vectors["rate_bias"])
        removed = unit(k * vectors["removal"])
        k = k * (1 + (rate - 1) * vectors["key_rate"])
        if places is not None:  # the first of a segment keeps and reads nothing of what was before
            starts = (places == 0)[..., None, None]
            log_decay = jnp.where(starts, -jnp.inf, log_decay)
            removed = jnp.where(starts, 0, removed)
        run, options = low_rank_transition.FORMS[form], self.form_options(form)
        memory, y = run(r, k, v, -removed, rate * removed, log_decay, state["memory"], **options)
        y = y - y.mean(-1, keepdims=True)
        epsilon = EPSILON * self.head_width
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + epsilon)
        y = y * vectors["norm_scale"] + vectors["norm_shift"]
        y = y + (r * k * vectors["bonus"]).sum(-1, keepdims=True) * v
        low = jax.nn.sigmoid(reads["gate"] @ params["gate_in"].astype(x.dtype))
        y = merge_heads(params, y.astype(x.dtype) * _up(params, "gate", low))
        return {"memory": memory, "inputs": {"x": last}}, y


def _up(params, name, low):
    """Returns (B, T, H, D) of (B, T, R), by the second of a pair of matrices."""
    return jnp.einsum("btr,rhd->bthd", low, params[f"{name}_out"].astype(low.dtype))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rwkv7Options(LinearTimeOptions):
    """S_t = S_{t-1} (diag(w_t) - u_t^T (a_t u_t)) + v_t^T k_t (1 + (a_t - 1) alpha),
    y = (norm(S_t r_t) + (r_t . rho k_t) v_t) sigmoid(x G) G', u_t = k_t xi / |k_t xi|"""

    source = "Peng et al. 2025 (RWKV-7), section 4.1, without residual values"
    implementations = tuple(low_rank_transition.FORMS)
    time = "chunkwise T (D^2 + C D + C^2), chunk C; recurrent T D^2; parallel T^3"
    state = "H D^2 + M"

    def make(self, context: Context) -> Rwkv7:
        """Returns the mixer.

        Raises:
          OptionError: the head width is 1, which a norm over the head would make constant.
        """
        width = self.sizes(context).head_width
        if width < 2:
            message = "rwkv7 normalizes each head; make it 2 or more"
            raise OptionError("head_width", width, message)
        return self.build_from(Rwkv7, context)
