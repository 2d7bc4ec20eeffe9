"""Which width does recall take?

    python -m research.sweep --experiment=experiments/attention_type_width.py \
        --workdir=runs/attention_type_width
    python -m research.report --workdir=runs/attention_type_width

Multi-query associative recall with 1, 2 or 4 pairs (Arora et al. 2023, "Zoology", section 4.1 and
Figure 2): attention solves it at every width, gated convolutions need one that grows with the
length. The recipe of softmax attention is that of experiments/attention_type.py; the learning rate
of each arm is tuned at every length and width.
"""

from research.ablation.claims import Claim, Direction, Threshold, Trend
from research.ablation.experiment import Experiment, Outcome

ZOOLOGY = "Arora et al. 2023 (Zoology), section 4.1 and Figure 2"
HARDEST = {"task.length": 64, "model.width": 32}
WIDE = {"model.width": 64}
SHORT = {"task.length": 16}

experiment = Experiment(
    question="Which width does recall take?",
    base="configs/recall.py",
    common={
        "task.num_pairs": (1, 2, 4),
        "optimizer.schedule": "cosine",
        "train.steps": 1500,
    },
    arms={
        "softmax": {"model.num_heads": 4, "model.head_width": 32, "model.rope_fraction": 0.5},
        "gated convolution": {"model.mixer": "gated_convolution", "model.position": "none"},
        "linear": {"model.mixer": "linear", "model.position": "none"},
    },
    axes={"task.length": (16, 32, 64), "model.width": (32, 64)},
    tune={"optimizer.learning_rate": (1e-3, 2e-3, 4e-3)},
    seeds=8,
    outcome=Outcome(metric="accuracy", solved=0.95, chance=3 / 7),
    ablated=("parameters", "flops_per_token", "state_bytes"),
    claims=(
        Claim(
            text="Softmax attention solves recall at every length and width, in most seeds.",
            source=ZOOLOGY,
            published="attention solves the task at every length and width",
            test=Threshold(arm="softmax", at_least=0.95),
        ),
        Claim(
            text="At a width of 32 and 64 tokens it recalls what a gated convolution does not, "
            "within 1,500 steps.",
            source=ZOOLOGY,
            published="gated convolutions need a width that grows with the length",
            test=Direction(
                a="softmax", b="gated convolution", margin=0.2, at=HARDEST, metric="accuracy"
            ),
            within_steps=True,
        ),
        Claim(
            text="At a width of 64 a gated convolution recalls less of every longer sequence, "
            "within 1,500 steps.",
            source=ZOOLOGY,
            test=Trend(
                "gated convolution", "task.length", "decreasing", at=WIDE, metric="accuracy"
            ),
            within_steps=True,
        ),
        Claim(
            text="Of 16 tokens it recalls more at the larger width, within 1,500 steps.",
            source=ZOOLOGY,
            test=Trend(
                "gated convolution", "model.width", "increasing", at=SHORT, metric="accuracy"
            ),
            within_steps=True,
        ),
        Claim(
            text="Linear attention recalls more at the larger width, of every length, within "
            "1,500 steps.",
            source="Arora et al. 2024 (Based), abstract: recall grows with the size of the state",
            test=Trend("linear", "model.width", "increasing", metric="accuracy"),
            within_steps=True,
        ),
    ),
)
