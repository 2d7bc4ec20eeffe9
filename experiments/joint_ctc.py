"""What CTC beside attention does: how soon it is learned, and how well.

    python -m research.sweep --experiment=experiments/joint_ctc.py --workdir=runs/joint_ctc
    python -m research.report --workdir=runs/joint_ctc

Strings of one to three spoken digits, with lambda of the objective (1 - lambda) attention + lambda
CTC at 0 (attention alone), 0.2, 0.5 and 1 (CTC alone). Searched without CTC, but for the last.

Kim, Hori and Watanabe 2017, "Joint CTC-attention based end-to-end speech recognition using
multi-task learning", Table 1 and Figure 3: on WSJ and CHiME-4 a character error rate that is 5.4 to
14.6 % better, relatively, than that of CTC or attention alone, and faster learning.

About 20 minutes on 2 cores. Expect 5 % errors of attention alone, and means around 30 % with CTC,
of seeds that differ by tens of points: in 1,500 steps some have learned it and some have not. The
learning rate is that of configs/speech.py for all arms.
"""

from research.ablation.claims import Claim, Direction, Threshold
from research.ablation.experiment import Experiment, Outcome

SOURCE = "Kim et al. 2017, Figure 3"
STEPS = "steps_to_threshold"

experiment = Experiment(
    question="What does CTC beside attention do?",
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
        "lambda 0.2": {"model.ctc_weight": 0.2},
        "lambda 0.5": {"model.ctc_weight": 0.5},
        "ctc": {"model.ctc_weight": 1.0},
    },
    seeds=(0, 1, 2),
    outcome=Outcome(metric="error_rate", split="test", solved=0.2),
    claims=(
        Claim(
            text="CTC beside attention gets to 20 % errors sooner than attention alone.",
            source=SOURCE,
            test=Direction(a="lambda 0.2", b="attention", metric=STEPS),
        ),
        Claim(
            text="It ends with fewer errors than attention alone.",
            source="Kim et al. 2017, Table 1",
            test=Direction(a="lambda 0.2", b="attention"),
        ),
        Claim(
            text="And than CTC alone.",
            source="Kim et al. 2017, Table 1",
            test=Direction(a="lambda 0.2", b="ctc"),
        ),
        Claim(
            text="All that has attention learns it in the end: at most 10 % errors at lambda 0.2.",
            test=Threshold(arm="lambda 0.2", at_most=0.1),
        ),
    ),
)
