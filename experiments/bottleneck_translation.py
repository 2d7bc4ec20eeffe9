"""One vector for a whole sentence, or attention over every encoder state: German to English.

    python -m research.sweep --experiment=experiments/bottleneck_translation.py \
        --workdir=runs/bottleneck_translation
    python -m research.report --workdir=runs/bottleneck_translation

The recurrent model of configs/translation_recurrent.py on Multi30k, with additive attention and
with a fixed vector that is an input of every step.

2 runs, about 60 minutes on 2 cores. Expect 37.7 BLEU with attention and 28.9 with one vector, 4.7
apart on sentences of up to 10 words, 11.5 on 11 to 15, 13.1 on 16 to 20 and 8.0 beyond, where there
are few. One seed each, so no verdict.

Bahdanau, Cho and Bengio 2015, Table 1 and Figure 2: BLEU by the length of the sentence.
"""

from research.ablation.claims import Claim, Direction, Threshold
from research.ablation.experiment import Experiment, Outcome

SOURCE = "Bahdanau et al. 2015, Table 1 (BLEU on all sentences, trained up to 50 words)"
BLEU = {"one vector": 17.82, "attention": 26.75}

experiment = Experiment(
    question="What does squeezing a sentence into one vector cost in translation?",
    base="configs/translation_recurrent.py",
    arms={
        "attention": {"model.attention": "additive"},
        "one vector": {"model.attention": "fixed_every_step"},
    },
    seeds=(0,),
    outcome=Outcome(metric="bleu", split="test"),
    claims=(
        Claim(
            text="Attention reaches at least 29 BLEU.",
            test=Threshold(arm="attention", at_least=29.0),
        ),
        Claim(
            text="Attention is better than one vector by at least 3 BLEU.",
            source=SOURCE,
            published=BLEU,
            test=Direction(a="attention", b="one vector", margin=3.0),
        ),
    ),
)
