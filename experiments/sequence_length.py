"""What happens to recall, time and memory when the sequence grows from 128 to 2,048 tokens?

    python -m research.sweep --experiment=experiments/sequence_length.py \
        --workdir=runs/sequence_length
    python -m research.costs --experiment=experiments/sequence_length.py \
        --workdir=runs/sequence_length
    python -m research.report --workdir=runs/sequence_length

72 runs, about 50 minutes on 2 cores as two shards (--shard=1/2 and 2/2) with --max_members=4.
Expect, over 8 seeds (0.58 is naming any shown value):

    length         128             512             2,048
    softmax        1.00, 8 solve   1.00, 8 solve   1.00, 8 solve
    window of 64   0.96, 5 solve   0.67, none      0.41, none
    linear         0.42, none      0.43, none      0.42, none

A step takes 4.7, 15.6 and 14.9 microseconds a token with softmax, 4.7 at every length with linear
attention, and 24, 56 and 29 MiB: at 512 tokens attention is computed densely, at 2,048 in blocks,
whose memory grows with the length only.

The gaps between a key and its query follow Zoology's power law (Arora et al. 2023, appendix), so
they spread over the whole sequence, however long. All lengths have equally many tokens and queries
per step. Longer ones begin training with shorter sequences, all arms alike. In a pilot of softmax
attention with all of 1,200 steps at 2,048 tokens, two sequences each, in which gaps were short at
first, three of three seeds stayed at guessing (0.11 to 0.18).
"""

from research.ablation.claims import Claim, Direction, Threshold
from research.ablation.experiment import Experiment, Outcome

LONG = {"task.length": 2048}
BASED = "Arora et al. 2024 (Based), section 3: recall is limited by the range of a window"

experiment = Experiment(
    question="What happens to recall, time and memory when the sequence grows?",
    base="configs/recall.py",
    common={
        "task.num_pairs": (1, 2, 4),
        "task.shorter": (64, 128, 512),
        "task.shorter_steps": 400,
        "optimizer.learning_rate": 2e-3,
        "optimizer.schedule": "cosine",
        "train.steps": 1600,
        "train.checkpoint_every": 800,
        "train.eval_batches": 8,
    },
    arms={
        "softmax": {"model.rope_fraction": 0.5},
        "window of 64": {
            "model.rope_fraction": 0.5,
            "model.mask": "window",
            "model.window": 64,
        },
        "linear": {"model.mixer": "linear", "model.position": "none"},
    },
    axes={"task.length": (128, 512, 2048)},
    along={
        "task.length=128": {"task.batch_size": 32, "task.queries": 1},
        "task.length=512": {"task.batch_size": 8, "task.queries": 4},
        "task.length=2048": {"task.batch_size": 2, "task.queries": 16},
    },
    seeds=8,
    outcome=Outcome(metric="accuracy", solved=0.95),
    ablated=("parameters", "flops_per_token", "state_bytes"),
    claims=(
        Claim(
            text="Softmax attention solves recall at every length, in most seeds.",
            source="Arora et al. 2023 (Zoology), section 4.1 and Figure 2",
            published="attention solves the task at every length",
            test=Threshold(arm="softmax", at_least=0.95),
        ),
        Claim(
            text="With a window of 64 it solves it less often, at 2,048 tokens.",
            source=BASED,
            test=Direction(a="softmax", b="window of 64", at=LONG),
        ),
        Claim(
            text="Linear attention of the same width solves it less often, at 2,048 tokens.",
            source="Arora et al. 2024 (Based), abstract: recall grows with the size of the state",
            test=Direction(a="softmax", b="linear", at=LONG),
        ),
    ),
)
