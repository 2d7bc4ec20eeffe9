"""What does a window lose, and what does it save, from 8,192 to 131,072 tokens?

    python -m research.plan --experiment=experiments/tpu/sequence_length.py --tokens=10B \
        --budget=150
    python -m research.sweep --experiment=experiments/tpu/sequence_length.py \
        --distributed --workdir=runs/tpu_sequence_length

6 runs of the 125M model on v5e:8x8, every sequence split over 8 chips (parallel.context), 8 of them
side by side, Pallas splash attention with the keys gathered. The plan says 1.1 hours, $83 on
demand, $17 spot; a step at 131,072 tokens takes 1.6 s, with the window 0.16 and what the gathered
keys wait for. A chip needs 3.3 GB at 8,192 tokens and 8.8 at 131,072, 2.5 of them tokens. It has
not been run.

One seed is not evidence; it is what this budget allows, and the report says so. All lengths take
2,000 steps, so that the longer ones read more tokens: compare the arms, not the lengths.
"""

from research.ablation.claims import Claim, Direction
from research.ablation.experiment import Experiment, Outcome

experiment = Experiment(
    question="What does a window lose, and what does it save, from 8k to 128k tokens?",
    base="configs/tpu/lm_125m.py",
    common={
        "task.batch_size": 8,  # one for each group of chips that splits a sequence
        "train.steps": 2000,
        "train.eval_every": 500,
        "train.eval_batches": 2,
        "optimizer.warmup_steps": 200,
        "model.implementation": "splash",
        "parallel.context": 8,
        "parallel.slice": "v5e:8x8",
    },
    arms={
        "softmax": {},
        "window of 1,024": {"model.mask": "window", "model.window": 1024},
    },
    axes={"task.length": (8192, 32768, 131072)},
    seeds=(0,),
    # Validation chooses nothing: no arm is tuned, and the last step is reported.
    outcome=Outcome(metric="loss", split="validation", at="final"),
    ablated=("flops_per_token", "state_bytes"),
    claims=(
        Claim(
            text="At 131,072 tokens a window of 1,024 predicts worse than full attention.",
            source="Arora et al. 2024 (Based), section 3: the range of a window limits its recall",
            test=Direction("softmax", "window of 1,024", margin=0.02, at={"task.length": 131072}),
        ),
    ),
)
