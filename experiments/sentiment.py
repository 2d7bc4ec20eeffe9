"""What should read a sentence to judge it, and how should the words be pooled?

    python -m research.sweep --experiment=experiments/sentiment.py --workdir=runs/sentiment
    python -m research.report --workdir=runs/sentiment

Everything is trained from scratch on the 6,920 sentences of SST-2, at a width of 64. The learning
rate of each arm is the best of three on validation, over three seeds of their own.

123 runs, 18 minutes on one core. Expect, in % of the test split over 8 seeds: 81.5 for a BiLSTM
with attention, 80.5 with equal weights, 81.2 for the last state of an LSTM, 80.5 and 80.9 for the
means of a transformer and of embeddings, 78.0 for a class token. With the error of the 1,821
sentences, intervals of differences are 2 points wide to either side: four claims stay open. The
class token is the one arm that is worse, but had not converged.
"""

from research.ablation.claims import Claim, Direction, Equivalence, Threshold
from research.ablation.experiment import Experiment, Outcome

TRANSFORMER = {
    "model.body": "transformer",
    "model.embedding_width": 0,
    "model.num_layers": 1,
    "model.feedforward": 128,
    "model.dropout": 0.3,
}
EMBEDDINGS = {"model.body": "none", "model.embedding_width": 0, "model.pooling": "mean"}

experiment = Experiment(
    question="What should read a sentence to judge it, and how should its words be pooled?",
    base="configs/sentiment.py",
    arms={
        "BiLSTM, attention": {},
        "BiLSTM, mean": {"model.pooling": "mean"},
        "LSTM, last state": {"model.body": "lstm", "model.pooling": "last"},
        "transformer, class token": TRANSFORMER | {"model.pooling": "class_token"},
        "transformer, mean": TRANSFORMER | {"model.pooling": "mean"},
        "mean of embeddings": EMBEDDINGS,
    },
    tune={"optimizer.learning_rate": (3e-3, 6e-3, 1.2e-2)},
    seeds=8,
    outcome=Outcome(metric="accuracy"),
    ablated=("parameters", "flops_per_token"),
    claims=(
        Claim(
            text="Equal weights in place of learned ones change accuracy by less than 0.02.",
            source="Wiegreffe and Pinter 2019 (Attention is not not Explanation): uniform weights",
            test=Equivalence(a="BiLSTM, attention", b="BiLSTM, mean", margin=0.02),
        ),
        Claim(
            text="The mean of embeddings is within 0.02 of a BiLSTM.",
            source="Iyyer et al. 2015 (Deep Unordered Composition Rivals Syntactic Methods)",
            test=Equivalence(a="BiLSTM, attention", b="mean of embeddings", margin=0.02),
        ),
        Claim(
            text="Trained from scratch on so little, a BiLSTM is better than a transformer.",
            test=Direction(a="BiLSTM, attention", b="transformer, class token"),
        ),
        Claim(
            text="A transformer's mean is as good as its class token, to within 0.02.",
            test=Equivalence(a="transformer, mean", b="transformer, class token", margin=0.02),
        ),
        Claim(
            text="A BiLSTM with attention is right on at least 79 % of the test sentences.",
            test=Threshold(arm="BiLSTM, attention", at_least=0.79),
        ),
    ),
)
