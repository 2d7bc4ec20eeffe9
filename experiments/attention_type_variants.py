"""Do shared keys, sigmoid attention and hybrids recall as softmax attention does?

    python -m research.sweep --experiment=experiments/attention_type_variants.py \
        --workdir=runs/attention_type_variants
    python -m research.report --workdir=runs/attention_type_variants

Multi-query associative recall of up to 8 pairs in 32 tokens with the recipe that softmax attention
solves in most seeds (experiments/attention_type.py): four heads of 32, half of whose channels RoPE
turns. The rate of each arm was chosen among 0.001, 0.002 and 0.004 in a pilot of three other seeds.

60 runs, 25 minutes on one core. Of 10 drawn seeds, those that solve the task within 1,500 steps:

    softmax                      10   1.00
    multi-query                   4   0.58
    sigmoid                       0   0.51
    convolution, softmax         10   1.00
    linear, softmax               0   0.72
    linear, short convolution    10   1.00

Most seeds of softmax attention, of Zoology's hybrid and of linear attention behind a short
convolution solve it (supported); most of sigmoid attention, which still rises then, and of linear
attention before softmax do not (refuted); one shared key head stays open.
"""

from research.ablation.claims import Claim, Threshold
from research.ablation.experiment import Experiment, Outcome

HYBRID = "Arora et al. 2023 (Zoology), section 5: hybrids close 97.4 % of the gap"

experiment = Experiment(
    question="Do shared keys, sigmoid attention and hybrids recall as softmax attention does?",
    base="configs/recall.py",
    common={
        "task.length": 32,
        "model.num_heads": 4,
        "model.head_width": 32,
        "optimizer.learning_rate": 2e-3,
        "optimizer.schedule": "cosine",
        "train.steps": 1500,
        "train.checkpoint_every": 750,
    },
    arms={
        "softmax": {"model.rope_fraction": 0.5},
        "multi-query": {"model.rope_fraction": 0.5, "model.num_kv_heads": 1},
        "sigmoid": {
            "model.rope_fraction": 0.5,
            "model.normalizer": "sigmoid",
            "optimizer.learning_rate": 4e-3,
        },
        "convolution, softmax": {
            "model.pattern": ("mixer=gated_convolution, position=none", "rope_fraction=0.5"),
        },
        "linear, softmax": {
            "model.pattern": ("mixer=linear, position=none", "rope_fraction=0.5"),
        },
        "linear, short convolution": {
            "model.mixer": "linear",
            "model.position": "none",
            "model.short_convolution": 4,
            "optimizer.learning_rate": 4e-3,
        },
    },
    seeds=10,
    outcome=Outcome(metric="accuracy", solved=0.95),
    ablated=("parameters", "flops_per_token", "state_bytes"),
    claims=(
        Claim(
            text="Softmax attention solves recall within 1,500 steps, in most seeds.",
            source="Arora et al. 2023 (Zoology), section 4.1 and Figure 2",
            test=Threshold(arm="softmax", at_least=0.95),
            within_steps=True,
        ),
        Claim(
            text="So does one shared key head instead of four.",
            source="Shazeer 2019, section 4: minor degradation of quality",
            test=Threshold(arm="multi-query", at_least=0.95),
            within_steps=True,
        ),
        Claim(
            text="So does sigmoid attention.",
            source="Ramapuram et al. 2024, abstract: matches softmax attention",
            test=Threshold(arm="sigmoid", at_least=0.95),
            within_steps=True,
        ),
        Claim(
            text="So does one layer of softmax attention after a gated convolution.",
            source=HYBRID,
            test=Threshold(arm="convolution, softmax", at_least=0.95),
            within_steps=True,
        ),
        Claim(
            text="So does one layer of softmax attention after linear attention.",
            source=HYBRID,
            test=Threshold(arm="linear, softmax", at_least=0.95),
            within_steps=True,
        ),
        Claim(
            text="So does linear attention behind a short convolution.",
            source="Arora et al. 2024 (Based), section 4: short convolutions and linear attention",
            test=Threshold(arm="linear, short convolution", at_least=0.95),
            within_steps=True,
        ),
    ),
)
