"""Options of softmax attention and its variants, and the mechanism built from them."""

import dataclasses
import functools
from typing import Any

from research.attention.implementations.attend import (
    IMPLEMENTATIONS,
    choose_implementation,
    unsupported_reason,
)
from research.attention.mixers.mixer_options import AUTO, Context, HeadOptions
from research.attention.mixers.projections import ZERO_CENTERED
from research.attention.parts import biases
from research.attention.parts.biases import Bias
from research.attention.parts.contextual_positions import CONTEXTUAL_POSITIONS
from research.attention.parts.forget_gate import forget_gate
from research.attention.parts.indexer import indexer
from research.attention.parts.masks import Mask
from research.attention.parts.mechanism import Mechanism
from research.attention.parts.multi_token import key_query_convolution
from research.attention.parts.normalizers import Normalizer
from research.attention.parts.part_options import MechanismPart, Sizes, length_option, size_option
from research.attention.parts.positions import ROTARY_POSITIONS, Rotary
from research.attention.parts.predicted_window import PredictedWindow, predicted_window
from research.attention.parts.relative_biases import BIAS_POSITIONS
from research.attention.parts.relative_scores import SCORE_POSITIONS
from research.attention.parts.scores import Score, scaled_dot
from research.attention.parts.selective import Selection
from research.attention.parts.tables import MASKS, NORMALIZERS, POSITIONS, SCORES
from research.attention.parts.talking_heads import talking_heads
from research.options import Joined, OptionError, choice, name_of, option

MASK: Any = {"help": "which keys a query sees", "joined": True}
SELF_AND_CROSS = ("self", "cross")
QK_NORMS = ("none", "rms", ZERO_CENTERED)
LOOKING_BACK = {
    "forget_gate": "decays towards the past",
    "score_conv_queries": "looks back at queries",
    "selective": "selects for later queries",
}
"""Options that need a causal mask, and why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionOptions(HeadOptions):
    """Options common to all softmax attention: mask, biases, normalizer, positions."""

    implementations = tuple(IMPLEMENTATIONS)

    mask: Joined = choice(MASKS, "causal", **MASK)
    normalizer: MechanismPart = choice(NORMALIZERS, "softmax", "maps scores to weights")
    position: MechanismPart = choice(POSITIONS, "none", "position encoding")
    softcap: float = option(
        0.0,
        "bounds scores by cap * tanh(score / cap); 0: off",
        least=0,
        source="Gemma Team 2024 (Gemma 2), section 2",
    )
    block_size: int = length_option(
        0, "tokens per block or chunk, in implementations that have them; 0: automatic"
    )

    def sizes(self, context: Context) -> Sizes:
        """Returns the sizes of the heads; see `HeadOptions`."""
        bidirectional = self.build_mask(context).prefix_length != 0
        return dataclasses.replace(super().sizes(context), bidirectional=bidirectional)

    def build_mask(self, context: Context) -> Mask:
        """Returns the mask."""
        sizes = super().sizes(context)
        alternatives = (
            functools.reduce(lambda a, b: a & b, [part.build(sizes) for part in every])
            for every in self.mask.parts
        )
        return functools.reduce(lambda a, b: a | b, alternatives)

    def score_and_normalizer(self, context: Context) -> tuple[Score, Normalizer]:
        """Returns the score and the normalizer."""
        sizes = self.sizes(context)
        return scaled_dot(sizes.base_head_width), self.normalizer.build(sizes)

    def build_biases(self, context: Context) -> tuple[Bias, ...]:
        """Returns the enabled biases.

        The soft-cap comes first: it bounds the content score, not the position bias.
        """
        found: list[Bias] = [biases.softcap(self.softcap)] if self.softcap else []
        if isinstance(self.position, tuple(BIAS_POSITIONS.values())):
            found.append(self.position.build(self.sizes(context)))
        return tuple(found)

    def build_rotary(self, context: Context) -> Rotary | None:
        """Returns the rotation of queries and keys, if that is the position encoding."""
        turns = isinstance(self.position, tuple(ROTARY_POSITIONS.values()))
        return self.position.build(self.sizes(context)) if turns else None

    def build_predicted_window(self, context: Context) -> PredictedWindow | None:
        """Returns the window whose center each query predicts, if there is one."""
        return None

    def mechanism(self, context: Context) -> Mechanism:
        """Returns the mechanism that these options describe."""
        score, normalizer = self.score_and_normalizer(context)
        biases, focus = self.build_biases(context), self.build_predicted_window(context)
        return Mechanism(score, self.build_mask(context), biases, normalizer, focus)

    def default_implementation(self, context: Context) -> str:
        """Returns the best implementation for the length, the device and the dtype."""
        width, mechanism = self.sizes(context).head_width, self.mechanism(context)
        return choose_implementation(
            context.max_length, mechanism, head_width=width, dtype=context.dtype
        )

    def resolved_implementation(self, context: Context) -> str:
        """Returns the implementation that runs, with "auto" resolved.

        Raises:
          OptionError: the named implementation lacks a part of the mechanism.
        """
        if self.implementation != AUTO and (
            why := unsupported_reason(self.implementation, self.mechanism(context))
        ):
            raise OptionError("implementation", self.implementation, why)
        return super().resolved_implementation(context)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectingOptions(AttentionOptions):
    """Options of softmax attention that can select keys by a lightning indexer."""

    index_top: int = length_option(
        0,
        "keys that a lightning indexer selects for each query; as many as a sequence has: all, as "
        "in the paper's dense warm-up; 0: no indexer",
        source="DeepSeek-AI 2025 (DeepSeek-V3.2-Exp), section 2.1, equations 1-4",
        where=("self",),
    )
    index_heads: int = size_option(
        4, "query heads of the indexer", least=1, unless={"index_top": (0,)}
    )
    index_width: int = size_option(
        0, "width of a head of the indexer; 0: head_width", unless={"index_top": (0,)}
    )

    def query_width(self, context: Context) -> int:
        """Returns the width of what queries are projected from."""
        return context.width

    def mechanism(self, context: Context) -> Mechanism:
        """Returns the mechanism that these options describe."""
        made = super().mechanism(context)
        if not self.index_top:
            return made
        width = self.index_width or self.sizes(context).head_width
        sizes = context.width, self.query_width(context), self.index_heads, width, self.index_top
        chosen = indexer(*sizes, self.build_rotary(context), context.init_stddev)
        return dataclasses.replace(made, selection=chosen)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredOptions(SelectingOptions):
    """Options of softmax attention, whatever replaces its softmax."""

    num_kv_heads: int = size_option(
        0,
        "K, key/value heads, each shared by a group of query heads; 0: num_heads, 1: multi-query",
        source="Shazeer 2019, section 3; Ainslie et al. 2023, section 2.2",
    )
    score: MechanismPart = choice(SCORES, "scaled_dot", "how well a query and a key match")
    qk_norm: str = option(
        "none",
        "normalizes queries and keys over the head width, with learned gains, before RoPE; "
        "zero_centered: gains are 1 + a parameter",
        allowed=QK_NORMS,
        source="Henry et al. 2020; Dehghani et al. 2023 (ViT-22B), section 2; "
        "Qwen Team 2025 (Qwen3), section 2",
        where=SELF_AND_CROSS,
    )
    qkv_bias: bool = option(
        False,
        "adds biases to the projections of queries, keys and values, and to nothing else",
        source="Bai et al. 2023 (Qwen), section 2.3; Yang et al. 2024 (Qwen2), section 2.2",
        where=SELF_AND_CROSS,
    )
    predicted_window: int = length_option(
        0,
        "half-width of a Gaussian window around a position that the query predicts; 0: off",
        source="Luong et al. 2015, equations 9-10 (local-p)",
    )
    forget_gate: bool = option(
        False,
        "scores decay by gates f = sigmoid(w x + b) of the tokens between query and key",
        source="Lin et al. 2025 (Forgetting Transformer), section 3",
        where=("self",),
    )
    score_conv_queries: int = size_option(
        0,
        "latest queries over which scores are convolved before the softmax; 0: off",
        source="Golovneva et al. 2025 (Multi-Token Attention), equation 5",
        where=("self",),
    )
    score_conv_keys: int = size_option(
        11,
        "neighbouring keys over which scores are convolved",
        least=1,
        unless={"score_conv_queries": (0,)},
    )
    selective: bool = option(
        False,
        "subtracts from scores what the first head of earlier queries gave the same key",
        source="Leviathan et al. 2024 (Selective Attention), section 3",
        where=("self",),
    )
    talking_heads: bool = option(
        False,
        "mixes the scores, and then the weights, across heads",
        source="Shazeer et al. 2020, section 3",
        where=SELF_AND_CROSS,
    )
    output_gate: bool = option(
        False,
        "multiplies the heads' outputs by sigmoid(x W)",
        source="Qiu et al. 2025, section 2.2",
        where=SELF_AND_CROSS,
    )

    def sizes(self, context: Context) -> Sizes:
        """Returns the sizes of the heads; see `HeadOptions`.

        Raises:
          OptionError: key heads do not divide the query heads, or biases are asked for twice.
        """
        if self.qkv_bias and context.use_bias:
            message = "use_bias=True adds these biases already; leave it False"
            raise OptionError("qkv_bias", True, message)
        return with_kv_heads(super().sizes(context), self.num_kv_heads)

    def score_and_normalizer(self, context: Context) -> tuple[Score, Normalizer]:
        """Returns the chosen pair, wrapped by relative scores and talking heads if enabled.

        Raises:
          OptionError: the score does not fit the position encoding or the norm of queries and keys.
        """
        sizes = self.sizes(context)
        score, normalizer = self.score.build(sizes), self.normalizer.build(sizes)
        if self.qk_norm != "none" and not {"query", "key"} <= set(score.required_projections):
            which = name_of(self.score, SCORES)
            message = f"it normalizes queries and keys, and score {which!r} does not read both"
            raise OptionError("qk_norm", self.qk_norm, message)
        if isinstance(self.position, tuple(SCORE_POSITIONS.values())):
            name = name_of(self.position, POSITIONS)
            if not score.has_dot_form:
                which = name_of(self.score, SCORES)
                message = f"it needs a score with a dot product, which {which!r} is not"
                raise OptionError("position", name, message)
            score = self.position.build(sizes)(score)
        if self.talking_heads:
            return talking_heads(score, normalizer, self.num_heads)
        return score, normalizer

    def build_biases(self, context: Context) -> tuple[Bias, ...]:
        """Returns the enabled biases, in the order that they apply in.

        Raises:
          OptionError: a part needs a causal mask, and this is not.
        """
        found = super().build_biases(context)
        if isinstance(self.position, tuple(CONTEXTUAL_POSITIONS.values())):
            found = (*found, self.position.build(self.sizes(context)))
        causal = self.build_mask(context).prefix_length == 0
        for name, what in LOOKING_BACK.items():
            if (value := getattr(self, name)) and not causal:
                message = f"it {what}, and mask {self.mask.text!r} is not causal"
                raise OptionError(name, value, message)
        if self.forget_gate:
            width, heads = self.sizes(context).width, self.num_heads
            found = (*found, forget_gate(width, heads, context.init_stddev))
        if self.score_conv_queries:
            kernel = self.num_heads, self.score_conv_queries, self.score_conv_keys
            found = (*found, key_query_convolution(*kernel))
        return (*found, Selection()) if self.selective else found

    def build_predicted_window(self, context: Context) -> PredictedWindow | None:
        """Returns the window whose center each query predicts, if there is one."""
        width = self.sizes(context).head_width
        size = self.predicted_window
        return predicted_window(self.num_heads, width, size) if size else None


def with_kv_heads(sizes: Sizes, num_kv_heads: int) -> Sizes:
    """Returns sizes with this many key/value heads; 0 means one per query head.

    Raises:
      OptionError: they do not divide the number of query heads.
    """
    kv_heads = num_kv_heads or sizes.num_heads
    if sizes.num_heads % kv_heads:
        message = f"must divide num_heads = {sizes.num_heads}"
        raise OptionError("num_kv_heads", kv_heads, message)
    return dataclasses.replace(sizes, num_kv_heads=kv_heads)
