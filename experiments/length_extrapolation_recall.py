"""Which positions carry recall beyond the length that it was trained at?

    python -m research.sweep --experiment=experiments/length_extrapolation_recall.py \
        --workdir=runs/length_extrapolation_recall
    python -m research.report --workdir=runs/length_extrapolation_recall

16 runs, about 2 minutes. Expect 97 % with RoPE at eight times the length, 86 % without positions,
84 % with ALiBi and 64 % with sines. The claims below are about these levels, which differ at the
training length already (by 15 points between RoPE and no positions, most seeds of which have not
solved it there): what a longer sequence changes is +1 point without positions and -3 with RoPE.
The published order is about that change, on other tasks, and is not refuted here.

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
        "train.steps": 600,
        "train.eval_every": 300,
        "train.eval_batches": 16,
        "train.checkpoint_every": 600,
    },
    arms={
        "none": {"model.position": "none"},
        "RoPE": {},
        "ALiBi": {"model.position": "alibi"},
        "sinusoidal": {"model.position": "sinusoidal"},
    },
    seeds=(0, 1, 2, 3),
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
