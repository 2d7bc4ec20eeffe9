"""GRU encoder-decoder with additive attention on generated strings: substitute and reverse.

python -m research.train --config=configs/transduction.py --workdir=runs/transduction
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the config."""
    config = base.get_config()
    config.task.name = "transduction"
    config.task.kind = "substitute"
    config.task.vocab_size = 32
    config.task.length = 32  # the longest test string, its end, and one: ending is a choice
    config.task.batch_size = 64
    config.model.name = "recurrent"
    config.model.cell = "gru"
    config.model.width = 64
    config.model.num_layers = 1
    config.model.num_heads = 1
    config.model.attention = "additive"
    config.model.input_feeding = True
    config.model.init_stddev = 0.0
    config.model.embedding_stddev = 0.1
    config.model.tie_embeddings = False
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 0.0
    config.optimizer.warmup_steps = 50
    config.train.steps = 1000
    config.train.log_every = 50
    config.train.eval_every = 100
    config.train.eval_batches = 8
    config.train.checkpoint_every = 500
    return config
