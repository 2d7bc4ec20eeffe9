"""Models by the name that `model.name` takes. A new model is one file and one line here."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any

from ml_collections import ConfigDict

from research.attention.options import Options
from research.errors import UserError, check_name
from research.models.classifier import make_classifier
from research.models.encoder_decoder import make_encoder_decoder
from research.models.layers import part_keys
from research.models.model import Model
from research.models.recurrent.language_model import make_recurrent
from research.models.speech.recognizer import make_speech
from research.models.transformer import make_transformer

MODELS: dict[str, Callable[..., Model]] = {
    "classifier": make_classifier,
    "decoder": make_transformer,
    "encoder_decoder": make_encoder_decoder,
    "recurrent": make_recurrent,
    "speech": make_speech,
}


SOURCE_KEYS = {
    "encoder_layers": 0,
    "encoder": "mask=full",
    "cross": "mask=full, position=none",
}
RECURRENT_KEYS = {
    "cell": "lstm",
    "attention": "additive",
    "input_feeding": True,
    "embedding_width": 0,
}
TRANSFORMER_KEYS = {
    "feedforward": 256,
    "activation": "gelu",
    "norm": "rmsnorm",
    "remat": False,
    "mixer": "softmax",
    "score": "scaled_dot",
    "mask": "causal",
    "position": "rope",
}
SPEECH_KEYS = {
    "listener": "bilstm",
    "subsampling": "convolution",
    "levels": 2,
    "speller": "recurrent",
    "ctc_weight": 0.0,
    "filter_conv": 15,
    "median_window": 0,
}
CLASSIFIER_KEYS = {"body": "transformer", "pooling": "mean"}
MECHANISM_KEYS: dict[str, Any] = {
    # The others are of all that is learned, attention or not.
    **{
        f.name: f.default
        for f in fields(Options)
        if f.default is not MISSING and f.name not in ("dtype", "init_stddev", "num_layers")
    },
    "num_heads": 4,
    "position": TRANSFORMER_KEYS["position"],
}
READERS = (
    (SOURCE_KEYS, "model.name='encoder_decoder'"),
    (RECURRENT_KEYS, "model.name='recurrent'"),
    (SPEECH_KEYS, "model.name='speech'"),
    (CLASSIFIER_KEYS, "model.name='classifier'"),
    (TRANSFORMER_KEYS | MECHANISM_KEYS, "a transformer that attends so"),
)
"""Keys of `config.model`, and who reads them."""
UNREAD = {
    "decoder": SOURCE_KEYS | RECURRENT_KEYS | SPEECH_KEYS | CLASSIFIER_KEYS,
    "encoder_decoder": RECURRENT_KEYS | SPEECH_KEYS | CLASSIFIER_KEYS,
    "recurrent": SOURCE_KEYS | TRANSFORMER_KEYS | SPEECH_KEYS | CLASSIFIER_KEYS,
}
"""Keys of `config.model` that a model does not read, with their defaults."""


def unread(model: ConfigDict) -> Mapping[str, object]:
    """Returns the keys that the model of `config.model` does not read, with their defaults.

    What a model of speech or a classifier reads depends on its parts. A model of speech without a
    speller may have the keys of spellers, so that an ablation can have arms with and without.
    """
    if model.name == "classifier":
        return _unread_by_classifier(model)
    if model.name != "speech":
        return UNREAD[model.name]
    found: dict[str, object] = dict(CLASSIFIER_KEYS)
    if model.listener != "conformer":
        found["filter_conv"] = SPEECH_KEYS["filter_conv"]
    if model.listener == "bilstm":
        found["encoder"] = SOURCE_KEYS["encoder"]
    if model.speller == "recurrent":
        found["cross"] = SOURCE_KEYS["cross"]
        found |= TRANSFORMER_KEYS if model.listener == "bilstm" else {}
    elif model.ctc_weight < 1:
        found |= RECURRENT_KEYS | {"median_window": SPEECH_KEYS["median_window"]}
    return found


def _unread_by_classifier(model: ConfigDict) -> Mapping[str, object]:
    found = SOURCE_KEYS | RECURRENT_KEYS | SPEECH_KEYS | {"tie_embeddings": True, "pattern": ()}
    if model.body == "transformer":
        del found["encoder"]
        read = part_keys(model, "encoder", {"mask": "full"})
        others = {k: v for k, v in MECHANISM_KEYS.items() if k not in read}
        return found | others | {"mask": TRANSFORMER_KEYS["mask"]}
    if model.body != "none":
        for key in ("cell", "embedding_width"):
            del found[key]
    return found | TRANSFORMER_KEYS | MECHANISM_KEYS


def make_model(
    model: ConfigDict,
    vocab_size: int,
    length: int,
    instead: Mapping[str, str] | None = None,
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
    check_name("model.name", model.name, MODELS)
    for key, default in unread(model).items():
        # A key that nothing reads would make an ablation of two equal arms.
        if key in model and model[key] != default:
            readers = next(who for keys, who in READERS if key in keys or "mixer" in keys)
            body = f" with model.body={model.body!r}" if model.name == "classifier" else ""
            raise UserError(
                f"model.{key}={model[key]!r}: model.name={model.name!r}{body} does not read it, "
                f"{readers} does; leave it {default!r}."
            )
    outputs = (classes,) if classes else ()
    return MODELS[model.name](model, vocab_size, length, instead, *outputs)
