"""How many heads, and how wide, for a small language model on a prepared corpus?

    python -m research.prepare --input=tinyshakespeare --separator="\\n\\n" --tokenizer=bpe:1024 \
        --validation=0.1 --output=data/shakespeare
    python -m research.sweep --experiment=experiments/head_count_text.py \
        --workdir=runs/head_count_text
    python -m research.report --workdir=runs/head_count_text

The small twin of experiments/tpu/head_count_125m.py: a width of 64 is cut into 1, 4 or 16 heads, as
in row (A) of Table 3 of Vaswani et al. 2017, or each of 4 heads has 64 channels, as Bhojanapalli
et al. 2020 propose against the low-rank bottleneck. Two layers, 128 tokens of a BPE of 1,024.

77 runs, 45 minutes on one core. Expect, in nats of test over 8 seeds: 3.95 with 1 head of 64, 3.89
with 4 of 16, 3.93 with 16 of 4, and 4.03 with 4 of 64. So within 600 steps four heads of the whole
width are worse than four of 16, against what the bottleneck suggests: that claim is refuted, the
other two stay open. The wide heads want a lower rate (0.004; the others 0.008) and are behind from
the first steps on; nothing here tests why.
"""

from research.ablation.claims import Claim, Direction, Equivalence
from research.ablation.experiment import Experiment, Outcome

VASWANI = "Vaswani et al. 2017, Table 3 (A)"
BOTTLENECK = "Bhojanapalli et al. 2020, Theorem 1: the low-rank bottleneck of narrow heads"

experiment = Experiment(
    question="How many heads, and how wide, for a small language model?",
    base="configs/text.py",
    common={
        "task.name": "tokens",
        "task.path": "data/shakespeare",
        "task.test_fraction": 0.5,
        "task.length": 128,
        "task.batch_size": 8,
        "model.width": 64,
        "model.num_layers": 2,
        "model.feedforward": 256,
        "train.steps": 600,
        "train.eval_every": 50,
        "train.checkpoint_every": 600,
    },
    arms={
        "1 head of 64": {"model.num_heads": 1, "model.head_width": 64},
        "4 heads of 16": {"model.num_heads": 4, "model.head_width": 16},
        "16 heads of 4": {"model.num_heads": 16, "model.head_width": 4},
        "4 heads of 64": {"model.num_heads": 4, "model.head_width": 64},
    },
    tune={"optimizer.learning_rate": (2e-3, 4e-3, 8e-3)},
    seeds=8,
    outcome=Outcome(metric="loss"),
    ablated=("parameters", "flops_per_token", "state_bytes"),
    claims=(
        Claim(
            text="A width of 64 cut into 16 heads of 4 predicts worse than cut into 4 of 16.",
            source=VASWANI,
            published="perplexity 4.91 and 5.01 with 16 and 32 heads of a width of 512",
            test=Direction(a="4 heads of 16", b="16 heads of 4"),
            within_steps=True,
        ),
        Claim(
            text="Four heads of the whole width predict better than four of 16.",
            source=BOTTLENECK,
            test=Direction(a="4 heads of 64", b="4 heads of 16"),
            within_steps=True,
        ),
        Claim(
            text="One head of the whole width is as good as four of 16, within 0.05 nats a token.",
            source=VASWANI,
            published="perplexity 5.29 and 5.00 with one and four heads: 0.06 nats apart",
            test=Equivalence(a="1 head of 64", b="4 heads of 16", margin=0.05),
            within_steps=True,
        ),
    ),
)
