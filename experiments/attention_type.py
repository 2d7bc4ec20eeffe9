"""Which kinds of attention can look a value up by its key?

    make ablation
    python -m research.sweep --experiment=experiments/attention_type.py --workdir=runs/attention_type
    python -m research.report --workdir=runs/attention_type

Multi-query associative recall (Arora et al. 2023, "Zoology", section 4.1 and Figure 2): softmax
attention finds the value of a key wherever it stands. Gated convolutions and linear attention have
to keep every pair in a state of fixed size, and a window does not see beyond its edge. All arms
have the same width, depth, data and tuning budget; the small width is the point of Figure 2, where
attention solves the task at every width and gated convolutions need a width that grows with length.
"""

from research.ablation.claims import Claim, Direction, Threshold
from research.ablation.experiment import Experiment, Outcome

experiment = Experiment(
    question="Which kinds of attention can look a value up by its key?",
    base="configs/recall.py",
    arms={
        "softmax": {},
        "window": {"model.mask": "window", "model.window": 4},
        "linear": {"model.mixer": "linear", "model.position": "none"},
        "gated convolution": {"model.mixer": "gated_convolution", "model.position": "none"},
    },
    axes={"task.length": (32, 64)},
    tune={"optimizer.learning_rate": (3e-3, 1e-2)},
    tune_seeds=(100, 101),
    seeds=(0, 1, 2, 3),
    outcome=Outcome(metric="accuracy", solved=0.95),
    ablated=("flops_per_token", "state_bytes"),
    claims=(
        Claim(
            text="Softmax attention solves multi-query recall at a width of 32.",
            source="Arora et al. 2023 (Zoology), Figure 2",
            published="attention solves the task at every length and width tried",
            test=Threshold(arm="softmax", at_least=0.95),
        ),
    ),
)
