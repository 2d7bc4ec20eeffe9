"""Multi-query associative recall with one causal softmax head per layer, no feed-forward layers.

    python -m research.train --config=configs/recall.py --workdir=runs/recall

64 tokens with 1, 2, 4 or 8 key-value pairs. About 20 seconds on 2 cores; accuracy 0.99 or more on
fresh sequences after a sudden rise at step 200 to 600, in two seeds of three: the others are still
at the level of guessing (0.27) when these 700 steps end. At 32 tokens, 0.002 with a cosine and
1,500 steps 19 of 20 fresh seeds got there; with 0.003 it was 16 (constant) and 15 (cosine).
Sequences with few pairs show the model the way: with 8 pairs alone it takes much longer.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the config."""
    config = base.get_config()
    config.task.length = 64
    config.task.num_pairs = (1, 2, 4, 8)
    config.model.width = 32
    config.model.num_heads = 1
    config.model.feedforward = 0
    config.model.tie_embeddings = False
    config.model.embedding_stddev = 0.15
    config.optimizer.learning_rate = 3e-3
    config.train.steps = 700
    config.optimizer.schedule = "constant"
    config.train.eval_every = 100
    config.train.checkpoint_every = 200
    return config
