"""Is attention explanation? Both sides of the debate, on sentences that are positive or negative.

    python -m research.sweep --experiment=experiments/faithfulness.py --workdir=runs/faithfulness
    python -m research.report --workdir=runs/faithfulness

A BiLSTM with attention over its states, as in both papers; the same under a hundred times the
weight decay; attention over the embeddings themselves, where nothing has mixed the words before
they are weighted; and a transformer that pools by attention.

Against: Jain and Wallace 2019, "Attention is not Explanation", find that attention agrees little
with gradients (Table 2: Kendall's tau on SST .34 and .36 for the two classes) or with leaving words
out, that permuted attention changes the output little (section 4.2.1), and that an attention can be
found which looks quite different and gives the same output (section 4.2.2).

For: Wiegreffe and Pinter 2019, "Attention is not not Explanation", reply that the adversaries of
single sentences are no model, and that one has to know how far attention is from itself: from that
of other seeds (section 3.3). Where that baseline is small beside the adversary, attention is a
stable property of the task, and the adversary is off the ways that training takes. And a ranking
can be faithful without agreeing with another one: DeYoung et al. 2020 ask whether the words that it
names are those that the output needs.

32 runs, 6 minutes on one core. Expect, over 8 seeds, tau to be .32 with gradients and .34 with
leaving words out; .16 under strong decay, at the same accuracy; .66 where words are not mixed; .12
in a transformer. Eight of nine claims are supported, those of either side: there are adversaries of
all models, and no seed is anywhere near them. The ninth, on decay, cannot be told, because that arm
is not shown to have converged.
"""

from research.ablation.claims import Claim, Direction, Threshold
from research.ablation.experiment import Experiment, Outcome

AGAINST = "Jain and Wallace 2019"
FOR = "Wiegreffe and Pinter 2019"
RECURRENT, DECAYED = "BiLSTM", "BiLSTM, decayed"
EMBEDDINGS, TRANSFORMER = "embeddings", "transformer"


def claims() -> tuple[Claim, ...]:
    """Returns what either side says, and what has to be so for either."""
    return (
        Claim(
            text="Attention agrees weakly with gradients: tau below 0.5.",
            source=f"{AGAINST}, Table 2 (SST: .34 for one predicted class, .36 for the other)",
            published={RECURRENT: 0.35},
            test=Threshold(arm=RECURRENT, at_most=0.5, metric="gradient_tau"),
        ),
        Claim(
            text="And with how much the output changes without a word: tau below 0.5.",
            source=f"{AGAINST}, Table 2 and section 4.1",
            test=Threshold(arm=RECURRENT, at_most=0.5, metric="leave_one_out_tau"),
        ),
        Claim(
            text="Permuted attention changes the output by less than 0.1, the median permutation.",
            source=f"{AGAINST}, section 4.2.1",
            test=Threshold(arm=RECURRENT, at_most=0.1, metric="permutation_change"),
        ),
        Claim(
            text="Attention can be quite different (0.4 of at most 0.69 nats) with one output.",
            source=f"{AGAINST}, section 4.2.2",
            test=Threshold(arm=RECURRENT, at_least=0.4, metric="adversarial_divergence"),
        ),
        Claim(
            text="But no seed has such an attention: the adversary is further away by 0.2 nats.",
            source=f"{FOR}, section 3.3",
            test=Threshold(arm=RECURRENT, at_least=0.2, metric="adversarial_beyond_seeds"),
        ),
        Claim(
            text="Where words are not mixed before they are weighted, attention agrees better "
            "with gradients.",
            source=f"{AGAINST}, section 4.1 and Table 2 (their feed-forward encoders)",
            test=Direction(a=EMBEDDINGS, b=RECURRENT, metric="gradient_tau", better="higher"),
        ),
        Claim(
            text="Under strong weight decay attention agrees less with gradients.",
            test=Direction(a=RECURRENT, b=DECAYED, metric="gradient_tau", better="higher"),
        ),
        Claim(
            text="Words that attention ranks high are words that the output needs: without them "
            "the probability falls by 0.1 on average over a range of fractions.",
            source="DeYoung et al. 2020, section 4.2 (comprehensiveness)",
            test=Threshold(arm=RECURRENT, at_least=0.1, metric="comprehensiveness_attention"),
        ),
        Claim(
            text="And random words are not.",
            source="DeYoung et al. 2020, section 4.2",
            test=Threshold(arm=RECURRENT, at_most=0.1, metric="comprehensiveness_random"),
        ),
    )


experiment = Experiment(
    question="Does attention say why a classifier decided as it did?",
    base="configs/sentiment.py",
    common={
        "interpret.final": ("faithfulness",),
        "interpret.examples": 256,
    },
    arms={
        RECURRENT: {},
        DECAYED: {"optimizer.weight_decay": 1.0},
        EMBEDDINGS: {"model.body": "none", "model.embedding_width": 0},
        TRANSFORMER: {
            "model.body": "transformer",
            "model.embedding_width": 0,
            "model.feedforward": 128,
            "model.dropout": 0.3,
            "optimizer.learning_rate": 3e-3,
        },
    },
    seeds=8,
    outcome=Outcome(metric="gradient_tau"),
    ablated=("parameters", "flops_per_token", "state_bytes"),
    claims=claims(),
)
