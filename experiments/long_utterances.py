"""Does attention hold on recordings longer than those of training?

    python -m research.sweep --experiment=experiments/long_utterances.py \
        --workdir=runs/long_utterances
    python -m research.report --workdir=runs/long_utterances

Attention alone, without CTC, learns strings of one to three spoken digits and is tested on one to
ten. Scores of content alone, scores that also know where was read last, and content scores within a
window around the median of what was read last.

Chorowski et al. 2015, "Attention-Based Models for Speech Recognition", section 5:
joined utterances break attention by content once they are longer than in training, and hardly hurt
location-aware attention.

About 20 minutes on 2 cores. Expect 3 to 7 % errors at three digits and around 70 % at ten for all
three arms: what is wrong beyond the lengths of training is left out, not misread. Every speller
ends after three words, which is what it has always seen, so that where it looks hardly matters.
"""

from research.ablation.claims import SLICE, Claim, Direction, Threshold
from research.ablation.experiment import Experiment, Outcome

SOURCE = "Chorowski et al. 2015, section 5"

experiment = Experiment(
    question="Does attention hold on recordings longer than those of training?",
    base="configs/speech.py",
    common={
        "task.join": (1, 2, 3),
        "task.test_lengths": tuple(range(1, 11)),
        "task.test_sequences": 30,
        "task.batch_size": 16,
        "model.width": 96,
        "model.ctc_weight": 0.0,
        "decoding.ctc_weight": 0.0,
        "decoding.beam": 1,
        "train.steps": 1500,
        "train.eval_every": 75,
    },
    arms={
        "content": {"model.attention": "additive"},
        "location-aware": {"model.attention": "location_aware"},
        "content in a window": {"model.attention": "additive", "model.median_window": 12},
    },
    seeds=(0, 1, 2),
    outcome=Outcome(metric="wer", split="test"),
    claims=(
        Claim(
            text="On the lengths of training content does: a word error rate of at most 10 %.",
            test=Threshold(arm="content", at_most=0.1, metric="wer_by_words", at={SLICE: "3"}),
        ),
        Claim(
            text="At ten digits content fails: at least 30 %.",
            source=SOURCE,
            test=Threshold(arm="content", at_least=0.3, metric="wer_by_words", at={SLICE: "10"}),
        ),
        Claim(
            text="Location-aware attention is better at ten digits.",
            source=SOURCE,
            test=Direction(
                a="location-aware",
                b="content",
                metric="wer_by_words",
                better="lower",
                at={SLICE: "10"},
            ),
        ),
        Claim(
            text="So is content within a window around what was read last.",
            source="Chorowski et al. 2015, section 2.3",
            test=Direction(
                a="content in a window",
                b="content",
                metric="wer_by_words",
                better="lower",
                at={SLICE: "10"},
            ),
        ),
    ),
)
