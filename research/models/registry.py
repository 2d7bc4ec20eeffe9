"""Models by the name that `model.name` takes. A new model is one file and one line here."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from research.errors import check_name
from research.models.encoder_decoder import make_encoder_decoder
from research.models.model import Model
from research.models.recurrent import make_recurrent
from research.models.transformer import make_transformer

MODELS = {
    "decoder": make_transformer,
    "encoder_decoder": make_encoder_decoder,
    "recurrent": make_recurrent,
}


def make_model(
    model: ConfigDict, vocab_size: int, length: int, instead: Mapping[str, str] | None = None
) -> Model:
    """Returns the model of `config.model`.

    Args:
      model: `config.model`.
      vocab_size: V.
      length: the longest sequence.
      instead: {implementation: another} to take in its place by mixers that have the other.

    Raises UserError for what does not fit.
    """
    check_name("model.name", model.name, MODELS)
    return MODELS[model.name](model, vocab_size, length, instead)
