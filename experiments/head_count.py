"""How many heads, at a fixed width?

    python -m research.sweep --experiment=experiments/head_count.py \
        --workdir=runs/head_count
    python -m research.report --workdir=runs/head_count

35 runs, about 4 minutes on 2 cores. 1 and 2 heads solved recall in five of five seeds, 4 heads in
one, 8 and 16 heads in none; five seeds leave all three claims open. The reference arm fails in most
seeds, and an arm that has not solved the task in these 700 steps may do so later. The last claim
was written after a first run.

Vaswani et al. 2017, Table 3, row (A), varies the heads at a fixed total width on translation: one
head loses 0.9 BLEU, and "quality also drops off with too many heads". Recall needs one look-up per
token, so only the second half of that statement can show here; the first is tested all the same.
"""

from research.ablation.claims import Claim, Direction
from research.ablation.experiment import Experiment, Outcome

BLEU = {"1 head": 24.9, "4 heads": 25.5, "8 heads": 25.8, "16 heads": 25.8}

experiment = Experiment(
    question="How many heads should a fixed width be cut into?",
    base="configs/recall.py",
    common={"task.length": 32},
    arms={
        "4 heads": {"model.num_heads": 4},
        "1 head": {"model.num_heads": 1},
        "2 heads": {"model.num_heads": 2},
        "8 heads": {"model.num_heads": 8},
        "16 heads": {"model.num_heads": 16},
    },
    tune={"optimizer.learning_rate": (3e-3, 6e-3)},
    tune_seeds=(100,),
    tune_extend=0,  # as its results were made
    seeds=(0, 1, 2, 3, 4),
    outcome=Outcome(metric="accuracy", solved=0.95),
    claims=(
        Claim(
            text="Too many heads hurt: 16 heads of width 2 recall less than 4 heads of width 8.",
            source="Vaswani et al. 2017, Table 3 (A): BLEU at 1, 4, 8 and 16 heads (32: 25.4)",
            published=BLEU,
            test=Direction(a="4 heads", b="16 heads", margin=0.1),
        ),
        Claim(
            text="One head is worse than four.",
            source="Vaswani et al. 2017, Table 3 (A): 0.9 BLEU below the best",
            published=BLEU,
            test=Direction(a="4 heads", b="1 head"),
        ),
        Claim(
            text="Heads of width 2 recall less than one head of the whole width.",
            test=Direction(a="1 head", b="16 heads", margin=0.3),
        ),
    ),
)
