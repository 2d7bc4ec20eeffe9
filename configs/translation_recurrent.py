"""Recurrent encoder-decoder with additive attention on Multi30k, German to English.

    python -m research.train --config=configs/translation_recurrent.py \
        --workdir=runs/translation_recurrent

Data, steps and search are those of configs/translation.py. The encoder is a bidirectional LSTM, the
decoder an LSTM of width 512 with additive attention (Bahdanau et al. 2015) and input feeding (Luong
et al. 2015, section 3.3). --config.model.attention=NAME reads in another way; the names are in
research/models/recurrent/attention.py.

32 minutes on 2 cores, and 1 to decode. Expect 36.7 BLEU on validation and 37.7 on test_2016_flickr
(cased, detokenized, sacreBLEU's 13a; seed 0).
"""

from ml_collections import ConfigDict

from configs.translation import corpus_config


def get_config() -> ConfigDict:
    """Returns the config."""
    config = corpus_config()
    config.model.name = "recurrent"
    config.model.cell = "lstm"
    config.model.width = 512
    config.model.embedding_width = 256
    config.model.num_layers = 1
    config.model.num_heads = 1
    config.model.attention = "additive"
    config.model.dropout = 0.3
    config.model.tie_embeddings = False
    return config
