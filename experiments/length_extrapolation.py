"""Which positions carry a language model beyond the length that it was trained at?

    python -m research.sweep --experiment=experiments/length_extrapolation.py \
        --workdir=runs/length_extrapolation
    python -m research.report --workdir=runs/length_extrapolation

32 runs, 9 minutes on one core. Needs tiny Shakespeare. Expect, over 8 seeds and within 600 steps,
2.10 nats with ALiBi at 512 characters, less than at 64 (2.17), 2.47 without positions, 2.51 with
RoPE, which is best at 64 (2.09), and 2.98 with sines (2.27 at 64). Five claims are supported; that
no positions do as well as ALiBi at 512 is refuted. The claims were given these words after a look
at an earlier sweep, and were then tested on seeds that it had not seen.

Press et al. 2022 train at one length and evaluate at longer ones: with ALiBi the loss stays or
falls, with sinusoidal positions it rises at once, RoPE lies in between. Here a character model is
trained at 64 characters and evaluated, as it is, at up to 512. The other side, a task in which
something far away has to be found, is experiments/length_extrapolation_recall.py.
"""

from research.ablation.claims import Claim, Direction, Equivalence, Trend
from research.ablation.experiment import Experiment, Outcome

PRESS = "Press et al. 2022 (ALiBi), Figure 1"
BY_LENGTH = "loss_by_length"

experiment = Experiment(
    question="Which positions carry a language model beyond its training length?",
    base="configs/text.py",
    common={
        "task.test_fraction": 0.05,
        "task.eval_lengths": (64, 128, 256, 512),
        "model.width": 64,
        "model.num_layers": 2,
        "model.feedforward": 256,
        "train.steps": 600,
        "train.eval_every": 60,
        "train.eval_batches": 12,
        "train.checkpoint_every": 600,
        "optimizer.learning_rate": 3e-3,
    },
    arms={
        "ALiBi": {"model.position": "alibi"},
        "RoPE": {},
        "sinusoidal": {"model.position": "sinusoidal"},
        "none": {"model.position": "none"},
    },
    seeds=8,
    outcome=Outcome(metric="loss_longest"),
    claims=(
        Claim(
            text="With ALiBi the loss falls beyond the training length.",
            source="Press et al. 2022 (ALiBi), abstract",
            published="1.3 billion parameters: trained at 1,024 and tested at 2,048 tokens, the "
            "perplexity of a sinusoidal model trained at 2,048",
            test=Trend("ALiBi", "slice", "decreasing", metric=BY_LENGTH),
            within_steps=True,
        ),
        Claim(
            text="With sinusoidal positions it rises.",
            source=PRESS,
            test=Trend("sinusoidal", "slice", "increasing", margin=0.1, metric=BY_LENGTH),
            within_steps=True,
        ),
        Claim(
            text="RoPE does not extrapolate either.",
            source=PRESS,
            test=Trend("RoPE", "slice", "increasing", margin=0.1, metric=BY_LENGTH),
            within_steps=True,
        ),
        Claim(
            text="At eight times the training length ALiBi is better than RoPE.",
            source=PRESS,
            test=Direction(a="ALiBi", b="RoPE", margin=0.1),
            within_steps=True,
        ),
        Claim(
            text="At the training length RoPE is not worse than ALiBi.",
            test=Direction(
                a="RoPE", b="ALiBi", at={"slice": "64"}, metric=BY_LENGTH, better="lower"
            ),
            within_steps=True,
        ),
        Claim(
            text="Without positions the loss at eight times the length is that of ALiBi.",
            source="Kazemnejad et al. 2023: no positions extrapolate best, on reasoning tasks",
            test=Equivalence(a="none", b="ALiBi", margin=0.05),
            within_steps=True,
        ),
    ),
)
