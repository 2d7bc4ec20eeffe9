"""Learned alignment, summed-out alignment, or a fixed one?

    python -m research.sweep --experiment=experiments/ctc_or_attention.py \
        --workdir=runs/ctc_or_attention
    python -m research.report --workdir=runs/ctc_or_attention

Three ways from frames to a transcript that is shorter: attention finds where to read, CTC sums over
all monotonic alignments, and the baseline reads a fixed place whatever is heard (local-m of Luong
et al. 2015: word t at state t, which is 40 ms): what the listener's states know of all that was
said. Strings of one to three spoken digits.

Chan et al. 2016, section 1, and Chorowski et al. 2015, section 1: CTC assumes that labels are
independent of each other given the sound, attention does not; and Prabhavalkar et al. 2017, "A
Comparison of Sequence-to-Sequence Models for Speech Recognition", Table 1: attention better than
CTC without a language model.

About 20 minutes on 2 cores. Expect 5 % errors of attention, 13 % of a fixed alignment, and between
8 and 60 % of CTC, of which some seeds have not learned it after 1,500 steps.
"""

from research.ablation.claims import Claim, Direction
from research.ablation.experiment import Experiment, Outcome

experiment = Experiment(
    question="Learned alignment, summed-out alignment, or a fixed one?",
    base="configs/speech.py",
    common={
        "task.join": (1, 2, 3),
        "task.test_lengths": (1, 2, 3),
        "task.batch_size": 16,
        "model.width": 96,
        "decoding.ctc_weight": 0.0,
        "decoding.beam": 1,
        "train.steps": 1500,
        "train.eval_every": 75,
    },
    arms={
        "attention": {"model.ctc_weight": 0.0},
        "ctc": {"model.ctc_weight": 1.0},
        "fixed alignment": {
            "model.ctc_weight": 0.0,
            "model.attention": "local_m",
            "model.window": 10,
        },
    },
    seeds=(0, 1, 2),
    outcome=Outcome(metric="error_rate", split="test", solved=0.2),
    claims=(
        Claim(
            text="A learned alignment has fewer errors than a fixed one.",
            source="Chorowski et al. 2015, section 1",
            test=Direction(a="attention", b="fixed alignment"),
        ),
        Claim(
            text="So has a summed-out one.",
            test=Direction(a="ctc", b="fixed alignment"),
        ),
        Claim(
            text="Attention has fewer errors than CTC without a language model.",
            source="Prabhavalkar et al. 2017, Table 1",
            test=Direction(a="attention", b="ctc"),
        ),
    ),
)
