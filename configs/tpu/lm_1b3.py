"""Language model of 1.3 billion parameters on a TPU slice: width and depth of GPT-3 XL.

    python -m research.prepare --input=hf:HuggingFaceFW/fineweb-edu:sample-100BT \
        --tokenizer=gpt2/tokenizer.json --output=data/fineweb-edu-100b
    python -m research.plan --config=configs/tpu/lm_1b3.py --tokens=100B
    python -m research.train --config=configs/tpu/lm_1b3.py --distributed --workdir=DIRECTORY

24 layers, width 2,048 (Brown 2020, table 2.1, with 16 heads of 128 in place of 24 of that width),
2,048 tokens, batches of 524,288, learning rate 2e-4, bfloat16 activations, remat, Pallas splash
attention. 26 billion tokens: 20 for each parameter (Hoffmann 2022), read from disk ahead of need;
100 billion on the chips would take 6 GB of each.

Slice v5e:8x8 as data=32 x model=2 with fsdp: pairs of chips share heads, feed-forward channels and
vocabulary. The plan says 0.4 GB kept and 5.8 of temporaries (the compiler: 0.3 and 6.1) of 16.9,
0.8 s a step, 661,000 tokens/s, 48 % of peak, 11 hours, $845 on demand, $175 spot. It has not been
run on a slice. Compiled, a chip sends 14.7 GB a step; with --config.parallel.model=1 it is 12.5 GB,
at 5.8 GB of temporaries, so that data=64 may be faster: measure both. It also fits v5e:4x4 with
--config.optimizer.accumulate=8, four times as long.
Parameters and optimizer alone take 21 GB: without fsdp no v5e chip can hold them.
"""

from ml_collections import ConfigDict

from configs.tpu import lm_125m


def get_config() -> ConfigDict:
    """Returns the config."""
    config = lm_125m.get_config()
    config.task.path = "data/fineweb-edu-100b"
    config.task.data = "streamed"
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
    config.parallel.model = 2
    config.parallel.slice = "v5e:8x8"
    return config
