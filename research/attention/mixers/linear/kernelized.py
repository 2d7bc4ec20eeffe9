"""Causal linear attention: a feature map replaces the softmax, and running sums the cache."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from research.attention.mixers.linear import decay
from research.attention.mixers.linear.features import Elu, FeatureMap, RandomFeatures, Taylor
from research.attention.mixers.linear.linear_time import (
    ConvolvedOptions,
    LinearTime,
    at_least_float32,
)
from research.attention.mixers.mixer_options import Context
from research.attention.parameters import Parameter
from research.attention.parts.part_options import size_option

State = tuple[Float[Array, "B H D Dv"], Float[Array, "B H D"]]


def normalized(
    form: Callable[..., Any],
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T H D"],
    v: Float[Array, "B T H Dv"],
    state: State,
    epsilon: float,
    decays: decay.Decay = None,
    **options: Any,
) -> tuple[State, Float[Array, "B T H Dv"]]:
    """Returns sum_s (q_t . k_s) v_s / (epsilon + sum_s q_t . k_s) over s <= t.

    Katharopoulos et al. 2020, equations 8 and 16-20.

    Args:
      form: one of `decay.FORMS`.
      q: queries after the feature map, float32 or wider, like the others.
      k: keys after the feature map.
      v: values.
      state: sums of k v and of k over the keys before these.
      epsilon: added to the divisor.
      decays: logarithms of decays of the state: minus infinity where a segment starts.
      **options: keyword arguments of the form.

    Returns:
      The state after these keys and the outputs.
    """
    # An extra value channel that is always 1 accumulates the sum of the weights.
    v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], -1)
    memory = jnp.concatenate([state[0], state[1][..., None]], -1)
    memory, y = form(q, k, v, decays, memory, **options)
    return (memory[..., :-1], memory[..., -1]), y[..., :-1] / (y[..., -1:] + epsilon)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearAttention(LinearTime):
    """Causal linear attention (Katharopoulos et al. 2020, sections 3.2-3.4) with any feature map.

    Attributes:
      features: the feature map that replaces the exponential of the scores.
      key_width: width of queries and keys before the feature map; 0 is D.
    """

    features: FeatureMap = Elu()
    key_width: int = 0

    @property
    def name(self) -> str:
        """The name of the feature map."""
        return self.features.name

    @property
    def head_shapes(self) -> dict[str, tuple[int, int]]:
        """{name: (heads, width)}; queries and keys can be narrower than values."""
        narrow = (self.num_heads, self.key_width or self.head_width)
        return {"query": narrow, "key": narrow, "value": (self.num_heads, self.head_width)}

    def parameters(self) -> dict[str, Parameter]:
        """Returns the projections of `SelfAttention`, and taps if there are any."""
        return self.projection_parameters()

    def init_memory(self, batch: int, value_width: int, dtype: Any) -> PyTree:
        """Returns zeros for the running sums of k v and of k; see `LinearTime`."""
        keys = (batch, self.num_heads, self.features.num_features(self.head_shapes["key"][1]))
        return tuple(
            jnp.zeros(shape, at_least_float32(dtype)) for shape in ((*keys, value_width), keys)
        )

    def prepare(
        self,
        params: dict[str, Array],
        state: PyTree,
        x: Float[Array, "B T M"],
        places: Int[Array, "B T"] | None,
    ) -> tuple[tuple[Any, ...], Float[Array, "B T H D"], dict[str, Any]]:
        """Returns (features of queries and keys, None), values and state; see `LinearTime`."""
        heads, inputs = self.project_qkv(params, state["inputs"], x, places)
        q, k = self.features.queries(heads["query"]), self.features.keys(heads["key"])
        return (q, k, None), heads["value"].astype(at_least_float32(x.dtype)), {"inputs": inputs}

    def recur(
        self,
        params: dict[str, Array],
        queries_keys: Any,
        v: Float[Array, "B T H Dv"],
        memory: PyTree,
        form: str,
    ) -> tuple[PyTree, Float[Array, "B T H Dv"]]:
        """Computes `normalized` with the given form; see `LinearTime`."""
        (q, k, decays), options = queries_keys, self.form_options(form)
        return normalized(
            decay.FORMS[form], q, k, v, memory, self.features.epsilon, decays, **options
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearOptions(ConvolvedOptions):
    """sum_s phi(q_t).phi(k_s) v_s / sum_s phi(q_t).phi(k_s), phi = elu + 1"""

    source = "Katharopoulos et al. 2020, equations 7, 8 and 16-20"
    implementations = tuple(decay.FORMS)
    time = "T C D + T D^2 in chunks of C"
    state = "H D (D + 1)"

    def make(self, context: Context) -> LinearAttention:
        """Returns the mixer."""
        return self.build_from(LinearAttention, context, features=Elu(), key_width=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerformerOptions(ConvolvedOptions):
    """linear attention, phi(x)_i = exp(w_i.x - |x|^2 / 2) with F orthogonal random w_i"""

    source = "Choromanski et al. 2021, equations 4 and 5, lemma 1, section 2.4"
    implementations = tuple(decay.FORMS)
    time = "T C F + T F D in chunks of C"
    state = "H F (D + 1)"

    feature_width: int = size_option(0, "F, random features per head; 0: automatic")
    mechanism_seed: int = size_option(
        0, "seed of the random parts of the mechanism, which are not learned", most=2**63 - 1
    )

    def make(self, context: Context) -> LinearAttention:
        """Returns the mixer."""
        features = RandomFeatures(self.mechanism_seed, self.feature_width)
        return self.build_from(LinearAttention, context, features=features, key_width=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BasedOptions(ConvolvedOptions):
    """linear attention, phi(q).phi(k) = 1 + s + s^2 / 2, s = q.k / sqrt(d), d = 16"""

    source = "Arora et al. 2024 (Based), section 3.1"
    implementations = tuple(decay.FORMS)
    time = "T C d^2 + T d^2 D in chunks of C"
    state = "H (d + 1)(d + 2) / 2 (D + 1)"

    feature_width: int = size_option(
        0, "d, width of queries and keys; 0: 16, or head_width if that is less"
    )

    def make(self, context: Context) -> LinearAttention:
        """Returns the mixer."""
        width = self.feature_width or min(16, self.sizes(context).head_width)
        return self.build_from(LinearAttention, context, features=Taylor(), key_width=width)
