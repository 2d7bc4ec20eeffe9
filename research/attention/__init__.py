"""Attention mechanisms as pure functions of arrays.

A mechanism is a composition of a score, a mask, biases and a normalizer; how it is computed is a
separate choice. Arrays are named by one alphabet: B batch, T query length, S key length, H heads,
K key/value heads, D head width, M model width.
"""

from research.attention.errors import Unsupported
from research.attention.implementations.attend import IMPLEMENTATIONS, attend
from research.attention.mixers.mixer import Mixer, init_params, state_bytes
from research.attention.parameters import Parameter
from research.attention.parts.biases import Bias, alibi, softcap
from research.attention.parts.masks import Mask, causal, full, padding, prefix, window
from research.attention.parts.mechanism import Mechanism
from research.attention.parts.normalizers import Normalizer, softmax
from research.attention.parts.positions import rope, sinusoidal
from research.attention.parts.scores import Score, cosine, dot, scaled_dot
from research.attention.parts.segments import segments
from research.attention.parts.tables import NORMALIZERS
from research.attention.registry import MIXERS
from research.attention.spec import MixerSpec, make_mixer, mixer_spec
from research.options import OptionError

__all__ = [
    "IMPLEMENTATIONS",
    "MIXERS",
    "NORMALIZERS",
    "OptionError",
    "Bias",
    "Mask",
    "Mechanism",
    "Mixer",
    "Normalizer",
    "MixerSpec",
    "Parameter",
    "Score",
    "Unsupported",
    "alibi",
    "attend",
    "causal",
    "cosine",
    "dot",
    "full",
    "init_params",
    "make_mixer",
    "mixer_spec",
    "padding",
    "prefix",
    "rope",
    "scaled_dot",
    "segments",
    "sinusoidal",
    "softcap",
    "softmax",
    "state_bytes",
    "window",
]
