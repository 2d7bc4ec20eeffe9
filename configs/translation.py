"""Encoder-decoder transformer on Multi30k, German to English.

    python -m research.train --config=configs/translation.py --workdir=runs/translation
    echo "Ein Hund läuft im Schnee." | python -m research.translate --workdir=runs/translation

Three layers of width 256 on either side and one byte-level BPE of 8,000 tokens for both languages;
ten epochs of the 29,000 pairs, with warm-up, label smoothing and beta2 of Vaswani et al. 2017,
section 5, and dropout of 0.2. Validation and test are translated with a beam of 5 when training
ends. Other sentences: --config.task.path="data/{split}.{language}".

23 minutes on 2 cores, and 1 to decode. Expect 38.1 BLEU on validation and 37.8 on test_2016_flickr
(cased, detokenized, sacreBLEU's 13a; seed 0).
"""

from ml_collections import ConfigDict

from configs import base

MODEL = {
    "model.name": "encoder_decoder",
    "model.width": 256,
    "model.embedding_width": 0,
    "model.num_layers": 3,
    "model.num_heads": 4,
    "model.feedforward": 1024,
    "model.activation": "relu",
    "model.position": "sinusoidal",
    "model.dropout": 0.2,
    "model.tie_embeddings": True,
}


def get_config() -> ConfigDict:
    """Returns the config."""
    config = corpus_config()
    config.update_from_flattened_dict(MODEL)
    return config


def corpus_config() -> ConfigDict:
    """Returns the data, how long to train on them and how to search, without a model."""
    config = base.get_config()
    config.task.name = "translation"
    config.task.path = "multi30k"
    config.task.length = 40
    config.task.batch_size = 64
    config.task.bpe_vocab_size = 8000
    config.task.label_smoothing = 0.1
    config.model.init_stddev = 0.0
    config.model.embedding_stddev = 0.0625
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 400
    config.optimizer.beta2 = 0.98
    config.optimizer.weight_decay = 0.01
    config.optimizer.final_fraction = 0.05
    config.train.steps = 4480
    config.train.log_every = 50
    config.train.eval_every = 448
    config.train.checkpoint_every = 448
    config.decoding.beam = 5
    config.decoding.length_penalty = 0.6
    return config
