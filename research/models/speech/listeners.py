"""Listeners: encoders that map frames of sound to fewer states, for a speller or CTC.

Padding is on the right and has no effect: the states of a row do not depend on the padded length of
the batch, and are zero beyond its end.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.attention.mixers.across_layers import AcrossLayers
from research.attention.mixers.rnn import CELLS, run
from research.attention.parameters import (
    Axes,
    Parameter,
    init_function,
    matrix_axes,
    table_axes,
    vector_axes,
)
from research.attention.parameters import matrix_init as stddev_init
from research.attention.parts.masks import padding
from research.attention.parts.positions import sinusoidal
from research.attention.spec import MixerSpec
from research.errors import UserError
from research.models import transformer
from research.models.block import TransformerConfig
from research.models.layers import Substitutes, implementation_names, part_spec, with_substitute
from research.models.primitives import linear, matrix_init
from research.models.recurrent.networks import DIRECTIONS, Drop
from research.models.residual import HIDDEN
from research.models.speech import conformer
from research.models.speech.conformer import ConformerStack
from research.models.transformer import EncoderStack, transformer_config
from research.parallel.rules import constrain

LISTENERS = ("bilstm", "transformer", "conformer")
SUBSAMPLINGS = ("convolution", "pyramid")
MOST_LEVELS = 3
CHANNELS = 32
"""Channels of the convolutions; few, because they run at the frame rate."""
FRAMES = 512
"""Nominal maximum length passed to mechanisms that need one; sequences may be longer."""
AXES = (
    transformer.AXES
    | conformer.AXES
    | {
        # The first one reads the input.
        f"convolution_{i}": (matrix_axes if i else table_axes)("taps", "taps", "", "", roles="iiio")
        for i in range(MOST_LEVELS)
    }
    | {f"convolution_{i}_bias": vector_axes("") for i in range(MOST_LEVELS)}
    | {"input": table_axes("", "width"), "input_bias": vector_axes("width")}
)


@dataclass(frozen=True)
class ListenerConfig:
    """Static description of a listener.

    Attributes:
      kind: a name in `LISTENERS`.
      subsampling: a name in `SUBSAMPLINGS`.
      levels: number of times that the frame rate is halved, 0 to `MOST_LEVELS`.
      width: N, width of the states.
      num_layers: L, number of layers after the convolutions.
      dropout: rate.
      init_stddev: initial standard deviation of matrices that are neither recurrent nor
        convolutions; 0: 1 / sqrt(fan in).
      dtype: dtype of activations.
      filter_conv: taps of the Conformer's convolution over time.
      layers: config of transformer or Conformer layers; None for bilstm.
      bidirectional: whether their mixer is non-causal and so needs a padding mask.
    """

    kind: str
    subsampling: str
    levels: int
    width: int
    num_layers: int
    dropout: float
    init_stddev: float
    dtype: str
    filter_conv: int
    layers: TransformerConfig | None
    bidirectional: bool


def subsampled(levels: int, length: Any) -> Any:
    """Returns the number of states for `length` frames; each level halves it, rounding up."""
    for _ in range(levels):
        length = (length + 1) // 2
    return length


def masked(x: Float[Array, "B S ..."], lengths: Int[Array, " B"]) -> Float[Array, "B S ..."]:
    """Returns x with zeros from `lengths` on."""
    there = jnp.arange(x.shape[1]) < lengths[:, None]
    return jnp.where(there.reshape(there.shape + (1,) * (x.ndim - 2)), x, 0)


class Listener(nn.Module):
    """Maps frames to states.

    Subsamples in time by convolutions over time and frequency with kernel 3 and stride 2, followed
    by a linear layer (Dong et al. 2018, section 3.3; Gulati et al. 2020, section 2), or between the
    layers of a pyramid, without convolutions (Chan et al. 2016, section 3.1).
    """

    config: ListenerConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S F"], lengths: Int[Array, " B"], deterministic: bool
    ) -> tuple[Float[Array, "B R N"], Int[Array, " B"]]:
        """Returns the states and their number in each row.

        Args:
          x: frames, right-padded.
          lengths: number of frames in each row.
          deterministic: disables dropout.
        """
        c = self.config
        drop = nn.Dropout(c.dropout, deterministic=deterministic)
        x = masked(x.astype(c.dtype), lengths)
        if c.subsampling == "convolution":
            for i in range(c.levels):
                x = self._convolve(i, x if i else x[..., None])
                lengths = subsampled(1, lengths)
                # Biases make padding nonzero; mask it, or the next kernel would mix it in.
                x = masked(x, lengths)
            x = drop(masked(self._project(x.reshape(*x.shape[:2], -1)), lengths))
        if c.layers is None:
            described = bilstm_parameters(c, x.shape[-1])
            return bilstm(c, self.param("bilstm", init_function(described)), x, lengths, drop)
        if c.layers.position == "sinusoidal":
            x = x + jnp.asarray(sinusoidal(x.shape[1], c.width), x.dtype)
        x, valid = constrain(x, *HIDDEN), jnp.arange(x.shape[1]) < lengths[:, None]
        # Padding is on the right, so a causal mixer never attends to it and needs no mask.
        mask = padding(valid) if c.bidirectional else None
        if c.kind == "conformer":
            stack = ConformerStack(c.layers, c.filter_conv, name="stack")
            x = stack(x, valid, mask, deterministic)
        else:
            x = EncoderStack(c.layers, name="stack")(x, mask, deterministic)
        return masked(x, lengths), lengths

    def _convolve(self, level: int, x: Float[Array, "B S F C"]) -> Float[Array, "B R G D"]:
        """Convolves and rectifies; halves the numbers of frames and bands, rounding up."""
        shape = (3, 3, x.shape[-1], CHANNELS)
        # A gain of sqrt(2), because a rectifier halves the variance (He et al. 2015).
        init = stddev_init(0.0, 9 * x.shape[-1], 2**0.5)
        kernel = self.param(f"convolution_{level}", init, shape)
        bias = self.param(f"convolution_{level}_bias", nn.initializers.zeros, (CHANNELS,))
        x = convolve_by_two(x, kernel.astype(x.dtype))
        return jax.nn.relu(x + bias.astype(x.dtype))

    def _project(self, x: Float[Array, "B S G"]) -> Float[Array, "B S N"]:
        c = self.config
        kernel = self.param("input", matrix_init(c.init_stddev), (x.shape[-1], c.width))
        bias = self.param("input_bias", nn.initializers.zeros, (c.width,))
        return linear(x, kernel) + bias.astype(x.dtype)


def convolve_by_two(
    x: Float[Array, "B S F C"], kernel: Float[Array, "N N C D"]
) -> Float[Array, "B R G D"]:
    """Convolves with stride 2 over time and frequency, and halves both sizes, rounding up.

    Computed as a sum of matrix products over the taps: on CPUs, XLA's convolution takes 20 to 30
    times as long inside a loop, and the training step is the body of a loop
    (benchmarks/convolution_in_loop.py).

    Args:
      x: the input, padded here by the same amount on both sides whatever its length, so that the
        output at a frame does not depend on the number of frames after it.
      kernel: filter; N is odd.
    """
    size, rows, bands = len(kernel), subsampled(1, x.shape[1]), subsampled(1, x.shape[2])
    half = size // 2
    x = jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    taps = (
        x[:, i : i + 2 * rows - 1 : 2, j : j + 2 * bands - 1 : 2] @ kernel[i, j]
        for i in range(size)
        for j in range(size)
    )
    return functools.reduce(jnp.add, taps)


def bilstm_parameters(c: ListenerConfig, inputs: int) -> dict[str, Any]:
    """Declares the parameters: {"0": {"forward": a cell's, "backward": ...}, "1": ...}.

    Args:
      c: the listener's config.
      inputs: input width of the bottom layer.
    """
    found = {}
    for i in range(c.num_layers):
        read = c.width * (2 if concatenates_pairs(c, i) else 1) if i else inputs
        cell = CELLS["lstm"].parameters(read, c.width // 2, c.init_stddev)
        found[str(i)] = dict.fromkeys(DIRECTIONS, cell)
    return found


def concatenates_pairs(c: ListenerConfig, layer: int) -> bool:
    """Returns whether a layer concatenates pairs of states of the layer below (pyramid)."""
    return c.subsampling == "pyramid" and 1 <= layer <= c.levels


def bilstm(
    c: ListenerConfig,
    params: dict[str, Any],
    x: Float[Array, "B S M"],
    lengths: Int[Array, " B"],
    drop: Drop,
) -> tuple[Float[Array, "B R N"], Int[Array, " B"]]:
    """Returns the top layer's states, both directions concatenated, and their number.

    A layer of a pyramid reads [h_{2 i}, h_{2 i + 1}] of the layer below (Chan et al. 2016, equation
    5), where the second is zero at the end of an odd number of states. Applies dropout between
    layers.
    """
    x = constrain(x, "batch", "", "")
    for i in range(c.num_layers):
        x = drop(x) if i else x
        if concatenates_pairs(c, i):
            x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0)))
            x, lengths = x.reshape(len(x), -1, 2 * c.width), subsampled(1, lengths)
        zeros = CELLS["lstm"].init_state(len(x), c.width // 2, x.dtype)
        outs = [
            run("lstm", params[str(i)][d], zeros, x, lengths=lengths, reverse=d == "backward")[1]
            for d in DIRECTIONS
        ]
        x = jnp.concatenate(outs, axis=-1)
    return x, lengths


def make_listener(
    model: Any, vocab_size: int, substitutes: Substitutes
) -> tuple[ListenerConfig, str]:
    """Returns the config of a model's listener and the name of its implementation.

    Args:
      model: options of `research.models.speech.recognizer`.
      vocab_size: V.
      substitutes: substitutes for implementations.

    Raises UserError for options that do not fit together.
    """
    _check(model)
    depth = model.encoder_layers or model.num_layers
    layers, ahead, name = None, False, "recurrent"
    if model.listener != "bilstm":
        start = {"mask": "full", "num_layers": depth}
        spec = part_spec(model, FRAMES, "encoder", start, "self")
        check_any_length(spec, lambda s: s.make().parameters(), "encoder", model.encoder)
        spec = with_substitute(spec, substitutes)
        if model.listener == "conformer" and isinstance(spec.make(), AcrossLayers):
            raise UserError("model.listener='conformer' has no layers that use those before them.")
        ahead, name = spec.bidirectional, implementation_names((spec,))
        changes = {"num_layers": depth, "position": spec.position}
        layers = transformer_config(model, vocab_size, FRAMES, (spec,), **changes)
    listener = ListenerConfig(
        kind=model.listener,
        subsampling=model.subsampling,
        levels=model.levels,
        width=model.width,
        num_layers=depth,
        dropout=model.dropout,
        init_stddev=model.init_stddev,
        dtype=model.dtype,
        filter_conv=model.filter_conv,
        layers=layers,
        bidirectional=ahead,
    )
    return listener, name


def _check(model: Any) -> None:
    if model.listener == "bilstm" and model.width % 2:
        raise UserError(
            f"model.width={model.width} must be even: the listener has half of it in each "
            "direction."
        )
    if model.filter_conv % 2 == 0:
        raise UserError(
            f"model.filter_conv={model.filter_conv} must be odd, so that the "
            "convolution has as many taps before a frame as after it."
        )
    if model.subsampling == "pyramid":
        _check_pyramid(model)


def _check_pyramid(model: Any) -> None:
    if model.listener != "bilstm":
        raise UserError(
            f"model.subsampling='pyramid' needs model.listener='bilstm', not {model.listener!r}; "
            "set 'convolution'."
        )
    depth = model.encoder_layers or model.num_layers
    if depth <= model.levels:
        raise UserError(
            f"model.levels={model.levels}: a pyramid of that many halvings needs "
            f"model.encoder_layers to be at least {model.levels + 1}, and it is {depth}."
        )


def check_any_length(
    spec: MixerSpec,
    described: Callable[[MixerSpec], Mapping[str, Parameter]],
    key: str,
    delta: str,
) -> None:
    """Raises UserError if the size of a mixer's parameters depends on the number of frames.

    Args:
      spec: the mixer.
      described: function that returns the parameters a spec declares.
      key: key of `config.model` with the mixer's delta.
      delta: value of that key.
    """
    where = f"model.{key}={delta!r}: "
    if spec.position == "learned":
        raise UserError(
            f"{where}position 'learned' has parameters for a fixed number of positions, and a "
            f"recording may have any number of frames; add, for example, position=sinusoidal to "
            f"model.{key}."
        )
    context = replace(spec.context, max_length=2 * spec.context.max_length)
    longer = replace(spec, context=context)
    if shapes(described(spec)) != shapes(described(longer)):
        score = f" with score {spec.values['score']!r}" if "score" in spec.values else ""
        raise UserError(
            f"{where}mixer {spec.name!r}{score} has parameters whose size depends "
            "on the maximum length, and a recording may have any number of frames; choose another."
        )


def shapes(described: Mapping[str, Parameter]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the declared parameters."""
    return {name: p.shape for name, p in described.items()}


def parameter_axes(c: ListenerConfig, params: Any) -> Any:
    """Returns a tree with the `Axes` of each parameter of a listener."""
    cell = CELLS["lstm"].parameters(1, 1, 0.0)

    def axes(path: tuple, _: Any) -> Axes:
        names = [key.key for key in path]
        if names[0] == "bilstm":
            return cell[names[-1]].axes
        if c.layers is not None and "mixer" in names:
            own = c.layers.mixers[0].parameters()[names[-1]].axes
        else:
            own = AXES[names[-1]]
        return own.stacked() if "layers" in names else own

    return jax.tree_util.tree_map_with_path(axes, params)
