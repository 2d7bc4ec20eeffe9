"""Position encodings that act on vectors: sinusoidal and rotary.

Encodings that act on scores are in relative_biases.py and relative_scores.py.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from research.attention.parts.part_options import MechanismPart, Sizes, length_option
from research.options import OptionError, option

SCALINGS = ("none", "linear", "ntk", "yarn", "llama3")
SCALINGS_OF_LENGTH = ("yarn", "llama3")
"""Scalings that depend on the original length."""
# Peng et al. 2023, section 3.2: YaRN keeps the frequencies of pairs with more than YARN_FAST
# rotations within the original length, and interpolates those with fewer than YARN_SLOW.
YARN_FAST, YARN_SLOW = 32.0, 1.0


def sinusoidal(length: int, width: int) -> Float[np.ndarray, "{length} {width}"]:
    """Returns the sinusoidal table of Vaswani et al. 2017, section 3.5, as float32.

    Entry (t, 2i) is sin(t / 10000**(2i / width)) and entry (t, 2i + 1) the cosine.
    """
    position = np.arange(length)[:, None]
    angle = position / 10000.0 ** (2 * (np.arange(width) // 2) / width)
    return np.where(np.arange(width) % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotates queries or keys by their positions (Su et al. 2021, equations 15 and 34).

    Among the R rotated channels, channel i is paired with channel i + R/2 (as in GPT-NeoX), which
    is the paper's pairing of neighbours up to a permutation of the channels. Pair i is rotated by
    position * base**(-2i / R), before scaling.

    Attributes:
      base: base of the frequencies.
      fraction: share of the D channels that is rotated, the first ones: R = fraction * D, rounded
        down (GPT-NeoX, Black et al. 2022, section 2.1, rotates a quarter).
      scaling: method to extend the context beyond the original length. "linear" divides
        all frequencies by the factor (Chen et al. 2023, equation 4). "ntk" multiplies the base
        by factor**(R / (R - 2)) (bloc97 2023, "NTK-aware scaled RoPE"; Peng et al. 2023,
        definition 1). "yarn" divides the frequencies of slow pairs and keeps those of fast
        ones, and multiplies the vectors by 0.1 ln(factor) + 1 (Peng et al. 2023, section 3.2
        and equation 22). Its ramp between the two is linear in the channel, from whole
        channels, as in the authors' code; the paper's equation 18 is linear in the rotations.
        "llama3" keeps the frequencies of pairs with more than `high_freq_factor` rotations within
        the original length, divides those of pairs with fewer than `low_freq_factor`, and is linear
        in the rotations between (Llama Team 2024, "The Llama 3 Herd of Models": `apply_scaling` in
        the code of Llama 3.1).
      factor: ratio of the extended to the original length.
      original_length: the original length in tokens; used by "yarn" and "llama3" only.
      low_freq_factor: rotations below which "llama3" divides a frequency.
      high_freq_factor: rotations above which "llama3" keeps a frequency.

    Raises:
      ValueError: at construction, an option is out of its range.
    """

    base: float = 10000.0
    fraction: float = 1.0
    scaling: str = "none"
    factor: float = 1.0
    original_length: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self):
        if self.base <= 1:
            raise ValueError(f"rotary: base = {self.base}; it must be more than 1")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"rotary: fraction = {self.fraction}; it must be in (0, 1]")
        if self.scaling not in SCALINGS:
            known = ", ".join(SCALINGS)
            raise ValueError(f"rotary: scaling = {self.scaling!r}; it is one of {known}")
        if self.factor < 1:
            raise ValueError(f"rotary: factor = {self.factor}; it must be at least 1")
        if self.scaling in SCALINGS_OF_LENGTH and self.original_length < 1:
            message = f"scaling {self.scaling!r} needs the length before scaling, at least 1"
            raise ValueError(f"rotary: original_length = {self.original_length}; {message}")
        if not self.low_freq_factor < self.high_freq_factor:
            message = f"it must be less than high_freq_factor = {self.high_freq_factor}"
            raise ValueError(f"rotary: low_freq_factor = {self.low_freq_factor}; {message}")

    def rotated_width(self, width: int) -> int:
        """Returns R, the number of rotated channels of a head of `width` channels.

        Raises:
          ValueError: R is odd or 0.
        """
        turned = int(self.fraction * width)
        if turned < 2 or turned % 2:
            raise ValueError(
                f"rope: head width = {width}, of which {turned} rotate; this must be even, because "
                "channels rotate in pairs"
            )
        return turned

    def frequencies(self, width: int) -> Float[np.ndarray, " pairs"]:
        """Returns the angle per position of each pair in a head of `width` channels, float64."""
        turned = self.rotated_width(width)
        pair = np.arange(turned // 2)
        base = self.base
        if self.scaling == "ntk":
            # A single pair (turned = 2) has frequency 1 for every base, so any exponent will do.
            base = base * self.factor ** (turned / max(turned - 2, 1))
        frequency = base ** (-2.0 * pair / turned)
        if self.scaling == "linear":
            return frequency / self.factor
        if self.scaling == "yarn":
            low = max(math.floor(self._pair_turning(YARN_FAST, turned)), 0)
            high = min(math.ceil(self._pair_turning(YARN_SLOW, turned)), turned - 1)
            # Where low = high the ramp becomes a step.
            slow = np.clip((pair - low) / max(high - low, 1e-3), 0, 1)
            return frequency * (1 - slow) + frequency / self.factor * slow
        if self.scaling == "llama3":
            rotations = self.original_length * frequency / (2 * math.pi)
            span = self.high_freq_factor - self.low_freq_factor
            kept = np.clip((rotations - self.low_freq_factor) / span, 0, 1)
            return frequency * kept + frequency / self.factor * (1 - kept)
        return frequency

    def _pair_turning(self, rotations: float, turned: int) -> float:
        """Returns the fractional pair index with this many rotations in the original length."""
        ratio = self.original_length / (2 * math.pi * rotations)
        return turned * math.log(ratio) / (2 * math.log(self.base))

    @property
    def scale(self) -> float:
        """The factor applied to both queries and keys: YaRN's sqrt(1 / temperature), else 1."""
        return 0.1 * math.log(self.factor) + 1.0 if self.scaling == "yarn" else 1.0

    def __call__(
        self, x: Float[Array, "B T H D"], positions: Integer[Array | np.ndarray, "*#B T"]
    ) -> Float[Array, "B T H D"]:
        """Rotates the vectors by their positions, (T,) or (B, T), in the dtype of x.

        Angles are float32 or wider for every dtype of x, because bfloat16 cannot represent large
        positions exactly. Channels that are not rotated are scaled like the others, so that YaRN's
        scale acts as a temperature of the scores.

        Raises:
          ValueError: the number of rotated channels is odd or 0.
        """
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        frequency = jnp.asarray(self.frequencies(x.shape[-1]), dtype)
        angle = jnp.asarray(positions, dtype)[..., None, None] * frequency
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        pairs = frequency.shape[0]
        left, right, rest = jnp.split(x.astype(dtype), [pairs, 2 * pairs], axis=-1)
        turned = [left * cos - right * sin, right * cos + left * sin, rest]
        y = jnp.concatenate(turned, axis=-1)
        return (y if self.scale == 1.0 else y * self.scale).astype(x.dtype)


def rope(
    x: Float[Array, "B T H D"],
    positions: Integer[Array | np.ndarray, " T"],
    base: float = 10000.0,
) -> Float[Array, "B T H D"]:
    """Applies `Rotary(base)` to all channels, without scaling (Su et al. 2021, equation 15).

    Raises:
      ValueError: D is odd.
    """
    return Rotary(base)(x, positions)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoPosition(MechanismPart):
    """no position encoding"""

    source = "Haviv et al. 2022 (NoPos)"

    def build(self, sizes: Sizes) -> None:
        """Returns None, because the mixer has nothing to apply."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SinusoidalPosition(NoPosition):
    """sines and cosines added to the input"""

    source = "Vaswani et al. 2017, section 3.5"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedPosition(NoPosition):
    """a learned table added to the input"""

    source = "Gehring et al. 2017, section 3.1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopePosition(MechanismPart):
    """rotates pairs of channels of q and k by angles proportional to their position"""

    source = (
        "Su et al. 2021, equations 15 and 34; scaling: Chen et al. 2023, Peng et al. 2023 (YaRN), "
        "Llama Team 2024 (Llama 3.1)"
    )

    rope_base: float = option(10000.0, "the base of RoPE's frequencies", above=0)
    rope_fraction: float = option(
        1.0, "fraction of a head's channels that RoPE rotates", above=0, most=1
    )
    rope_scaling: str = option("none", "how RoPE is scaled to longer sequences", allowed=SCALINGS)
    rope_factor: float = option(1.0, "factor by which RoPE is scaled to longer sequences", least=1)
    rope_original_length: int = length_option(
        0, "length that RoPE is scaled from; 0: the longest sequence / rope_factor"
    )
    rope_low_freq_factor: float = option(
        1.0,
        "pairs with fewer rotations within the original length are interpolated",
        above=0,
        when={"rope_scaling": ("llama3",)},
    )
    rope_high_freq_factor: float = option(
        4.0,
        "pairs with more rotations within the original length stay as they are",
        above=0,
        when={"rope_scaling": ("llama3",)},
    )

    def build(self, sizes: Sizes) -> Rotary:
        """Returns the rotation of queries and keys."""
        turned = sizes.head_width * self.rope_fraction
        if turned % 2 or turned < 2:
            message = f"it rotates channels in pairs, and {turned:g} of head width "
            raise OptionError("position", "rope", f"{message}{sizes.head_width} is not even")
        low, high = self.rope_low_freq_factor, self.rope_high_freq_factor
        if not low < high:
            message = f"it must be less than rope_high_freq_factor = {high:g}"
            raise OptionError("rope_low_freq_factor", low, message)
        shorter = max(1, int(sizes.max_length / self.rope_factor))
        return Rotary(
            base=self.rope_base,
            fraction=self.rope_fraction,
            scaling=self.rope_scaling,
            factor=self.rope_factor,
            original_length=self.rope_original_length or shorter,
            low_freq_factor=low,
            high_freq_factor=high,
        )


# Position encodings that the model adds to its input; mixers apply all others.
MODEL_POSITIONS: dict[str, type[MechanismPart]] = {
    "none": NoPosition,
    "sinusoidal": SinusoidalPosition,
    "learned": LearnedPosition,
}
ROTARY_POSITIONS: dict[str, type[MechanismPart]] = {"rope": RopePosition}
