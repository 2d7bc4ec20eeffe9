"""Encoder-decoder transformer on Multi30k, German to English.

python -m research.train --config=configs/translation.py --workdir=runs/translation
echo "Ein Hund läuft im Schnee." | python -m research.translate --workdir=runs/translation
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the config."""
    config = base.get_config()
    config.task.name = "translation"
    config.task.path = "multi30k"
    config.task.length = 40
    config.task.batch_size = 64
    config.task.bpe_vocab_size = 8000
    config.task.label_smoothing = 0.1
    config.model.name = "encoder_decoder"
    config.model.width = 256
    config.model.num_layers = 3
    config.model.num_heads = 4
    config.model.feedforward = 1024
    config.model.activation = "relu"
    config.model.position = "sinusoidal"
    config.model.dropout = 0.2
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
