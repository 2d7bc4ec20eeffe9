"""Models by the name that `model.name` takes. A new model is one file and one line here."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from research.attention.registry import MIXERS
from research.attention.spec import TOLERATED, mechanism_options, refuse_unread
from research.errors import UserError, check_name
from research.models.classifier import ClassifierOptions
from research.models.encoder_decoder import EncoderDecoderOptions
from research.models.layers import Instead, ModelOptions
from research.models.model import Model
from research.models.recurrent.language_model import RecurrentOptions
from research.models.speech.recognizer import SpeechOptions
from research.models.transformer import DecoderOptions
from research.options import (
    Declared,
    OptionError,
    common_default,
    declarations,
    defaults_read,
    every_option,
    name_of,
    read,
    revisions,
    values_read,
)

MODELS: dict[str, type[ModelOptions]] = {
    "classifier": ClassifierOptions,
    "decoder": DecoderOptions,
    "encoder_decoder": EncoderDecoderOptions,
    "recurrent": RecurrentOptions,
    "speech": SpeechOptions,
}


def read_model(values: Mapping[str, Any]) -> ModelOptions:
    """Returns the options of the model that the keys and values of `config.model` describe.

    Raises UserError for a value that is wrong, or that is set and read by nothing.
    """
    name = values["name"]
    check_name("model.name", name, MODELS)
    keys = mechanism_options().keys()
    given = {key: value for key, value in values.items() if key in keys and value is not None}
    try:
        options = replace(read(MODELS[name], values), mechanism=given)
    except OptionError as error:
        allowed = declarations(MODELS[name])[error.field].option.allowed
        if allowed and isinstance(error.value, str):
            check_name(f"model.{error.field}", error.value, allowed)
        raise UserError(f"model.{error.field}={error.value!r} {error.message}.") from None
    found = _shared(options)
    # Arms of one ablation may have a fixed vector in place of attention.
    headless = isinstance(options, ClassifierOptions) and not options.layers()
    tolerated = () if headless else TOLERATED
    for key, value in values.items():
        if key == "name" or value is None or key in (*found, *values_read(options), *tolerated):
            continue
        if key in given:
            _refuse(key, value)
        else:
            _check_own(options, name, key, value)
    return options


def _refuse(key: str, value: Any) -> None:
    if (key, value) == ("position", "rope"):
        return
    try:
        refuse_unread(key, value)
    except OptionError as error:
        raise UserError(f"model.{key}={value!r}: {error.message}.") from None


def _check_own(options: ModelOptions, name: str, key: str, value: Any) -> None:
    """Raises UserError for a changed key of other models, or of other parts of this one.

    It would make an ablation of two equal arms.
    """
    readers = {n: declarations(m)[key] for n, m in MODELS.items() if key in declarations(m)}
    if not readers:
        raise UserError(f"model.{key}={value!r}: there is no such key.")
    default = common_default(readers.values())
    if value == default or (isinstance(value, list) and tuple(value) == default):
        return
    if name in readers:
        others = [o for o in ("body", "listener", "speller") if o in declarations(type(options))]
        chosen = " ".join(f"model.{other}={getattr(options, other)!r}" for other in others)
        who, reader = f"model.name={name!r} with {chosen}", "it would with others"
    else:
        who = f"model.name={name!r}"
        reader = f"model.name={', '.join(map(repr, readers))} does"
    raise UserError(
        f"model.{key}={value!r}: {who} does not read it, {reader}; leave it {default!r}."
    )


def _shared(options: ModelOptions) -> dict[str, list[Any]]:
    """Returns {key: values} of the keys of a mechanism that the layers read."""
    found: dict[str, list[Any]] = {}
    for layer in options.layers():
        for key, value in layer.shared().items():
            if value not in found.setdefault(key, []):
                found[key].append(value)
    return found


def model_values(options: ModelOptions) -> dict[str, Any]:
    """Returns {key: value} of all keys of `config.model` that a model and its layers read.

    A key that was not set, and for which layers have different defaults, is not among them.
    """
    shared = {key: values[0] for key, values in _shared(options).items() if len(values) == 1}
    return {"name": name_of(options, MODELS)} | values_read(options) | shared


def model_defaults(options: ModelOptions) -> dict[str, Any]:
    """Returns {key: value when it is not set} of the keys of `model_values`.

    The name has none. A key for which layers have different defaults has None.
    """
    found = dict(defaults_read(options))
    for layer in options.layers():
        for key, default in layer.shared_defaults().items():
            found[key] = default if found.get(key, default) == default else None
    return found


def model_revisions(options: ModelOptions) -> dict[str, int]:
    """Returns the revisions above 0 of a model, its mixers and their parts."""
    found = {"model": options.revision} if options.revision else {}
    for layer in options.layers():
        one = layer.options
        found |= revisions(one)
        if one.revision:
            found[f"mixer {name_of(one, MIXERS)!r}"] = one.revision
    return found


def every_model_option() -> dict[str, list[Declared]]:
    """Returns {key: its declarations} of all models, mixers and parts."""
    return every_option([MODELS]) | mechanism_options()


def make_model(
    model: Mapping[str, Any],
    vocab_size: int,
    length: int,
    instead: Instead | None = None,
    classes: int = 0,
) -> Model:
    """Returns the model of `config.model`.

    Args:
      model: `config.model`.
      vocab_size: V.
      length: the longest sequence.
      instead: {implementation: another} to take in its place by mixers that have the other.
      classes: C, of a classifier; 0: the model's outputs are tokens.

    Raises UserError for what does not fit.
    """
    return read_model(model).make(vocab_size, length, instead, classes)
