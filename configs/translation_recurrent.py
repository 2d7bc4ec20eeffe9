"""Recurrent encoder-decoder with additive attention on Multi30k, German to English.

    python -m research.train --config=configs/translation_recurrent.py \
        --workdir=runs/translation_recurrent
"""

from ml_collections import ConfigDict

from configs import translation

MODEL = {
    "model.name": "recurrent",
    "model.cell": "lstm",
    "model.width": 512,
    "model.embedding_width": 256,
    "model.num_layers": 1,
    "model.num_heads": 1,
    "model.attention": "additive",
    "model.dropout": 0.3,
    "model.tie_embeddings": False,
}
"""What makes a recurrent model of the transformer's config."""


def get_config() -> ConfigDict:
    """Returns the config."""
    config = translation.get_config()
    config.update_from_flattened_dict(MODEL)
    return config
