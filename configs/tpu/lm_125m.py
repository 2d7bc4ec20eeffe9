"""Language model of the size of GPT-2 small on a TPU slice: the place to try a mechanism at scale.

    python -m research.plan --config=configs/tpu/lm_125m.py
    python -m research.train --config=configs/tpu/lm_125m.py --config.task.path=CORPUS.txt \
        --distributed --workdir=DIRECTORY

12 layers, width 768, 12 heads of 64 (Radford 2019, table 2; Brown 2020, table 2.1), RoPE in place
of learned positions, BPE of 32,768 tokens, bfloat16 activations, remat, Pallas splash attention.
110M parameters, 2.6 billion tokens: 24 for each parameter (Hoffmann 2022: about 20).

Slice v5e:4x4, 32 sequences on each chip. The plan says 8.4 GB of temporaries (the compiler: 7.9) of
16.9, 0.27 s a step, 2.0 million tokens/s, 48 % of peak, 0.4 hours, $7 on demand, $1.50 spot. It has
not been run on a slice. The loss depends on the corpus; as a mark to compare with, the weights of
GPT-2 small have 3.11 on OpenWebText, in nats per token of their larger vocabulary (nanoGPT's
README).

The corpus is one UTF-8 file. Its tokens lie on every chip, 4 bytes each, so some hundred million of
them are what there is room for.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the config."""
    config = base.get_config()
    config.task.name = "text"
    config.task.path = "corpus.txt"
    config.task.tokenizer = "bpe"
    config.task.bpe_vocab_size = 32768
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
