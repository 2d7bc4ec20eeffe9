"""Do small language models need their first tokens kept when a text streams through them?

    python -m research.sweep --experiment=experiments/sinks.py --workdir=runs/sinks
    python -m research.report --workdir=runs/sinks

24 runs, 9 minutes on one core. Needs tiny Shakespeare. Expect no difference at all: over 8 seeds,
perplexities with 0 and 4 first tokens are equal to 0.2 %, in models of nanoGPT's size too
(experiments/sinks_nanogpt.py).

Xiao et al. 2023 find that large models put much of their attention on the first tokens, whatever
these are, since softmax has to put it somewhere. A rolling cache that drops the first tokens then
ruins the perplexity, and one that keeps four of them does not. A softmax that may put attention
nowhere should need none. Here a character model is trained at 64 characters and streamed through a
cache of 64, with 0, 1, 2 and 4 first tokens kept; the outcome is the perplexity with none over that
with four. Windows of training begin anywhere in the text, as theirs do.
"""

from research.ablation.claims import Claim, Direction, Equivalence, Threshold
from research.ablation.experiment import Experiment, Outcome

XIAO = "Xiao et al. 2023 (StreamingLLM)"

experiment = Experiment(
    question="Do small language models need their first tokens kept?",
    base="configs/text.py",
    common={
        "task.test_fraction": 0.05,
        "task.stream_sinks": (0, 1, 2, 4),
        "task.stream_tokens": 1024,
        "model.width": 64,
        "model.num_layers": 2,
        "model.feedforward": 256,
        "train.steps": 600,
        "train.eval_every": 50,
        "train.eval_batches": 12,
        "train.checkpoint_every": 600,
        "optimizer.learning_rate": 3e-3,
    },
    arms={
        "softmax": {},
        "softmax with a learned sink": {"model.normalizer": "softmax_sink"},
        "softmax off by one": {"model.normalizer": "softmax_plus_one"},
    },
    seeds=8,
    outcome=Outcome(metric="stream_perplexity_ratio"),
    claims=(
        Claim(
            text="Without its first tokens softmax attention has a much worse perplexity.",
            source=f"{XIAO}, Table 1",
            published="Llama-2-13B, 0+1024 against 4+1020 tokens: 5158.07 against 5.40",
            test=Threshold("softmax", at_least=1.1),
        ),
        Claim(
            text="Softmax with somewhere else to look needs them less.",
            source=f"{XIAO}, Table 3: 160 million parameters with a learnable sink, 1+1023: 18.01",
            test=Direction(a="softmax with a learned sink", b="softmax", margin=0.01),
        ),
        Claim(
            text="With four first tokens all three stream equally well.",
            source=f"{XIAO}, Table 3",
            test=Equivalence(
                a="softmax", b="softmax with a learned sink", margin=0.05, metric="stream_loss"
            ),
        ),
    ),
)
