"""What happens to recall when the sequence grows?

    python -m research.sweep --experiment=experiments/sequence_length.py \
        --workdir=runs/sequence_length
    python -m research.report --workdir=runs/sequence_length

54 runs, about 10 minutes on 2 cores. Softmax solved all lengths in four of four seeds; a window of
8 tokens falls from 0.70 to 0.36, as more and more queries stand farther from their key than its
two layers can see. Four seeds cannot show that a probability to solve stays within 0.05.

A first version with 700 steps, 3 seeds and a window of 16 left both claims open: at 128 tokens two
of three softmax seeds had not got to the sudden rise yet, and two layers of 16 reach 31 tokens.

The gaps between a key and its query follow Zoology's power law (Arora et al. 2023, appendix), so
they spread over the whole sequence, however long. What a windowed model can see does not grow.
"""

from research.ablation.claims import Claim, Trend
from research.ablation.experiment import Experiment, Outcome

experiment = Experiment(
    question="Does recall survive longer sequences?",
    base="configs/recall.py",
    common={"task.num_pairs": (1, 2, 4), "train.steps": 1200},
    arms={
        "softmax": {},
        "window of 8": {"model.mask": "window", "model.window": 8},
        "linear": {"model.mixer": "linear", "model.position": "none"},
    },
    axes={"task.length": (32, 64, 128)},
    tune={"optimizer.learning_rate": (3e-3, 6e-3)},
    tune_seeds=(100,),
    tune_extend=0,  # as its results were made
    seeds=(0, 1, 2, 3),
    outcome=Outcome(metric="accuracy", solved=0.95),
    ablated=("flops_per_token", "state_bytes"),
    claims=(
        Claim(
            text="Softmax attention recalls as well at 128 tokens as at 32.",
            source="Arora et al. 2023 (Zoology), Figure 2",
            published="attention solves the task at every length",
            test=Trend("softmax", "task.length", "flat", margin=0.05),
        ),
        Claim(
            text="A window loses recall as the sequence outgrows it.",
            source="Arora et al. 2024 (Based), section 3: the range of a window limits its recall",
            test=Trend("window of 8", "task.length", "decreasing", margin=0.1),
        ),
    ),
)
