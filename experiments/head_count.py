"""How many heads, and how wide?

    python -m research.sweep --experiment=experiments/head_count.py \
        --workdir=runs/head_count
    python -m research.report --workdir=runs/head_count

Of 8 seeds, those that solve recall: 8 with one head of 32 and 8 with four of 32, 5 with four heads
of 8, none with eight of 4, 6 with a single head of 8. Bhojanapalli et al. 2020 call it the low-rank
bottleneck that such heads become narrow; that four heads of 32 solve it more often
than four of 8 stays open at 8 seeds. Heads of 8 that solve it take twice the steps (1,050 against
500), so this is about 1,500 steps, not for ever.

The recipe is that of experiments/attention_type.py, developed with one head of 32 on other seeds;
the rate is the same for all arms and was not tuned for the others. Vaswani et al. 2017, Table 3,
row (A), cut a fixed width into 1 to 32 heads on translation: one head loses 0.9 BLEU, and "quality
also drops off with too many heads". A look-up per token needs no second head, so only the second
half can show here; experiments/head_count_translation.py tests both.
"""

from research.ablation.claims import Claim, Direction, Threshold
from research.ablation.experiment import Experiment, Outcome

VASWANI = "Vaswani et al. 2017, Table 3 (A): quality drops off with too many heads"
BOTTLENECK = "Bhojanapalli et al. 2020, Theorem 1: the low-rank bottleneck of narrow heads"


def heads(number: int, width: int) -> dict[str, int]:
    """Returns the arm of so many heads of this width."""
    return {"model.num_heads": number, "model.head_width": width}


experiment = Experiment(
    question="How many heads should attention have, and how wide?",
    base="configs/recall.py",
    common={
        "task.length": 32,
        "optimizer.learning_rate": 2e-3,
        "optimizer.schedule": "cosine",
        "train.steps": 1500,
    },
    arms={
        "1 head of 32": heads(1, 32),
        "4 heads of 8": heads(4, 8),
        "8 heads of 4": heads(8, 4),
        "4 heads of 32": heads(4, 32),
        "1 head of 8": heads(1, 8),
    },
    seeds=8,
    outcome=Outcome(metric="accuracy", solved=0.95),
    ablated=("parameters", "flops_per_token", "state_bytes"),
    claims=(
        Claim(
            text="Heads of width 4 do not solve what one head of the same total width does.",
            source=VASWANI,
            published="BLEU 24.9, 25.5, 25.8, 25.8 and 25.4 with 1, 4, 8, 16 and 32 heads",
            test=Direction(a="1 head of 32", b="8 heads of 4"),
        ),
        Claim(
            text="It is their width and not their number: four heads of 32 solve it more often "
            "than four of 8.",
            source=BOTTLENECK,
            test=Direction(a="4 heads of 32", b="4 heads of 8"),
        ),
        Claim(
            text="One head of the whole width solves it in most seeds (the positive control).",
            test=Threshold(arm="1 head of 32", at_least=0.95),
        ),
    ),
)
