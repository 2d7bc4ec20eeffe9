"""Every attention mechanism by name.

Adding one is one file (or one dataclass in an existing one) plus one line in a table here or, for a
part of softmax attention, in the table of its module. The conformance suite and MECHANISMS.md go
through the tables, so an entry is tested and documented by being registered.
"""

import functools
from typing import TYPE_CHECKING

from research.attention.entries import MixerEntry, Part
from research.attention.mixers.differential import DIFFERENTIAL
from research.attention.mixers.latent import LATENT
from research.attention.mixers.linear.convolution import GATED_CONVOLUTION
from research.attention.mixers.linear.delta import DELTA, GATED_DELTA
from research.attention.mixers.linear.gated import GATED_LINEAR, RETENTION
from research.attention.mixers.linear.kernelized import BASED, LINEAR, PERFORMER
from research.attention.mixers.linear.state_space import STATE_SPACE
from research.attention.mixers.linformer import LINFORMER
from research.attention.mixers.rnn import GRU, LSTM
from research.attention.mixers.self_attention import SOFTMAX
from research.attention.mixers.sequential.stepwise import (
    COVERAGE,
    LOCATION_AWARE,
    MONOTONIC,
    MONOTONIC_CHUNKWISE,
)
from research.attention.parts import biases
from research.attention.parts.block_selection import SELECTIONS
from research.attention.parts.forgetting import FORGET_GATE
from research.attention.parts.masks import MASKS as CONTIGUOUS_MASKS
from research.attention.parts.masks import Mask
from research.attention.parts.normalizers import NORMALIZERS
from research.attention.parts.positions import Rotary
from research.attention.parts.relative_biases import BIAS_POSITIONS
from research.attention.parts.relative_scores import SCORE_POSITIONS
from research.attention.parts.scores import SCORES
from research.attention.parts.sparse_masks import SPARSE_MASKS

if TYPE_CHECKING:
    from research.attention.options import Options

AUTO = "auto"

# Position encodings that the model applies to its input; the mixer applies all others.
MODEL_POSITIONS: dict[str, Part] = {
    "none": Part(lambda o: None, "Haviv et al. 2022 (NoPos)", "no position encoding"),
    "sinusoidal": Part(
        lambda o: None, "Vaswani et al. 2017, section 3.5", "sines and cosines added to the input"
    ),
    "learned": Part(
        lambda o: None, "Gehring et al. 2017, section 3.1", "a learned table added to the input"
    ),
}

ROTARY_POSITIONS: dict[str, Part] = {
    "rope": Part(
        lambda o: Rotary(
            base=o.rope_base,
            fraction=o.rope_fraction,
            scaling=o.rope_scaling,
            factor=o.rope_factor,
            original_length=o.rope_original_length or max(1, int(o.max_length / o.rope_factor)),
        ),
        "Su et al. 2021, equations 15 and 34; scaling: Chen et al. 2023, Peng et al. 2023 (YaRN)",
        "pairs of channels of q and k turn by angles that grow with the position",
        takes=("rope_base", "rope_fraction", "rope_scaling", "rope_factor", "rope_original_length"),
    ),
}

MASKS: dict[str, Part] = {**CONTIGUOUS_MASKS, **SPARSE_MASKS, **SELECTIONS}

POSITIONS: dict[str, Part] = {
    **MODEL_POSITIONS,
    **ROTARY_POSITIONS,
    **BIAS_POSITIONS,
    **SCORE_POSITIONS,
}

# The tables that an option chooses from by name.
TABLES: dict[str, dict[str, Part]] = {
    "score": SCORES,
    "mask": MASKS,
    "normalizer": NORMALIZERS,
    "position": POSITIONS,
}

# Switches of softmax attention that are parts of their own.
SWITCHES: dict[str, Part] = {
    "num_kv_heads": Part(
        lambda o: None,
        "Shazeer 2019, section 3; Ainslie et al. 2023, section 2.2",
        "groups of query heads share a head of keys and values",
    ),
    "softcap": Part(
        lambda o: biases.softcap(o.softcap),
        "Gemma Team 2024 (Gemma 2), section 2",
        "cap * tanh(score / cap)",
    ),
    "forget_gate": FORGET_GATE,
    "predicted_window": Part(
        lambda o: None,
        "Luong et al. 2015, equations 9-10 (local-p)",
        "a window around a position that the query predicts, Gaussian weights in it",
    ),
    "talking_heads": Part(
        lambda o: None,
        "Shazeer et al. 2020, section 3",
        "scores, and then weights, are mixed over the heads",
        where=("self", "cross"),
    ),
    "output_gate": Part(
        lambda o: None,
        "Qiu et al. 2025, section 2.2",
        "what the heads read times sigmoid(x W)",
        where=("self", "cross"),
    ),
}

MIXERS: dict[str, MixerEntry] = {
    "softmax": SOFTMAX,
    "latent": LATENT,
    "differential": DIFFERENTIAL,
    "location_aware": LOCATION_AWARE,
    "coverage": COVERAGE,
    "monotonic": MONOTONIC,
    "monotonic_chunkwise": MONOTONIC_CHUNKWISE,
    "linear": LINEAR,
    "performer": PERFORMER,
    "based": BASED,
    "retention": RETENTION,
    "gated_linear": GATED_LINEAR,
    "state_space": STATE_SPACE,
    "delta": DELTA,
    "gated_delta": GATED_DELTA,
    "gated_convolution": GATED_CONVOLUTION,
    "gru": GRU,
    "lstm": LSTM,
    "linformer": LINFORMER,
}


def mask_names(text: str) -> list[list[str]]:
    """The names in a mask option: alternatives ("|") of names that all have to allow ("&")."""
    return [[name.strip() for name in every.split("&")] for every in text.split("|")]


def build_mask(options: "Options") -> Mask:
    """The mask of names joined by "&" and "|"."""
    alternatives = [
        functools.reduce(lambda a, b: a & b, [MASKS[name].build(options) for name in every])
        for every in mask_names(options.mask)
    ]
    return functools.reduce(lambda a, b: a | b, alternatives)
