"""Every attention mechanism by name, and the options that choose among them.

Adding a mechanism is one file (or one dataclass in an existing one) plus one line in a table here.
The conformance suite goes through the tables, so an entry is tested by being registered.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from research.attention import (
    biases,
    convolution,
    linear,
    masks,
    scores,
    self_attention,
)
from research.attention.biases import Bias
from research.attention.errors import MechanismError
from research.attention.implementations import IMPLEMENTATIONS, refusal
from research.attention.masks import Mask
from research.attention.mixer import Mixer
from research.attention.normalizers import NORMALIZERS, Normalizer
from research.attention.scores import Score

AUTO = "auto"
# Longer than this, keeping every score costs more than recomputing it block by block.
DENSE_UP_TO = 1024


class MixerEntry(NamedTuple):
    """A registered mixer.

    Attributes:
        make: builds it from validated options.
        parts: the options it has, of ``PARTS``; all others have to be left at their defaults.
        implementations: the names it accepts.
        auto: which of them "auto" stands for.
    """

    make: Callable[["Options"], Mixer]
    parts: frozenset[str]
    implementations: tuple[str, ...]
    auto: Callable[["Options"], str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Every option a mechanism can take, validated at construction.

    Attributes:
        width: M, of the sequence.
        num_heads: H. Mixers without heads do not look at it.
        max_length: the longest sequence.
        num_kv_heads: K, heads of keys and values; 0 means H.
        head_width: D; 0 means M / H.
        mixer: a name in ``MIXERS``.
        score: a name in ``SCORES``.
        temperature: of the cosine score.
        mask: a name in ``MASKS``.
        window: how many keys the window mask leaves visible, the query's own included.
        prefix_length: how many tokens the prefix mask lets see each other.
        normalizer: a name in ``NORMALIZERS``.
        position: a name in ``POSITIONS``.
        rope_base: the base of RoPE's frequencies.
        softcap: caps scores at plus and minus this; 0 is off.
        filter_length: taps of a convolution; 0 means max_length.
        implementation: "auto", or a name the mixer accepts. Never changes what is computed.
        block_size: of implementations with blocks or chunks; 0 chooses.
        use_bias: adds biases to the projections.
        init_stddev: initial standard deviation of matrices; 0 is 1 / sqrt(fan in).
        num_layers: L; output projections start 1/sqrt(2 L) smaller (Radford et al. 2019, 2.3).

    Raises:
        MechanismError: an option is wrong; one line names the field, the value and what is right.
    """

    width: int
    num_heads: int
    max_length: int
    num_kv_heads: int = 0
    head_width: int = 0
    mixer: str = "softmax"
    score: str = "scaled_dot"
    temperature: float = 0.1
    mask: str = "causal"
    window: int = 0
    prefix_length: int = 0
    normalizer: str = "softmax"
    position: str = "none"
    rope_base: float = 10000.0
    softcap: float = 0.0
    filter_length: int = 0
    implementation: str = AUTO
    block_size: int = 0
    use_bias: bool = False
    init_stddev: float = 0.02
    num_layers: int = 1

    def __post_init__(self):
        _check_types(self)
        _check_ranges(self)
        _check_names(self)
        _check_parts(self)
        if "num_heads" in MIXERS[self.mixer].parts:
            _check_heads(self)
        _check_mask(self)
        _check_implementation(self)

    @property
    def kv_heads(self) -> int:
        """K, resolved."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_size(self) -> int:
        """D, resolved."""
        return self.head_width or self.width // self.num_heads

    @property
    def resolved_implementation(self) -> str:
        """The implementation that runs."""
        if self.implementation != AUTO:
            return self.implementation
        return MIXERS[self.mixer].auto(self)

    @property
    def out_scale(self) -> float:
        """What initial output projections are multiplied by: GPT-2's 1 / sqrt(2 L)."""
        return (2 * self.num_layers) ** -0.5

    def build_score(self) -> Score:
        """The chosen score."""
        return SCORES[self.score](self)

    def build_mask(self) -> Mask:
        """The chosen mask."""
        return MASKS[self.mask](self)

    def build_biases(self) -> tuple[Bias, ...]:
        """The biases that are on, in the order of ``BIASES``."""
        found = (build(self) for build in BIASES.values())
        return tuple(bias for bias in found if bias is not None)

    def build_normalizer(self) -> Normalizer:
        """The chosen normalizer."""
        return NORMALIZERS[self.normalizer]


def _auto_softmax(options: Options) -> str:
    if options.max_length <= DENSE_UP_TO or _refusal(options, "blockwise"):
        return "dense"
    return "blockwise"


SCORES: dict[str, Callable[[Options], Score]] = {
    "dot": lambda o: scores.dot(),
    "scaled_dot": lambda o: scores.scaled_dot(),
    "cosine": lambda o: scores.cosine(o.temperature),
}

MASKS: dict[str, Callable[[Options], Mask]] = {
    "full": lambda o: masks.full(),
    "causal": lambda o: masks.causal(),
    "window": lambda o: masks.window(o.window),
    "prefix": lambda o: masks.prefix(o.prefix_length),
}

# Each returns None when the options leave it off. The cap comes first: it bounds what the vectors
# say, not what the distance takes off.
BIASES: dict[str, Callable[[Options], Bias | None]] = {
    "softcap": lambda o: biases.softcap(o.softcap) if o.softcap else None,
    "alibi": lambda o: biases.alibi(o.num_heads) if o.position == "alibi" else None,
}

# Who applies a position encoding: the model to its input, or the mixer.
POSITIONS: dict[str, str] = {
    "none": "model",
    "sinusoidal": "model",
    "learned": "model",
    "rope": "mixer",
    "alibi": "mixer",
}

# Options that only some mixers have. "position" stands for those that the mixer applies.
PARTS = (
    "num_heads",
    "num_kv_heads",
    "head_width",
    "score",
    "temperature",
    "mask",
    "window",
    "prefix_length",
    "normalizer",
    "position",
    "rope_base",
    "softcap",
    "filter_length",
    "block_size",
    "use_bias",
)

MIXERS: dict[str, MixerEntry] = {
    # Vaswani et al. 2017, equation 1 and section 3.2.2.
    "softmax": MixerEntry(
        make=self_attention.make,
        parts=frozenset(PARTS) - {"filter_length"},
        implementations=tuple(IMPLEMENTATIONS),
        auto=_auto_softmax,
    ),
    # Katharopoulos et al. 2020, equations 8 and 16-20.
    "linear": MixerEntry(
        make=linear.make,
        parts=frozenset({"num_heads", "head_width", "block_size", "use_bias"}),
        implementations=tuple(linear.FORMS),
        auto=lambda options: "chunkwise",
    ),
    # Arora et al. 2023, BaseConv.
    "gated_convolution": MixerEntry(
        make=convolution.make,
        parts=frozenset({"filter_length"}),
        implementations=("convolution",),
        auto=lambda options: "convolution",
    ),
}


def make_mixer(options: Options) -> Mixer:
    """The mixer these options describe."""
    return MIXERS[options.mixer].make(options)


def _unknown(field: str, value: str, allowed: Iterable[str]) -> MechanismError:
    allowed = list(allowed)
    close = difflib.get_close_matches(value, allowed, n=1)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return MechanismError(field, value, f"unknown; {guess}it is one of {', '.join(allowed)}")


def _check_types(options: Options) -> None:
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        kind: Any = field.type
        wanted = (int, float) if kind is float else kind
        if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
            message = f"must be of type {kind.__name__}, not {type(value).__name__}"
            raise MechanismError(field.name, value, message)


def _check_ranges(options: Options) -> None:
    for field in ("width", "num_heads", "max_length", "num_layers"):
        if getattr(options, field) < 1:
            raise MechanismError(field, getattr(options, field), "must be at least 1")
    fields = ("num_kv_heads", "head_width", "window", "prefix_length", "filter_length")
    for field in (*fields, "block_size", "softcap", "init_stddev"):
        if not 0 <= getattr(options, field) < float("inf"):
            raise MechanismError(field, getattr(options, field), "must be 0 or more, and finite")
    for field in ("temperature", "rope_base"):
        if not 0 < getattr(options, field) < float("inf"):
            raise MechanismError(field, getattr(options, field), "must be positive and finite")


def _check_names(options: Options) -> None:
    tables = {"mixer": MIXERS, "score": SCORES, "mask": MASKS}
    for field, table in (tables | {"normalizer": NORMALIZERS, "position": POSITIONS}).items():
        value = getattr(options, field)
        if value not in table:
            raise _unknown(field, value, table)


def _check_parts(options: Options) -> None:
    """Refuses options that this mixer would ignore."""
    parts = MIXERS[options.mixer].parts
    for field in dataclasses.fields(options):
        name, value = field.name, getattr(options, field.name)
        if name not in PARTS or name in parts or name == "num_heads" or value == field.default:
            continue
        if name == "position" and POSITIONS[value] == "model":
            continue
        having = ", ".join(other for other, entry in MIXERS.items() if name in entry.parts)
        message = (
            f"mixer {options.mixer!r} has no such part, {having} has; leave it {field.default!r}"
        )
        raise MechanismError(name, value, message)


def _check_heads(options: Options) -> None:
    heads, kv_heads = options.num_heads, options.kv_heads
    if not options.head_width and options.width % heads:
        message = f"width = {options.width} is not divisible by it; choose a divisor or head_width"
        raise MechanismError("num_heads", heads, message)
    if heads % kv_heads:
        raise MechanismError("num_kv_heads", kv_heads, f"must divide num_heads = {heads}")
    if options.position == "rope" and options.head_size % 2:
        message = f"rope turns channels in pairs, and the head width {options.head_size} is odd"
        raise MechanismError("position", options.position, message)


def _check_mask(options: Options) -> None:
    for mask, field in (("window", "window"), ("prefix", "prefix_length")):
        value = getattr(options, field)
        if options.mask == mask and not value:
            raise MechanismError(field, value, f"mask {mask!r} needs it to be at least 1")
        if options.mask != mask and value:
            message = f"mask {options.mask!r} ignores it; use mask {mask!r} or leave it 0"
            raise MechanismError(field, value, message)


def _refusal(options: Options, implementation: str) -> str:
    return refusal(
        implementation,
        options.build_score(),
        options.build_mask(),
        options.build_biases(),
        options.build_normalizer(),
    )


def _check_implementation(options: Options) -> None:
    name, entry = options.implementation, MIXERS[options.mixer]
    if name == AUTO:
        return
    if name not in entry.implementations:
        everywhere = {n for other in MIXERS.values() for n in other.implementations}
        if name not in everywhere:
            raise _unknown("implementation", name, (AUTO, *entry.implementations))
        allowed = ", ".join((AUTO, *entry.implementations))
        message = f"mixer {options.mixer!r} is not implemented that way; it is one of {allowed}"
        raise MechanismError("implementation", name, message)
    if name in IMPLEMENTATIONS and (why := _refusal(options, name)):
        raise MechanismError("implementation", name, why)
