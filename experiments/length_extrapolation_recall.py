"""Which positions carry recall beyond the length that it was trained at?

    python -m research.sweep --experiment=experiments/length_extrapolation_recall.py \
        --workdir=runs/length_extrapolation_recall
    python -m research.report --workdir=runs/length_extrapolation_recall

32 runs, about 45 minutes on one core that other programs were using as well. Expect, at eight times
the length of training: RoPE 0.997, ALiBi 0.991, no positions 0.906, sines 0.365. RoPE and ALiBi
solve the task and lose nothing with the length (changes of -0.002 and -0.008 from 32 to 256 tokens;
that they lose more than 0.1 is refuted). No positions are 0.09 behind, and were still rising when
the 1,500 steps ended, so whether they are worse is not decided. With one head and a constant rate
of 0.003 most seeds do not solve the task at its own length, and the order says little.

The other side of experiments/length_extrapolation.py: a language model loses little if it forgets
what is far away, while here the answer is there. Kazemnejad et al. 2023 find that ALiBi and RoPE
do not carry reasoning tasks to greater lengths, and that no positions at all do best. Trained at 32
tokens, evaluated at up to 256; the number of pairs stays the same, the gaps grow with the length.
"""

from research.ablation.claims import Claim, Direction, Trend
from research.ablation.experiment import Experiment, Outcome

KAZEMNEJAD = "Kazemnejad et al. 2023, abstract"
BY_LENGTH = "accuracy_by_length"

experiment = Experiment(
    question="Which positions carry recall beyond its training length?",
    base="configs/recall.py",
    common={
        "task.length": 32,
        "task.eval_lengths": (32, 64, 128, 256),
        "task.num_pairs": (1, 2, 4),
        "model.num_heads": 4,
        "model.head_width": 32,
        "optimizer.learning_rate": 2e-3,
        "optimizer.schedule": "cosine",
        "train.steps": 1500,
        "train.eval_every": 100,
        "train.eval_batches": 16,
        "train.checkpoint_every": 1500,
    },
    arms={
        "none": {"model.position": "none"},
        "RoPE": {"model.rope_fraction": 0.5},
        "ALiBi": {"model.position": "alibi"},
        "sinusoidal": {"model.position": "sinusoidal"},
    },
    seeds=8,
    outcome=Outcome(metric="accuracy_longest"),
    claims=(
        Claim(
            text="At eight times the length recall is best without positions: better than RoPE.",
            source=KAZEMNEJAD,
            published="no positions outperform explicit ones",
            test=Direction(a="none", b="RoPE"),
        ),
        Claim(
            text="... and better than ALiBi.",
            source=KAZEMNEJAD,
            test=Direction(a="none", b="ALiBi"),
        ),
        Claim(
            text="RoPE loses recall beyond the training length.",
            source=KAZEMNEJAD,
            test=Trend("RoPE", "slice", "decreasing", margin=0.1, metric=BY_LENGTH),
        ),
        Claim(
            text="So does ALiBi, which carries a language model.",
            source=KAZEMNEJAD,
            test=Trend("ALiBi", "slice", "decreasing", margin=0.1, metric=BY_LENGTH),
        ),
    ),
)
