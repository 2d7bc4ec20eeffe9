"""How far may time be shortened before attention reads it?

    python -m research.sweep --experiment=experiments/pyramid.py --workdir=runs/pyramid
    python -m research.report --workdir=runs/pyramid

A listener of four bidirectional LSTM layers in which none to three of the upper ones read pairs of
states of the one below, so that the speller attends to every frame of 10 ms, or every second,
fourth or eighth. Strings of one to three spoken digits.

Chan, Jaitly, Le and Vinyals 2016, "Listen, Attend and Spell", section 3.1: without the pyramid the
model converged slowly and was much worse even after a month of training; theirs has three levels.

About 45 minutes on 2 cores. Expect 11 to 22 % errors, most without a pyramid, of seeds that differ
by as much, so that three of them decide nothing about errors. One clock timed all seeds of an arm
at once, so that the speed of training is not tested, either.
"""

from research.ablation.claims import Claim, Direction
from research.ablation.experiment import Experiment, Outcome

SOURCE = "Chan et al. 2016, section 3.1"

experiment = Experiment(
    question="How far may time be shortened before attention reads it?",
    base="configs/speech.py",
    common={
        "task.join": (1, 2, 3),
        "task.test_lengths": (1, 2, 3),
        "task.batch_size": 16,
        "model.width": 64,
        "model.subsampling": "pyramid",
        "model.encoder_layers": 4,
        "model.ctc_weight": 0.0,
        "decoding.ctc_weight": 0.0,
        "decoding.beam": 1,
        "train.steps": 1500,
        "train.eval_every": 75,
    },
    arms={f"{levels} levels": {"model.levels": levels} for levels in (3, 2, 1, 0)},
    seeds=(0, 1, 2),
    outcome=Outcome(metric="error_rate", split="test", solved=0.2),
    claims=(
        Claim(
            text="Three levels end with fewer errors than none.",
            source=SOURCE,
            test=Direction(a="3 levels", b="0 levels"),
        ),
        Claim(
            text="They get to 20 % errors in fewer steps.",
            source=SOURCE,
            test=Direction(a="3 levels", b="0 levels", metric="steps_to_threshold"),
        ),
        Claim(
            text="They train faster, in steps per second.",
            source=SOURCE,
            test=Direction(
                a="3 levels", b="0 levels", metric="timing/steps_per_second", better="higher"
            ),
        ),
    ),
)
