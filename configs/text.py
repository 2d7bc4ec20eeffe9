"""Character language model on tiny Shakespeare: nanoGPT's documented CPU recipe.

    python -m research.train --config=configs/text.py --workdir=runs/text
    python -m research.generate --workdir=runs/text --prompt="ROMEO:"

4 layers, 4 heads, width 128, context 64, batch 12, 2,000 steps, no dropout, with RoPE in place of
learned positions. About 2 minutes on 2 cores. Expect a validation loss of 1.79 nats per character
over 600 windows spread over the split. With nanoGPT's learned positions
(--config.model.position=learned) it is 1.90; nanoGPT's README gives 1.88, estimated on 240 random
windows.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the config."""
    config = base.get_config()
    config.task.name = "text"
    config.task.length = 64
    config.task.batch_size = 12
    config.model.width = 128
    config.model.num_layers = 4
    config.model.feedforward = 512
    config.model.norm = "layernorm"
    config.optimizer.beta2 = 0.99
    config.optimizer.warmup_steps = 100
    config.train.steps = 2000
    config.train.eval_batches = 50
    return config
