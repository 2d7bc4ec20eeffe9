"""Which share of full-attention layers does a hybrid need for text?

    python -m research.sweep --experiment=experiments/hybrids_text.py --workdir=runs/hybrids_text
    python -m research.report --workdir=runs/hybrids_text

The hybrids of experiments/hybrids.py, with windows of 8, as models of characters of tiny
Shakespeare: 8 layers of width 64, 64 characters, 400 steps.

65 runs, 43 minutes on one core. Expect, in nats of test over 5 seeds: 2.133 with full attention in
all layers, 2.10, 2.09, 2.10 and 2.11 with windows at shares of 0, 1/8, 1/4 and 1/2, 1.97, 1.98,
1.99 and 2.00 with the gated delta rule, and 2.07 to 2.08 with Kimi's at every share. All claims,
that a hybrid is within 0.03 of full attention, are refuted because the hybrids are better: in 400
steps and on so short a text, full layers are not needed at all, as recall needs them
(experiments/hybrids.py). One rate for all arms, not tuned; models of more steps may differ.
"""

from experiments.hybrids import LAYERS, arms
from research.ablation.claims import Claim, Equivalence
from research.ablation.experiment import Experiment, Outcome

experiment = Experiment(
    question="Which share of full-attention layers does a hybrid need for text?",
    base="configs/text.py",
    common={
        "task.length": 64,
        "task.batch_size": 8,
        "task.test_fraction": 0.05,
        "model.width": 64,
        "model.num_layers": LAYERS,
        "model.num_heads": 4,
        "model.canon": "a",
        "model.feedforward": 128,
        "optimizer.learning_rate": 4e-3,
        "train.steps": 400,
        "train.eval_every": 50,
        "train.checkpoint_every": 400,
    },
    arms=arms(),
    match="parameters",
    against="state_bytes",
    seeds=5,
    outcome=Outcome(metric="loss"),
    ablated=("flops_per_token", "state_bytes"),
    claims=(
        Claim(
            text="Windows with one full layer of eight predict as well as full attention.",
            source="Gemma Team 2025 (Gemma 3), section 5.2 and Figure 3",
            published="perplexity hardly changes with one global layer in two, four, six or eight",
            test=Equivalence(a="window, 1/8", b="full", margin=0.03),
            within_steps=True,
        ),
        Claim(
            text="With one full layer of eight, a gated delta rule predicts as well.",
            source="Lieber et al. 2024 (Jamba), sections 2 and 6.1: one attention layer of eight",
            published="ratios of 1:3 and 1:7 perform alike",
            test=Equivalence(a="gated delta, 1/8", b="full", margin=0.03),
            within_steps=True,
        ),
        Claim(
            text="With one full layer of four, Kimi's delta rule predicts as well.",
            source="Kimi Team 2025 (Kimi Linear), section 5.2: three to one",
            published=(
                "one full layer of four has the best validation loss of 0, 1, 3, 7, 15 to one"
            ),
            test=Equivalence(a="Kimi delta, 1/4", b="full", margin=0.03),
            within_steps=True,
        ),
    ),
)
