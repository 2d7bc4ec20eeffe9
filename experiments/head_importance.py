"""How many of its heads does a trained model need?

    python -m research.sweep --experiment=experiments/head_importance.py \
        --workdir=runs/head_importance
    python -m research.report --workdir=runs/head_importance

Encoder-decoder transformers learn to turn strings of words into strings in another order. Then each
head is taken out alone, with a paired bootstrap over sentences and Holm's correction over heads,
and heads are taken out one after the other, always the one whose loss is least, until accuracy is
more than 1 % worse.

Michel, Levy and Neubig 2019, "Are Sixteen Heads Really Better than One?": only 8 of 96 heads of the
encoder of a WMT model change BLEU significantly when they are taken out alone (section 3.2), 20 to
40 % of all heads can go without a noticeable loss (section 4.2), and it is encoder-decoder
attention that suffers most (section 5). Voita et al. 2019, "Analyzing Multi-Head Self-Attention":
38 of 48 encoder heads can go for 0.15 BLEU, if the model is trained to do without.

15 runs, 14 minutes on one core. Expect, over 5 drawn seeds, that of 48 heads (8 a layer: in two
layers of an encoder, and of a decoder that has cross-attention too) 11 can go before accuracy is 1
% worse (24 %; 19 to 27), of 24 heads four (17 %), of 12 heads between one and two (13 %): that more
heads leave a larger part to spare is supported, 8 against 2. Of the 48, 58 % matter when they are
taken out alone, where Michel et al. have a twelfth, and self-attention needs its heads rather more
than cross-attention does; with this spread the other three claims are open. A small model of a task
that is all order has little to spare.
"""

from research.ablation.claims import Claim, Direction, Threshold
from research.ablation.experiment import Experiment, Outcome

experiment = Experiment(
    question="How many of its heads does a trained model need?",
    base="configs/transduction.py",
    common={
        "task.kind": "verbs_last",
        "task.test_lengths": (10,),
        "task.test_sequences": 256,
        "task.train_length": 12,
        "task.length": 16,
        "model.name": "encoder_decoder",
        "model.width": 64,
        "model.num_layers": 2,
        "model.cell": "lstm",
        "model.position": "sinusoidal",
        "model.feedforward": 128,
        "interpret.final": ("head_importance",),
        "interpret.examples": 256,
    },
    arms={
        "4 heads": {"model.num_heads": 4},
        "8 heads": {"model.num_heads": 8},
        "2 heads": {"model.num_heads": 2},
    },
    seeds=5,
    outcome=Outcome(metric="removable_heads", split="test", higher_is_better=True),
    claims=(
        Claim(
            text="Taken out alone, at most half of eight heads change anything.",
            source="Michel et al. 2019, section 3.2: 8 of 96 heads",
            test=Threshold(arm="8 heads", metric="significant_heads", at_most=0.5),
        ),
        Claim(
            text="At least a fifth of them can go together for 1 % of accuracy.",
            source="Michel et al. 2019, section 4.2: 20 to 40 %",
            test=Threshold(arm="8 heads", at_least=0.2),
        ),
        Claim(
            text="Reading the source needs its heads more than reading itself.",
            source="Michel et al. 2019, section 5",
            test=Threshold(arm="8 heads", metric="cross_minus_self", at_least=0.0),
        ),
        Claim(
            text="The more heads there are, the larger the part that can go.",
            test=Direction(a="8 heads", b="2 heads"),
        ),
    ),
)
