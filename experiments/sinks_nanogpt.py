"""Does a language model of nanoGPT's size need its first tokens kept?

    python -m research.sweep --experiment=experiments/sinks_nanogpt.py --workdir=runs/sinks_nanogpt
    python -m research.report --workdir=runs/sinks_nanogpt

6 runs, 5 minutes on an H100. Needs tiny Shakespeare. Expect a validation loss of 1.49 (nanoGPT's
README has 1.4697 after 5,000 steps), no head with more than 1.7 % of its attention on the first
token, and no difference between perplexities with and without it.

experiments/sinks.py with a hundred times the parameters and fifty times the tokens: nanoGPT's
recipe for a GPU (6 layers, 6 heads, width 384, context 256, batch 64, dropout 0.2), with RoPE, in
bfloat16, over 1,500 steps. What heads put on the first token is measured too.

The figures are of validation, which also chose the checkpoints; the outcome is of a test by now.
"""

from research.ablation.claims import Claim, Direction, Equivalence, Threshold
from research.ablation.experiment import Experiment, Outcome

XIAO = "Xiao et al. 2023 (StreamingLLM)"

experiment = Experiment(
    question="Does a language model of nanoGPT's size need its first tokens kept?",
    base="configs/text.py",
    common={
        "task.test_fraction": 0.05,
        "task.length": 256,
        "task.batch_size": 64,
        "task.stream_sinks": (0, 1, 4),
        "task.stream_tokens": 1024,
        "model.width": 384,
        "model.num_layers": 6,
        "model.num_heads": 6,
        "model.feedforward": 1536,
        "model.dropout": 0.2,
        "model.dtype": "bfloat16",
        "train.steps": 1500,
        "train.eval_every": 250,
        "train.eval_batches": 6,
        "train.checkpoint_every": 1500,
        "interpret.measures": ("sink",),
    },
    arms={
        "softmax": {},
        "softmax with a learned sink": {"model.normalizer": "softmax_sink"},
    },
    seeds=(0, 1, 2),
    outcome=Outcome(metric="stream_perplexity_ratio"),
    claims=(
        Claim(
            text="Without its first tokens softmax attention has a much worse perplexity.",
            source=f"{XIAO}, Table 1",
            published="Llama-2-13B, 0+1024 against 4+1020 tokens: 5158.07 against 5.40",
            test=Threshold("softmax", at_least=1.1),
        ),
        Claim(
            text="Some head puts half of its attention on the first token.",
            source=f"{XIAO}, Figure 2: beyond the bottom two layers, most of it",
            test=Threshold("softmax", at_least=0.5, metric="sink"),
        ),
        Claim(
            text="With somewhere else to look no head does so much.",
            source=f"{XIAO}, section 3.3",
            test=Direction(
                a="softmax with a learned sink", b="softmax", metric="sink", better="lower"
            ),
        ),
        Claim(
            text="With four first tokens both stream equally well.",
            source=f"{XIAO}, Table 3",
            test=Equivalence(
                a="softmax", b="softmax with a learned sink", margin=0.05, metric="stream_loss"
            ),
        ),
    ),
)
