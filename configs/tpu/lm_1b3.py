"""Language model of 1.3 billion parameters on a TPU slice: width and depth of GPT-3 XL.

    python -m research.plan --config=configs/tpu/lm_1b3.py
    python -m research.train --config=configs/tpu/lm_1b3.py --config.task.path=CORPUS.txt \
        --distributed --workdir=DIRECTORY

24 layers, width 2,048 (Brown 2020, table 2.1, with 16 heads of 128 in place of 24 of that width),
2,048 tokens, batches of 524,288, learning rate 2e-4, bfloat16 activations, remat, fsdp, Pallas
splash attention. 26 billion tokens: 20 for each parameter (Hoffmann 2022).

Slice v5e:8x8, 4 sequences on each chip. The plan says 4.1 GB of temporaries (the compiler: 4.1) of
16.9, 0.8 s a step, 675,000 tokens/s, 47 % of peak, 10.8 hours, $830 on demand, $170 spot. It has
not been run on a slice. It also fits v5e:4x4 with --config.optimizer.accumulate=8, four times as
long. Parameters and optimizer alone take 20 GB: without fsdp no v5e chip can hold them.

The corpus lies on every chip, see configs/tpu/lm_125m.py.
"""

from ml_collections import ConfigDict

from configs.tpu import lm_125m


def get_config() -> ConfigDict:
    """Returns the config."""
    config = lm_125m.get_config()
    config.task.length = 2048
    config.task.batch_size = 256
    config.model.width = 2048
    config.model.num_layers = 24
    config.model.num_heads = 16
    config.model.feedforward = 8192
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 1000
    config.train.steps = 50000
    config.train.eval_every = 2500
    config.train.checkpoint_every = 1000
    config.parallel.slice = "v5e:8x8"
    return config
