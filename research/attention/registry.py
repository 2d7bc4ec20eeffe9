"""The table of all mixers by name.

A new mixer is one file and one line here; a part of softmax attention gets its line in the table of
its own module. The conformance suite and docs/mechanism-list.md iterate over these tables, so
registering a mechanism is enough to have it tested and documented.
"""

from research.attention.mixers.across_layers import SoftmaxOptions
from research.attention.mixers.differential import DifferentialOptions
from research.attention.mixers.latent import LatentOptions
from research.attention.mixers.linear.convolution import GatedConvolutionOptions
from research.attention.mixers.linear.delta import DeltaOptions, GatedDeltaOptions
from research.attention.mixers.linear.delta_product import DeltaProductOptions
from research.attention.mixers.linear.gated import GatedLinearOptions, RetentionOptions
from research.attention.mixers.linear.hedgehog import HedgehogOptions
from research.attention.mixers.linear.kernelized import (
    BasedOptions,
    LinearOptions,
    PerformerOptions,
)
from research.attention.mixers.linear.kimi_delta import KimiDeltaOptions
from research.attention.mixers.linear.rwkv7 import Rwkv7Options
from research.attention.mixers.linear.state_space import StateSpaceOptions
from research.attention.mixers.linformer import LinformerOptions
from research.attention.mixers.mixer_options import MixerOptions
from research.attention.mixers.native_sparse import NativeSparseOptions
from research.attention.mixers.path import PathOptions
from research.attention.mixers.rnn import GruOptions, LstmOptions
from research.attention.mixers.sequential.stepwise import (
    CoverageOptions,
    LocationAwareOptions,
    MonotonicChunkwiseOptions,
    MonotonicOptions,
)
from research.attention.mixers.tensor_product import TensorProductOptions
from research.options import Declared, declarations

MIXERS: dict[str, type[MixerOptions]] = {
    "softmax": SoftmaxOptions,
    "latent": LatentOptions,
    "differential": DifferentialOptions,
    "native_sparse": NativeSparseOptions,
    "tensor_product": TensorProductOptions,
    "path": PathOptions,
    "location_aware": LocationAwareOptions,
    "coverage": CoverageOptions,
    "monotonic": MonotonicOptions,
    "monotonic_chunkwise": MonotonicChunkwiseOptions,
    "linear": LinearOptions,
    "performer": PerformerOptions,
    "based": BasedOptions,
    "hedgehog": HedgehogOptions,
    "retention": RetentionOptions,
    "gated_linear": GatedLinearOptions,
    "state_space": StateSpaceOptions,
    "delta": DeltaOptions,
    "gated_delta": GatedDeltaOptions,
    "kimi_delta": KimiDeltaOptions,
    "delta_product": DeltaProductOptions,
    "rwkv7": Rwkv7Options,
    "gated_convolution": GatedConvolutionOptions,
    "gru": GruOptions,
    "lstm": LstmOptions,
    "linformer": LinformerOptions,
}

MECHANISM_OPTIONS: dict[str, Declared] = {
    name: declared
    for name, declared in declarations(SoftmaxOptions).items()
    if declared.option.source
}
"""Options of softmax attention that are mechanisms in their own right."""
