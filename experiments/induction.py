"""Do induction heads need two layers, and do they form abruptly?

    python -m research.sweep --experiment=experiments/induction.py --workdir=runs/induction
    python -m research.report --workdir=runs/induction

63 runs, 18 minutes on one core. Expect: one layer stays at 0.08 whatever its width, in 10 of 10
seeds; two layers reach 0.999 in 10 of 10, with a rise time of 0.05. All four claims are supported.

Olsson et al. 2022 find that attention-only models of one layer never form induction heads, while
those of two and more do, in a narrow window of training. Here a segment of random tokens comes
twice, at random distances, and is asked about at its second occurrence; a model with one layer of
twice the width has more parameters than two layers of the usual one. The rise time is the part of
training that the accuracy took from 20 to 80 % of its way to 0.9; a steady rise has 0.6.
"""

from research.ablation.claims import Claim, Direction, Threshold
from research.ablation.experiment import Experiment, Outcome

SOURCE = "Olsson et al. 2022, Argument 1"

experiment = Experiment(
    question="Do induction heads need two layers, and do they form abruptly?",
    base="configs/induction.py",
    arms={
        "1 layer": {"model.num_layers": 1},
        "1 wide layer": {"model.num_layers": 1, "model.width": 128, "model.num_heads": 8},
        "2 layers": {},
    },
    tune={"optimizer.learning_rate": (3e-3, 6e-3, 1.2e-2)},
    seeds=10,
    outcome=Outcome(metric="accuracy", solved=0.9),
    ablated=("parameters", "flops_per_token", "state_bytes"),
    claims=(
        Claim(
            text="Two layers find what followed last time; one layer does not.",
            source=SOURCE,
            published="one-layer attention-only models never form induction heads",
            test=Direction(a="2 layers", b="1 layer", margin=0.5),
        ),
        Claim(
            text="It is not a matter of size: one layer with more parameters does not either.",
            source=SOURCE,
            test=Direction(a="2 layers", b="1 wide layer", margin=0.5),
        ),
        Claim(
            text="One layer stays near guessing among the tokens that it has seen.",
            source=SOURCE,
            test=Threshold("1 layer", at_most=0.15),
        ),
        Claim(
            text="Two layers learn it abruptly: most of the way in a fifth of training.",
            source="Olsson et al. 2022, Argument 1: a phase change in a narrow window of training",
            published="between about 2.5 and 5 of 10 billion tokens",
            test=Threshold("2 layers", at_most=0.2, metric="rise_time"),
        ),
    ),
)
