"""Model options, and the attention mechanism of each layer.

Mechanism keys in `config.model` apply to all layers. A pattern, or the delta of a part such as the
encoder, overrides them for one layer. A layer ignores shared keys that its mixer does not read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp

from research.attention.implementations.attend import choose_implementation, unsupported_reason
from research.attention.mixers.across_layers import AcrossLayers
from research.attention.mixers.attention_options import AttentionOptions
from research.attention.mixers.mixer import Mixer
from research.attention.mixers.mixer_options import AUTO, Context, MixerOptions
from research.attention.mixers.self_attention import SelfAttention
from research.attention.parts.masks import padding
from research.attention.parts.positions import MODEL_POSITIONS
from research.attention.registry import MIXERS
from research.attention.spec import MIXER, MixerSpec, mechanism_options, read_spec
from research.errors import UserError, check_name
from research.models.model import Model
from research.options import (
    OptionError,
    Part,
    declarations,
    defaults_read,
    name_of,
    option,
    read,
    unknown,
    values_read,
)

Substitutes = Mapping[str, str]
"""{implementation: substitute}, applied to mixers that have the substitute."""
SLOW_TO_TRACE = {"splash": "blockwise", "jax_cudnn": "blockwise"}
"""Substitutes for tracing: implementations that build large mask tables -> one that does not."""
LACK_SEGMENTS = {"jax_cudnn": "blockwise"}
"""Substitutes for packed documents: implementations that "auto" may choose and that cannot keep
segments apart -> one that can."""
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Layer:
    """The values from which the options of one mixer are read.

    Attributes:
      values: {key: value}, from `config.model` with the layer's overrides applied.
      own_keys: keys that the layer sets itself, independent of `config.model`.
      required_keys: keys that the mixer must read; others may go unread.
      where: prefix of the key in error messages.
    """

    values: Mapping[str, Any]
    own_keys: frozenset[str]
    required_keys: frozenset[str]
    where: str

    @property
    def options(self) -> MixerOptions:
        """Options of the mixer and its parts. Raises UserError."""
        try:
            name = self.values.get(MIXER) or "softmax"
            if name not in MIXERS:
                raise unknown(MIXER, name, MIXERS)
            return read(MIXERS[name], self.values)
        except OptionError as error:
            raise UserError(f"{self.where}{error}") from None

    def spec(self, length: int) -> MixerSpec:
        """Returns the mixer for sequences of at most this length. Raises UserError."""
        try:
            return read_spec({**self.values, "max_length": length}, self.required_keys)
        except OptionError as error:
            raise UserError(f"{self.where}{error}") from None

    def shared(self) -> dict[str, Any]:
        """Returns {key: value} of the shared keys of `config.model` that the layer reads."""
        found = {MIXER: name_of(self.options, MIXERS)} | values_read(self.options)
        return {key: value for key, value in found.items() if key not in self.own_keys}

    def shared_defaults(self) -> dict[str, Any]:
        """Returns {key: default} of the keys that `shared` returns."""
        found = {MIXER: "softmax"} | defaults_read(self.options)
        if supports_rope(type(self.options)):
            found["position"] = "rope"
        return {key: value for key, value in found.items() if key not in self.own_keys}


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Part):
    """A model that a config can name.

    Attributes:
      mechanism: {key: value} of the mechanism keys set in `config.model`.
    """

    mechanism: Mapping[str, Any] = field(default_factory=dict)

    def layers(self) -> Sequence[Layer]:
        """Returns one `Layer` per distinct kind of layer in the model. Raises UserError."""
        raise NotImplementedError

    def make(
        self, vocab_size: int, length: int, substitutes: Substitutes | None = None, classes: int = 0
    ) -> Model:
        """Returns the model.

        Args:
          vocab_size: V.
          length: maximum sequence length.
          substitutes: substitutes for implementations.
          classes: C, for a classifier; 0: the model predicts tokens.

        Raises UserError for options that do not fit together.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ModelSize(ModelOptions):
    """Options of every model."""

    width: int = option(64, "width of the residual stream, or of the recurrent state", least=1)
    num_layers: int = option(
        2, "number of layers; of the encoder and of the decoder, in models with both", least=1
    )
    dropout: float = option(
        0.0,
        "dropout rate on embeddings and on the output of each sublayer (Vaswani 2017, 5.4)",
        least=0,
        below=1,
    )
    use_bias: bool = option(False, "add biases in projections and norms")
    init_stddev: float = option(
        0.02,
        "initial standard deviation of the matrices in the layers; 0: 1 / sqrt(fan in)",
        least=0,
    )
    embedding_stddev: float = option(
        0.02,
        "initial standard deviation of embeddings, learned positions and the output "
        "matrix; 0: 1 / sqrt(fan in)",
        least=0,
    )
    init_scale: float = option(1.0, "factor on the initial values of every matrix", above=0)
    dtype: str = option(
        "float32", "type of the activations; parameters are float32", allowed=DTYPES
    )


def layer(
    model: ModelOptions,
    where: str = "model.",
    delta: Mapping[str, Any] | None = None,
    start: Mapping[str, Any] | None = None,
) -> Layer:
    """Returns a layer with the mechanism of a model, changed by `start` and then by `delta`.

    If no position encoding is set and the mixer supports RoPE, the layer uses RoPE, the usual
    choice of current models.

    Args:
      model: the model.
      where: prefix of the key in error messages.
      delta: overrides of this layer; its mixer must read all that differ from the shared values.
      start: defaults for this kind of layer, applied before `delta`; may go unread.
    """
    delta, start = delta or {}, start or {}
    shared = {key: getattr(model, key) for key in declarations(Context) if hasattr(model, key)}
    shared["init_stddev"] = hidden_stddev(model)
    base = {**shared, **model.mechanism, **start}
    values: dict[str, Any] = {**base, **delta}
    strict = {key for key, value in delta.items() if value != base.get(key)}
    mixer = MIXERS.get(values.get(MIXER) or "softmax")
    if values.get("position") is None and mixer is not None and supports_rope(mixer):
        values["position"] = "rope"
    return Layer(values, frozenset({*start, *delta}), frozenset(strict), where)


def hidden_stddev(model: Any) -> float:
    """Returns the initial standard deviation of matrices in the layers, scaled from the base width.

    0 means 1 / sqrt(fan in), which needs no scaling. Source: Yang et al. 2022, table 8.
    """
    base = getattr(model, "base_width", 0)
    return model.init_stddev * (base / model.width) ** 0.5 if base else model.init_stddev


def supports_rope(mixer: type[MixerOptions]) -> bool:
    """Returns whether a mixer can rotate queries and keys by position (RoPE)."""
    position = declarations(mixer).get("position")
    return position is not None and "rope" in (position.option.table or {})


def pattern_layers(model: Any) -> tuple[Layer, ...]:
    """Returns the layers in a model's pattern, or a single layer if it has no pattern.

    Layer i of the model uses entry i modulo the length of the pattern. Raises UserError.
    """
    if not model.pattern:
        return (layer(model),)
    if model.num_layers % len(model.pattern):
        raise UserError(
            f"model.num_layers={model.num_layers} must be a multiple of the {len(model.pattern)} "
            "layers of model.pattern."
        )
    found = []
    shared = model.mechanism.get("position")
    for i, text in enumerate(model.pattern):
        where = f"model.pattern[{i}]={text!r}"
        delta = parse_layer(text, where)
        position = delta.get("position", shared)
        if position in MODEL_POSITIONS and position not in ("none", shared):
            raise UserError(
                f"{where}: position {position!r} is added to the input of the model, so it is the "
                f"same for all layers; set model.position={position!r}."
            )
        found.append(layer(model, f"{where}: ", delta))
    return tuple(found)


def part_layer(model: Any, key: str, start: Mapping[str, Any]) -> Layer:
    """Returns the layer of one part of a model; its delta is the text of the option `key`."""
    where = f"model.{key}={getattr(model, key)!r}"
    delta = parse_layer(getattr(model, key), where)
    shared = model.mechanism.get("position")
    mixer = MIXERS.get({**model.mechanism, **start, **delta}.get(MIXER) or "softmax")
    # Drop a shared rotary encoding for a part whose mixer cannot apply it; it may go unread there.
    if shared not in (None, *MODEL_POSITIONS) and mixer is not None and not supports_rope(mixer):
        start = {"position": None, **start}
    return layer(model, f"{where}: ", delta, start)


def added_position(layers: Sequence[Layer]) -> str:
    """Returns the position encoding that the model adds to its input, or "none"."""
    names = {one.values.get("position") for one in layers}
    return next((name for name in MODEL_POSITIONS if name in names and name != "none"), "none")


def parse_layer(text: str, where: str) -> dict[str, Any]:
    """Parses "mask=window, window=8" into {"mask": "window", "window": 8}. Raises UserError."""
    found = {}
    kinds = {key: declared[0].kind for key, declared in mechanism_options().items()}
    for one in filter(None, (one.strip() for one in text.split(","))):
        key, equals, value = (piece.strip() for piece in one.partition("="))
        if not equals:
            raise UserError(f"{where}: {one!r} must be key=value, for example mask=window.")
        check_name(f"{where}: key", key, kinds)
        try:
            found[key] = PARSERS[kinds[key]](value)
        except (ValueError, KeyError):
            kind = kinds[key].__name__
            raise UserError(f"{where}: {key}={value!r} must be of type {kind}.") from None
    return found


PARSERS: dict[Any, Callable[[str], Any]] = {
    int: int,
    float: float,
    str: str,
    bool: lambda text: {"true": True, "false": False}[text.lower()],
}


def part_spec(model: Any, length: int, key: str, start: Mapping[str, Any], role: str) -> MixerSpec:
    """Returns the mixer of one part of a model, with an implementation that supports it.

    Args:
      model: the model.
      length: maximum sequence length.
      key: name of the option that holds the delta of the part.
      start: defaults of the part, applied before the delta.
      role: "self" or "cross"; every chosen component must support it.

    Raises UserError that quotes the delta.
    """
    one = part_layer(model, key, start)
    inherited = one.values.get("implementation") or AUTO
    own = "implementation" in parse_layer(getattr(model, key), "")
    if not own:
        one = replace(one, values={**one.values, "implementation": AUTO})
    spec = one.spec(length)
    for name, where in spec.chosen():
        if role not in where:
            raise UserError(f"{one.where}{name} cannot be used in {role}-attention.")
    padded = role == "cross" or spec.bidirectional
    return _implemented(spec, AUTO if own else inherited, padded, one.where)


def _implemented(spec: MixerSpec, inherited: str, padded: bool, where: str) -> MixerSpec:
    """Returns the mixer with an implementation that supports all its features.

    In order of preference: the one set explicitly for this part; the model's, if it supports the
    mixer; otherwise one that works at any length, because batches are padded to several lengths.
    Raises UserError if the explicit one does not support the mixer.

    Args:
      spec: the mixer.
      inherited: the model's implementation.
      padded: whether the mixer receives a padding mask.
      where: prefix of error messages.
    """
    options = spec.options
    named = options.implementation
    if named == AUTO and inherited in options.implementations:
        named = inherited
    if not isinstance(options, AttentionOptions):
        return spec.computed_by(named)
    valid = padding(jnp.ones((1, 1), bool)) if padded else None
    mechanism = options.mechanism(spec.context).restricted_to(valid)
    why = "" if named == AUTO else unsupported_reason(named, mechanism)
    if why and options.implementation != AUTO:
        raise UserError(f"{where}{why}.")
    if why or (named == AUTO and padded):
        named = choose_implementation(spec.context.max_length, mechanism)
    return spec.computed_by(named)


def with_substitute(spec: MixerSpec, substitutes: Substitutes) -> MixerSpec:
    """Returns the mixer with the substitute that `instead` names, if it has that implementation."""
    name = spec.implementation
    other = substitutes.get(name, name)
    return spec.computed_by(other if other in spec.options.implementations else name)


def make_mixers(specs: Sequence[MixerSpec]) -> tuple[Mixer, ...]:
    """Makes the mixers of a pattern from their specs.

    Raises UserError for one that uses values or keys of an earlier layer which do not fit it.
    """
    mixers = tuple(spec.make() for spec in specs)
    for i, mixer in enumerate(mixers):
        if isinstance(mixer, AcrossLayers):
            _check_across_layers(mixer, mixers[:i] if mixer.share_kv else mixers)
    return mixers


def _check_across_layers(mixer: AcrossLayers, others: Sequence[Mixer]) -> None:
    """Raises UserError if the mixer's heads do not fit those whose values it uses.

    Args:
      mixer: the mixer.
      others: the mixers before it in the pattern, whose keys it may share; or all, the first of
        which has the values that it adds.
    """
    sizes = (mixer.num_kv_heads, mixer.head_width)
    if not mixer.share_kv:
        first = others[0]
        if not isinstance(first, SelfAttention) or (first.num_kv_heads, first.head_width) != sizes:
            raise UserError(
                f"model.value_residual={mixer.value_residual!r} adds the values of the first "
                "layer, which must have mixer='softmax' with as many key heads of the same width."
            )
        return
    owners = [m for m in others if isinstance(m, SelfAttention) and not getattr(m, "share_kv", 0)]
    if not owners:
        raise UserError(
            "model.share_kv=True needs an earlier layer of the pattern with keys and values of its "
            "own, as in model.pattern=('mask=causal', 'share_kv=true')."
        )
    owner = owners[-1]
    if (owner.num_kv_heads, owner.head_width, owner.rotary) != (*sizes, mixer.rotary):
        raise UserError(
            "model.share_kv=True: the earlier layer's keys differ in their number of heads, width "
            "or rotation; set num_kv_heads, head_width and position alike."
        )
    kept = owner.mechanism.cache_mask
    if kept.reach is not None and kept != mixer.mechanism.cache_mask:
        raise UserError(
            "model.share_kv=True: the earlier layer keeps the keys that its own mask sees, and no "
            f"others ({owner.mechanism.mask}); set the same mask, or mask=causal there."
        )


def implementation_names(specs: Sequence[MixerSpec]) -> str:
    """Returns the distinct names of the implementations, comma-separated, in layer order."""
    return ", ".join(dict.fromkeys(spec.implementation for spec in specs))
