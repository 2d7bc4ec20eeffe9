"""Which share of full-attention layers does a hybrid need for recall?

    python -m research.sweep --experiment=experiments/hybrids.py --workdir=runs/hybrids
    python -m research.report --workdir=runs/hybrids

Hybrids have a full softmax layer last of every two, four or eight layers; the others are a gated
delta rule (Yang, Kautz, Hatamizadeh 2024), Kimi's delta rule with a decay for each channel (Kimi
Team 2025) or softmax in a window of 8. All have 8 layers, a canon layer before every mixer, so that
none lacks a short convolution, and a feed-forward width with which they have the same number of
parameters. Jamba (Lieber et al. 2024), Kimi Linear and Gemma 3 report that one full layer of eight,
four and six is enough.

65 runs, 49 minutes on one core. Expect, in 600 steps, of 5 seeds that recall up to 8 pairs in 32
tokens: 5 with full attention; with windows 0, 0, 5 and 5 at shares of 0, 1/8, 1/4 and 1/2; with the
gated delta rule 1, 0, 0 and 5; with Kimi's 2, 4, 3 and 5. So one full layer of four is enough
beside windows, and beside delta rules one of two is needed to be as fast; Kimi's rule has a mean
accuracy of .88 to .96 below that, the other .45 to .63. Curves still rise, so that all this is of
600 steps. One claim is supported, one open; three equivalences cannot be told by 5 seeds of
solved-or-not. The rate, the same for all arms, was found on full attention alone.
"""

from research.ablation.claims import Claim, Direction, Equivalence
from research.ablation.experiment import Experiment, Outcome

LAYERS = 8
FULL = "rope_fraction=0.5"
OTHERS = {
    "gated delta": "mixer=gated_delta, position=none",
    "Kimi delta": "mixer=kimi_delta, position=none",
    "window": "mask=window, window=8, rope_fraction=0.5",
}
SHARES = {"0": 0, "1/8": 1, "1/4": 2, "1/2": 4}
"""Shares of full-attention layers, and how many of the layers these are."""


def pattern(other: str, number: int) -> tuple[str, ...]:
    """Returns the layers of a hybrid: each full one comes last of a period of equal length."""
    if not number:
        return (other,)
    return (*[other] * (LAYERS // number - 1), FULL)


def arms() -> dict:
    """Returns softmax attention in all layers, and every hybrid with a share of it."""
    hybrids = {
        f"{name}, {share}": {"model.pattern": pattern(other, number)}
        for name, other in OTHERS.items()
        for share, number in SHARES.items()
    }
    return {"full": {"model.pattern": (FULL,)}} | hybrids


experiment = Experiment(
    question="Which share of full-attention layers does a hybrid need for recall?",
    base="configs/recall.py",
    common={
        "task.length": 32,
        "model.num_layers": LAYERS,
        "model.num_heads": 2,
        "model.head_width": 16,
        "model.canon": "a",
        "model.feedforward": 64,
        "optimizer.learning_rate": 2e-3,
        "optimizer.schedule": "cosine",
        "train.steps": 600,
        "train.eval_every": 50,
        "train.checkpoint_every": 600,
    },
    arms=arms(),
    match="parameters",
    against="state_bytes",
    seeds=5,
    outcome=Outcome(metric="accuracy", solved=0.95),
    ablated=("flops_per_token", "state_bytes"),
    claims=(
        Claim(
            text="Windows alone do not recall.",
            source="Gemma Team 2025 (Gemma 3), section 2: five local layers to one global",
            test=Direction(a="full", b="window, 0", margin=0.1),
        ),
        Claim(
            text="Windows with one full layer of eight recall as well as full attention.",
            source="Gemma Team 2025 (Gemma 3), section 5.2 and Figure 3",
            published="perplexity hardly changes with one global layer in two, four, six or eight",
            test=Equivalence(a="window, 1/8", b="full", margin=0.05),
        ),
        Claim(
            text="A gated delta rule alone recalls less than full attention.",
            source="Yang, Kautz, Hatamizadeh 2024 (Gated DeltaNet), Table 4: hybrids recall more",
            test=Direction(a="full", b="gated delta, 0", margin=0.05),
        ),
        Claim(
            text="With one full layer of eight, a gated delta rule recalls as well.",
            source="Lieber et al. 2024 (Jamba), sections 2 and 6.1: one attention layer of eight",
            published="ratios of 1:3 and 1:7 perform alike",
            test=Equivalence(a="gated delta, 1/8", b="full", margin=0.05),
        ),
        Claim(
            text="With one full layer of four, Kimi's delta rule recalls as well.",
            source="Kimi Team 2025 (Kimi Linear), section 5.2: three to one",
            published=(
                "one full layer of four has the best validation loss of 0, 1, 3, 7, 15 to one"
            ),
            test=Equivalence(a="Kimi delta, 1/4", b="full", margin=0.05),
        ),
    ),
)
