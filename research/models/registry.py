"""Models by the name that `model.name` takes. A new model is one file and one line here."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from research.attention.registry import MIXERS
from research.attention.spec import MECHANISM_TOLERATED, mechanism_options
from research.errors import check_name, read_part
from research.models.classifier import ClassifierOptions
from research.models.decoder import DecoderOptions
from research.models.encoder_decoder import EncoderDecoderOptions
from research.models.layers import ModelOptions, Substitutes
from research.models.model import Model
from research.models.recurrent.language_model import RecurrentOptions
from research.models.speech.recognizer import SpeechOptions
from research.options import (
    Declared,
    Option,
    defaults_read,
    every_option,
    name_of,
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


TOLERATED = tuple(f"model.{key}" for key in MECHANISM_TOLERATED)
"""Keys that may be set without being read: arms of an ablation over mixers share them, and some
mixers have no heads."""

NAME_KEY = Declared("name", str, "decoder", Option("what learns the task", table=MODELS))


def read_model(values: Mapping[str, Any]) -> ModelOptions:
    """Returns the model options that the keys and values of `config.model` describe.

    Ignores keys that neither the model nor the mechanism of any layer reads.

    Raises UserError for an invalid value.
    """
    name = values.get("name") or NAME_KEY.default
    check_name("model.name", name, MODELS)
    known = mechanism_options()
    given = {key: value for key, value in values.items() if key in known and value is not None}
    options = replace(read_part("model", MODELS[name], values), mechanism=given)
    _shared(options)  # called for its checks: reading the layers raises UserError
    return options


def _shared(options: ModelOptions) -> dict[str, list[Any]]:
    """Returns {key: distinct values} of the shared mechanism keys that the layers read."""
    found: dict[str, list[Any]] = {}
    for layer in options.layers():
        for key, value in layer.shared().items():
            if value not in found.setdefault(key, []):
                found[key].append(value)
    return found


def model_values(options: ModelOptions) -> dict[str, Any]:
    """Returns {key: value} of all keys of `config.model` that a model and its layers read.

    Omits a key that was not set if its default differs between layers.
    """
    shared = {key: values[0] for key, values in _shared(options).items() if len(values) == 1}
    return {"name": name_of(options, MODELS)} | values_read(options) | shared


def model_defaults(options: ModelOptions) -> dict[str, Any]:
    """Returns {key: default} of the keys that `model_values` returns.

    The value is None for a key whose default differs between layers.
    """
    found: dict[str, Any] = {"name": NAME_KEY.default} | defaults_read(options)
    for layer in options.layers():
        for key, default in layer.shared_defaults().items():
            found[key] = default if found.get(key, default) == default else None
    return found


def model_revisions(options: ModelOptions) -> dict[str, int]:
    """Returns {component: revision} of the model, its mixers and their parts, if above 0."""
    found = {"model": options.revision} if options.revision else {}
    for layer in options.layers():
        one = layer.options
        found |= revisions(one)
        if one.revision:
            found[f"mixer {name_of(one, MIXERS)!r}"] = one.revision
    return found


def _shared_options() -> dict[str, list[Declared]]:
    """Returns {key: declarations} of mixers and parts, plus `position` with its default "rope"."""
    found = mechanism_options()
    turned = replace(found["position"][0], default="rope")
    return found | {"position": [*found["position"], turned]}


def every_model_option() -> dict[str, list[Declared]]:
    """Returns {key: declarations} of all models, mixers and parts."""
    return {"name": [NAME_KEY]} | every_option([MODELS]) | _shared_options()


def make_model(
    model: Mapping[str, Any],
    vocab_size: int,
    length: int,
    substitutes: Substitutes | None = None,
    classes: int = 0,
) -> Model:
    """Returns the model that `config.model` describes.

    Args:
      model: `config.model`.
      vocab_size: V.
      length: maximum sequence length.
      substitutes: {implementation: substitute}, applied to mixers that have the substitute.
      classes: C, for a classifier; 0: the model predicts tokens.

    Raises UserError for options that do not fit together.
    """
    return read_model(model).make(vocab_size, length, substitutes, classes)
