"""Recurrent with attention, or a transformer, on the same German sentences and steps.

    python -m research.sweep --experiment=experiments/recurrent_or_transformer.py \
        --workdir=runs/recurrent_or_transformer
    python -m research.report --workdir=runs/recurrent_or_transformer

Multi30k, German to English: the models of configs/translation.py and
configs/translation_recurrent.py, with the same data, batches and number of steps.

2 runs, about 58 minutes on 2 cores. Expect 37.7 BLEU of the recurrent model and 37.8 of the
transformer, no difference by paired bootstrap over the sentences (p = 0.32), and the recurrent one
ahead on sentences of more than 15 words. One seed each, so no verdict.

Vaswani et al. 2017, Table 2: 28.4 BLEU (big) and 27.3 (base) on WMT14 English-German, where the
best recurrent single model of the table (GNMT + RL) has 24.6.
"""

from configs.translation import MODEL
from research.ablation.claims import Claim, Direction, Threshold
from research.ablation.experiment import Experiment, Outcome

experiment = Experiment(
    question="Is a transformer better than a recurrent model with attention?",
    base="configs/translation_recurrent.py",
    arms={"recurrent": {}, "transformer": MODEL},
    seeds=(0,),
    outcome=Outcome(metric="bleu", split="test"),
    claims=(
        Claim(
            text="The transformer is better.",
            source="Vaswani et al. 2017, Table 2 (WMT14 English-German)",
            published={"recurrent": 24.6, "transformer": 27.3},
            test=Direction(a="transformer", b="recurrent"),
        ),
        Claim(
            text="The transformer reaches at least 33 BLEU.",
            test=Threshold(arm="transformer", at_least=33.0),
        ),
        Claim(
            text="The recurrent model reaches at least 29 BLEU.",
            test=Threshold(arm="recurrent", at_least=29.0),
        ),
    ),
)
