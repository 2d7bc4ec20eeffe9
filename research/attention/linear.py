"""Causal linear attention in its three forms, which compute the same function."""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from research.attention.errors import Unsupported
from research.attention.masks import Mask
from research.attention.mixer import Mixer, Parameter
from research.attention.self_attention import merge_heads, projections, split_heads

if TYPE_CHECKING:
    from research.attention.registry import Options

# What a row's sum of feature products is kept above; it can only reach zero by underflow.
EPSILON = 1e-6

State = tuple[Float[Array, "B H D Dv"], Float[Array, "B H D"]]


def feature_map(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """elu(x) + 1 in float32 (Katharopoulos et al. 2020, equation 7)."""
    return jax.nn.elu(x.astype(jnp.promote_types(x.dtype, jnp.float32))) + 1


def empty_state(batch: int, heads: int, width: int, value_width: int) -> State:
    """The sums over no keys: (B, H, D, Dv) of k v and (B, H, D) of k, float32."""
    return jnp.zeros((batch, heads, width, value_width)), jnp.zeros((batch, heads, width))


def parallel(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T H D"],
    v: Float[Array, "B T H Dv"],
    state: State,
) -> tuple[State, Float[Array, "B T H Dv"]]:
    """All pairs at once (Katharopoulos et al. 2020, equation 8), quadratic in T.

    Args:
        q: queries after the feature map, float32.
        k: keys after the feature map, float32.
        v: values, float32.
        state: sums over the keys before these.

    Returns:
        The state after these keys and the outputs, float32.
    """
    memory, total = state
    scores = jnp.einsum("bthd,bshd->bhts", q, k)
    scores = jnp.tril(scores)
    above = jnp.einsum("bhts,bshe->bthe", scores, v) + jnp.einsum("bthd,bhde->bthe", q, memory)
    below = jnp.einsum("bhts->bth", scores) + jnp.einsum("bthd,bhd->bth", q, total)
    memory = memory + jnp.einsum("bshd,bshe->bhde", k, v)
    total = total + jnp.einsum("bshd->bhd", k)
    return (memory, total), above / (below + EPSILON)[..., None]


def chunkwise(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T H D"],
    v: Float[Array, "B T H Dv"],
    state: State,
    chunk: int = 64,
) -> tuple[State, Float[Array, "B T H Dv"]]:
    """All pairs within a chunk, the state between chunks: linear in T (Hua et al. 2022, 3.4).

    Arguments and results are those of ``parallel``; T need not be a multiple of ``chunk``.
    """
    length = q.shape[1]
    chunk = min(chunk, length)
    count = -(-length // chunk)

    def split(x):
        # Padded keys are zero after the feature map, so they add nothing to the state.
        x = jnp.pad(x, ((0, 0), (0, count * chunk - length), (0, 0), (0, 0)))
        return jnp.moveaxis(x.reshape(x.shape[0], count, chunk, *x.shape[2:]), 1, 0)

    state, out = lax.scan(lambda s, x: parallel(*x, s), state, (split(q), split(k), split(v)))
    out = jnp.moveaxis(out, 0, 1)
    return state, out.reshape(out.shape[0], count * chunk, *out.shape[3:])[:, :length]


def recurrent(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T H D"],
    v: Float[Array, "B T H Dv"],
    state: State,
) -> tuple[State, Float[Array, "B T H Dv"]]:
    """One token after the other (Katharopoulos et al. 2020, equations 16-20); as ``parallel``."""

    def step(state, token):
        query, key, value = token
        memory = state[0] + key[..., :, None] * value[..., None, :]
        total = state[1] + key
        above = jnp.einsum("bhd,bhde->bhe", query, memory)
        below = jnp.einsum("bhd,bhd->bh", query, total)
        return (memory, total), above / (below + EPSILON)[..., None]

    state, out = lax.scan(step, state, tuple(jnp.moveaxis(x, 1, 0) for x in (q, k, v)))
    return state, jnp.moveaxis(out, 0, 1)


FORMS = {"parallel": parallel, "chunkwise": chunkwise, "recurrent": recurrent}


@dataclasses.dataclass(frozen=True)
class LinearAttention(Mixer):
    """Causal linear attention (Katharopoulos et al. 2020, sections 3.2-3.4), elu + 1 features.

    Attributes:
        width: M.
        num_heads: H.
        head_width: D, of keys and values.
        implementation: a name in ``FORMS``; they compute the same function.
        block_size: the chunk of the chunkwise form; 0 chooses.
        use_bias: adds a bias to each of the four projections.
        init_stddev: initial standard deviation of the projections; 0 is 1 / sqrt(fan in).
        out_scale: multiplies the initial output projection.
    """

    width: int
    num_heads: int
    head_width: int
    implementation: str = "chunkwise"
    block_size: int = 0
    use_bias: bool = False
    init_stddev: float = 0.02
    out_scale: float = 1.0

    def parameters(self) -> dict[str, Parameter]:
        """Projections as those of ``SelfAttention``."""
        return projections(self)

    @property
    def num_kv_heads(self) -> int:
        """K; every head has its own state, so as many as there are heads."""
        return self.num_heads

    def __call__(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> Float[Array, "B T M"]:
        """Linear attention over a whole sequence; see ``Mixer``."""
        if mask is not None:
            raise Unsupported("mixer 'linear' cannot take a mask beyond its own; 'softmax' can")
        state = self.init_state(x.shape[0], x.shape[1], x.dtype)
        return self._mix(params, state, x, self.implementation)[1]

    def init_state(self, batch: int, length: int, dtype: Any) -> PyTree:
        """The sums of k v and of k over the tokens seen, float32; the same size at every length."""
        return empty_state(batch, self.num_heads, self.head_width, self.head_width)

    def extend(
        self, params: dict[str, Array], state: PyTree, x: Float[Array, "B T M"]
    ) -> tuple[PyTree, Float[Array, "B T M"]]:
        """The next T tokens; see ``Mixer``."""
        return self._mix(params, state, x, "recurrent" if x.shape[1] == 1 else self.implementation)

    def _mix(self, params, state, x, form):
        q, k, v = (split_heads(params, name, x) for name in ("query", "key", "value"))
        options = {"chunk": self.block_size or 64} if form == "chunkwise" else {}
        value = v.astype(jnp.promote_types(v.dtype, jnp.float32))
        state, y = FORMS[form](feature_map(q), feature_map(k), value, state, **options)
        return state, merge_heads(params, y.astype(x.dtype))


def make(options: "Options") -> LinearAttention:
    """Linear attention from validated options."""
    return LinearAttention(
        width=options.width,
        num_heads=options.num_heads,
        head_width=options.head_size,
        implementation=options.resolved_implementation,
        block_size=options.block_size,
        use_bias=options.use_bias,
        init_stddev=options.init_stddev,
        out_scale=options.out_scale,
    )
