"""How many heads, at a fixed width, in translation?

    python -m research.sweep --experiment=experiments/head_count_translation.py \
        --workdir=runs/head_count_translation
    python -m research.report --workdir=runs/head_count_translation

Vaswani et al. 2017, Table 3, row (A), cuts a width of 512 into 1 to 32 heads and gives perplexity
per token beside BLEU: 5.29, 5.00, 4.92, 4.91 and 5.01 (and 24.9, 25.5, 25.8, 25.8 and 25.4 BLEU) at
1, 4, 8, 16 and 32 heads. One head costs 0.07 nats per token, four heads 0.02. Here a width of 64 on
Multi30k, German to English, is cut into 1, 4 and 8, or each of 8 heads has 64 channels, in 600
steps of 64 sentences: far from the end of training, at a learning rate that is the same for all
arms and was not tuned.

20 runs, 37 minutes on one core with the decoding. Expect, in nats of test over 5 seeds: 3.183 with
8 heads of 8, 3.155 with 4 of 16, 3.113 with one of 64, and 2.853 with 8 heads of 64. So the
published order of equal widths is not seen, and eight heads of the whole width each are better by
0.33 than eight of 8, as the low-rank bottleneck of Bhojanapalli et al. 2020 has it, but with more
parameters. No arm has converged after 600 steps: one claim is open, three cannot be told.
"""

from research.ablation.claims import Claim, Direction, Equivalence
from research.ablation.experiment import Experiment, Outcome

SOURCE = "Vaswani et al. 2017, Table 3 (A)"
NATS = {"1 head": 1.666, "4 heads": 1.609, "8 heads": 1.593, "16 heads": 1.591}
BLEU = {"1 head": 24.9, "4 heads": 25.5, "8 heads": 25.8, "16 heads": 25.8}

experiment = Experiment(
    question="How many heads should a fixed width be cut into, to translate?",
    base="configs/translation.py",
    common={
        "task.bpe_vocab_size": 1000,
        "task.buckets": 2,
        "task.length": 32,
        "model.width": 64,
        "model.num_layers": 2,
        "model.feedforward": 256,
        "model.embedding_stddev": 0.125,
        "model.dropout": 0.1,
        "optimizer.learning_rate": 3e-3,
        "optimizer.warmup_steps": 100,
        "train.steps": 600,
        "train.eval_every": 50,
        "train.checkpoint_every": 600,
        "decoding.beam": 1,
    },
    arms={
        "8 heads": {"model.num_heads": 8},
        "1 head": {"model.num_heads": 1},
        "4 heads": {"model.num_heads": 4},
        "8 heads of 64": {"model.num_heads": 8, "model.head_width": 64},
    },
    seeds=5,
    outcome=Outcome(metric="loss"),
    ablated=("parameters", "flops_per_token", "state_bytes"),
    claims=(
        Claim(
            text="One head of the whole width translates worse than eight, in nats per token.",
            source=SOURCE,
            published=NATS,
            test=Direction(a="8 heads", b="1 head"),
        ),
        Claim(
            text="Four heads are as good as eight, within 0.05 nats per token.",
            source=SOURCE,
            published=NATS,
            test=Equivalence(a="4 heads", b="8 heads", margin=0.05),
        ),
        Claim(
            text="Eight heads of the whole width each are better than eight of 8.",
            source="Bhojanapalli et al. 2020, Theorem 1: the low-rank bottleneck of narrow heads",
            test=Direction(a="8 heads of 64", b="8 heads"),
        ),
        Claim(
            text="One head of the whole width translates worse than eight, in BLEU.",
            source=SOURCE,
            published=BLEU,
            test=Direction(a="8 heads", b="1 head", metric="bleu"),
            primary=False,
        ),
    ),
)
