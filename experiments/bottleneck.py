"""One vector for a whole sentence, or attention over every encoder state: strings.

    python -m research.sweep --experiment=experiments/bottleneck.py --workdir=runs/bottleneck
    python -m research.report --workdir=runs/bottleneck

A GRU encoder-decoder of width 64 learns to substitute and reverse strings of 2 to 20 words and is
tested on 5 to 30. In two arms the decoder gets the encoder's last states and nothing else, as its
initial state or as an input of every step too; in the third it reads all of them.

24 runs, about 10 minutes on one core. Expect an accuracy of 1.00 with attention up to 20 words,
0.92 at 25 and 0.68 at 30; with one vector 0.97 at 5 words, 0.45 at 20 and 0.28 at 30, as an initial
state only 0.68, 0.27 and 0.16. The two claims on attention are supported. Those on one vector
cannot be told: its accuracy still rises when the 1,000 steps end (by 0.03 in the last quarter).

Bahdanau, Cho and Bengio 2015, Figure 2 and Table 1: without attention BLEU collapses beyond the
lengths of training and falls well before, with it the curve is flat. The same question on sentences
is experiments/bottleneck_translation.py.
"""

from research.ablation.claims import SLICE, Claim, Direction, Threshold, Trend
from research.ablation.experiment import Experiment, Outcome

SOURCE = "Bahdanau et al. 2015, Table 1 (BLEU on all sentences, trained up to 50 words) and Fig. 2"
BLEU = {"one vector": 17.82, "attention": 26.75}

experiment = Experiment(
    question="What does squeezing a source into one vector cost, and does attention avoid it?",
    base="configs/transduction.py",
    arms={
        "one vector": {"model.attention": "fixed_every_step"},
        "one vector, initial state only": {"model.attention": "fixed_initial"},
        "attention": {"model.attention": "additive"},
    },
    seeds=8,
    outcome=Outcome(metric="accuracy", split="test"),
    claims=(
        Claim(
            text="At 20 words, the longest in training, attention is better by at least 0.3.",
            source=SOURCE,
            published=BLEU,
            test=Direction(
                a="attention",
                b="one vector",
                margin=0.3,
                metric="accuracy_by_length",
                at={SLICE: "20"},
            ),
        ),
        Claim(
            text="With one vector accuracy falls with the length of the string.",
            source="Bahdanau et al. 2015, Fig. 2",
            test=Trend(
                arm="one vector",
                along=SLICE,
                direction="decreasing",
                margin=0.4,
                metric="accuracy_by_length",
            ),
        ),
        Claim(
            text="With attention it stays at 0.99 or more at every length of training.",
            source="Bahdanau et al. 2015, Fig. 2: no deterioration with length",
            test=Threshold(arm="attention", at_least=0.99, metric="accuracy_training_lengths"),
        ),
        Claim(
            text="Beyond the lengths of training attention falls too: below 0.95 at 30 words.",
            test=Threshold(
                arm="attention", at_most=0.95, metric="accuracy_by_length", at={SLICE: "30"}
            ),
        ),
        Claim(
            text="An input of every step is worth more to the fixed vector than a first state.",
            source="Cho et al. 2014, section 2.2, gives the vector to every step",
            test=Direction(a="one vector", b="one vector, initial state only"),
        ),
    ),
)
