"""The options of a mechanism, as they stand in a config."""

import dataclasses

from research.attention import checks, registry
from research.attention.mixers.mixer import Mixer
from research.attention.parts.biases import Bias
from research.attention.parts.focus import PredictedWindow, predicted_window
from research.attention.parts.heads import talking_heads
from research.attention.parts.masks import Mask
from research.attention.parts.mechanism import Mechanism
from research.attention.parts.normalizers import Normalizer
from research.attention.parts.positions import Rotary
from research.attention.parts.scores import Score


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
        score_width: A, the hidden width of additive scores; 0 means D.
        temperature: of the cosine scores.
        mask: a name in ``MASKS``, or several joined by "&" and "|"; "&" binds closer.
        window: keys that a window, local or dilated mask leaves visible (on each side: local).
        prefix_length: tokens that the prefix mask lets see each other.
        dilation: distance between the keys of the dilated mask.
        stride: of the strided mask.
        global_tokens: leading tokens that see all and that all see.
        block_length: tokens to a block of the bigbird and moba masks.
        top_blocks: blocks that a query of the moba mask sees, its own among them.
        random_blocks: random blocks that a block of the bigbird mask sees.
        predicted_window: half the width of a window whose place each query predicts; 0 is off.
        normalizer: a name in ``NORMALIZERS``.
        sharpening: multiplies the scores before the softmax.
        position: a name in ``POSITIONS``.
        rope_base: the base of RoPE's frequencies.
        rope_fraction: of the channels that RoPE turns.
        rope_scaling: how RoPE is stretched to longer sequences.
        rope_factor: how far it is stretched.
        rope_original_length: the length it is stretched from; 0 means max_length / rope_factor.
        max_distance: where relative positions stop telling distances apart.
        num_buckets: of T5's relative positions.
        softcap: caps scores at plus and minus this; 0 is off.
        forget_gate: scores decay by gates of the tokens between query and key.
        talking_heads: mixes scores and weights over the heads.
        output_gate: multiplies what the heads read by a sigmoid of the input.
        latent_width: of the vector that latent attention keeps of a token; 0 means M / 2.
        rope_width: channels of latent attention's keys that turn; 0 means D / 2.
        filter_length: taps of the gated convolution; 0 means max_length.
        short_convolution: taps of a convolution on queries, keys and values; 0 is none.
        feature_width: features of a linear attention; 0 chooses.
        rank: positions that Linformer's keys are projected to; 0 means max_length / 4.
        chunk: keys that monotonic chunkwise attention looks back at.
        mechanism_seed: of what is drawn once and never learned (bigbird, performer).
        implementation: "auto", or a name the mixer accepts. Never changes what is computed.
        block_size: of implementations with blocks or chunks; 0 chooses.
        use_bias: adds biases to the projections.
        init_stddev: initial standard deviation of matrices; 0 is 1 / sqrt(fan in).
        dtype: of the sequence; some implementations have only some.
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
    score_width: int = 0
    temperature: float = 0.1
    mask: str = "causal"
    window: int = 0
    prefix_length: int = 0
    dilation: int = 0
    stride: int = 0
    global_tokens: int = 0
    block_length: int = 0
    top_blocks: int = 0
    random_blocks: int = 1
    predicted_window: int = 0
    normalizer: str = "softmax"
    sharpening: float = 1.0
    position: str = "none"
    rope_base: float = 10000.0
    rope_fraction: float = 1.0
    rope_scaling: str = "none"
    rope_factor: float = 1.0
    rope_original_length: int = 0
    max_distance: int = 128
    num_buckets: int = 32
    softcap: float = 0.0
    forget_gate: bool = False
    talking_heads: bool = False
    output_gate: bool = False
    latent_width: int = 0
    rope_width: int = 0
    filter_length: int = 0
    short_convolution: int = 0
    feature_width: int = 0
    rank: int = 0
    chunk: int = 0
    mechanism_seed: int = 0
    implementation: str = registry.AUTO
    block_size: int = 0
    use_bias: bool = False
    init_stddev: float = 0.02
    dtype: str = "float32"
    num_layers: int = 1

    def __post_init__(self):
        checks.check(self)

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
        if self.implementation != registry.AUTO:
            return self.implementation
        return registry.MIXERS[self.mixer].auto(self)

    @property
    def out_scale(self) -> float:
        """What initial output projections are multiplied by: GPT-2's 1 / sqrt(2 L)."""
        return (2 * self.num_layers) ** -0.5

    def build_score(self) -> Score:
        """The chosen score, with the position encoding that wraps it, if that is one."""
        score = registry.SCORES[self.score].build(self)
        if self.position in registry.SCORE_POSITIONS:
            score = registry.SCORE_POSITIONS[self.position].build(self)(score)
        return self._talking(score)[0]

    def build_normalizer(self) -> Normalizer:
        """The chosen normalizer."""
        return self._talking(Score())[1]

    def build_mask(self) -> Mask:
        """The chosen mask."""
        return registry.build_mask(self)

    def build_biases(self) -> tuple[Bias, ...]:
        """The biases that are on. The cap comes first: it bounds what the vectors say, not what the
        distance takes off."""
        found = [registry.SWITCHES["softcap"].build(self)] if self.softcap else []
        if self.position in registry.BIAS_POSITIONS:
            found.append(registry.BIAS_POSITIONS[self.position].build(self))
        if self.forget_gate:
            found.append(registry.SWITCHES["forget_gate"].build(self))
        return tuple(found)

    def build_rotary(self) -> Rotary | None:
        """The rotation of queries and keys, if that is the position encoding."""
        found = registry.ROTARY_POSITIONS.get(self.position)
        return found and found.build(self)

    def build_focus(self) -> PredictedWindow | None:
        """The predicted window, if there is one."""
        size = self.predicted_window
        return predicted_window(self.num_heads, self.head_size, size) if size else None

    @property
    def mechanism(self) -> Mechanism:
        """How queries read keys in softmax attention."""
        return Mechanism(
            self.build_score(),
            self.build_mask(),
            self.build_biases(),
            self.build_normalizer(),
            self.build_focus(),
        )

    def _talking(self, score: Score) -> tuple[Score, Normalizer]:
        normalizer = registry.NORMALIZERS[self.normalizer].build(self)
        if self.talking_heads:
            return talking_heads(score, normalizer, self.num_heads)
        return score, normalizer


def make_mixer(options: Options) -> Mixer:
    """The mixer these options describe."""
    return registry.MIXERS[options.mixer].make(options)
