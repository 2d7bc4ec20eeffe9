"""Which width does recall take?

    python -m research.sweep --experiment=experiments/attention_type_width.py \
        --workdir=runs/attention_type_width
    python -m research.report --workdir=runs/attention_type_width

Multi-query associative recall with 1, 2 or 4 pairs (Arora et al. 2023, "Zoology", section 4.1 and
Figure 2) at three lengths and three widths. Attention solves it at every width; what keeps all
pairs in a state of fixed size needs a width that grows with what there is to keep. All arms have
the rate of experiments/attention_type.py; in a pilot at 16 tokens and a width of 64 (seeds 3000 and
3001) 0.002 was the best of 0.002, 0.005 and 0.01 for linear attention (0.91, 0.45, 0.45), and all
three alike for the gated convolution (0.93, 0.92, 0.87).
"""

from research.ablation.claims import Claim, Direction, Trend
from research.ablation.experiment import Experiment, Outcome

ZOOLOGY = "Arora et al. 2023 (Zoology), section 4.1 and Figure 2"
NARROW = {"task.length": 64, "model.width": 16}

experiment = Experiment(
    question="Which width does recall take?",
    base="configs/recall.py",
    common={
        "task.num_pairs": (1, 2, 4),
        "optimizer.learning_rate": 2e-3,
        "optimizer.schedule": "cosine",
        "train.steps": 1500,
    },
    arms={
        "softmax": {},
        "gated convolution": {"model.mixer": "gated_convolution", "model.position": "none"},
        "linear": {"model.mixer": "linear", "model.position": "none"},
    },
    axes={"task.length": (16, 32, 64), "model.width": (16, 32, 64)},
    seeds=5,
    outcome=Outcome(metric="accuracy", solved=0.95, chance=3 / 7),
    ablated=("parameters", "flops_per_token", "state_bytes"),
    claims=(
        Claim(
            text="At a width of 16 softmax attention recalls what a gated convolution does not.",
            source=ZOOLOGY,
            test=Direction(a="softmax", b="gated convolution", at=NARROW, metric="accuracy"),
        ),
        Claim(
            text="A gated convolution recalls more with every width.",
            source=ZOOLOGY,
            published="gated convolutions need a width that grows with the length",
            test=Trend("gated convolution", "model.width", "increasing", metric="accuracy"),
        ),
        Claim(
            text="Of the same width it recalls less of the longer sequence.",
            source=ZOOLOGY,
            test=Trend("gated convolution", "task.length", "decreasing", metric="accuracy"),
        ),
        Claim(
            text="Linear attention recalls more with every width.",
            source="Arora et al. 2024 (Based), abstract: recall grows with the size of the state",
            test=Trend("linear", "model.width", "increasing", metric="accuracy"),
        ),
    ),
)
