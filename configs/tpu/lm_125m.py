"""Language model of the size of GPT-2 small on a TPU slice: the place to try a mechanism at scale.

    python -m research.prepare --input=hf:HuggingFaceFW/fineweb-edu:sample-10BT \
        --tokenizer=gpt2/tokenizer.json --output=data/fineweb-edu
    python -m research.plan --config=configs/tpu/lm_125m.py --tokens=10B
    python -m research.train --config=configs/tpu/lm_125m.py --distributed --workdir=DIRECTORY

12 layers, width 768, 12 heads of 64 (Radford 2019, table 2; Brown 2020, table 2.1), RoPE in place
of learned positions, GPT-2's vocabulary, bfloat16 activations, remat, Pallas splash attention. 124M
parameters, 2.6 billion tokens: 21 for each parameter (Hoffmann 2022: about 20).

The tokenizer is that of openai-community/gpt2 on the Hugging Face Hub. Its 50,257 tokens are padded
to 50,304, which any number of devices up to 128 divides. `--tokens` is for a plan on a machine
without the corpus; where data/fineweb-edu/manifest.json is, it says the size.

Slice v5e:4x4, 32 sequences on each chip. The plan says 1.4 GB kept, 1.25 of them tokens (10 billion
of 2 bytes over 16 chips), and 11.8 GB of temporaries (the compiler: 11.4) of 16.9; 0.33 s a step,
1.6 million tokens/s, 43 % of peak, 0.45 hours, $8.70 on demand, $1.80 spot. Heads of 64 fill half
of a TPU's rows of 128, which is a tenth of the time. It has not been run on a slice. As a mark to
compare with, the weights of GPT-2 small have a loss of 3.11 on OpenWebText (nanoGPT's README).
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the config."""
    config = base.get_config()
    config.task.name = "tokens"
    config.task.path = "data/fineweb-edu"
    config.task.corpus_vocab_size = 50304
    config.task.length = 1024
    config.task.batch_size = 512
    config.model.width = 768
    config.model.num_layers = 12
    config.model.num_heads = 12
    config.model.feedforward = 3072
    config.model.activation = "gelu_tanh"
    config.model.dtype = "bfloat16"
    config.model.remat = True
    config.optimizer.learning_rate = 6e-4
    config.optimizer.beta2 = 0.95
    config.optimizer.warmup_steps = 500
    config.train.steps = 5000
    config.train.eval_every = 500
    config.train.checkpoint_every = 500
    config.parallel.fsdp = True
    config.parallel.slice = "v5e:4x4"
    return config
