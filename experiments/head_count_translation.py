"""How many heads, at a fixed width, in translation?

    python -m research.sweep --experiment=experiments/head_count_translation.py \
        --workdir=runs/head_count_translation
    python -m research.report --workdir=runs/head_count_translation

Vaswani et al. 2017, Table 3, row (A), cuts a width of 512 into 1 to 32 heads and gives perplexity
per token beside BLEU: 5.29, 5.00, 4.92, 4.91 and 5.01 (and 24.9, 25.5, 25.8, 25.8 and 25.4 BLEU) at
1, 4, 8, 16 and 32 heads. One head costs 0.07 nats per token, four heads 0.02. Here a width of 64 on
Multi30k, German to English, is cut into 1, 4 and 8, in 600 steps of 64 sentences: far from the end
of training, at a learning rate that is the same for all arms and was not tuned.

9 runs, about 3.5 minutes an arm to train and 2 to 4 to decode, on 2 cores that other programs were
using as well. The committed report has two of the three arms: one head ends at 3.135 nats (10.9
BLEU), eight heads, which are 8 wide, at 3.184 (10.3 BLEU). The published order is not seen, and
three seeds refute nothing: the difference of 0.049 nats is known to within 0.09.
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
        "train.eval_every": 200,
        "train.checkpoint_every": 600,
        "decoding.beam": 1,
    },
    arms={
        "8 heads": {"model.num_heads": 8},
        "1 head": {"model.num_heads": 1},
        "4 heads": {"model.num_heads": 4},
    },
    seeds=3,
    outcome=Outcome(metric="loss"),
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
            text="One head of the whole width translates worse than eight, in BLEU.",
            source=SOURCE,
            published=BLEU,
            test=Direction(a="8 heads", b="1 head", metric="bleu"),
            primary=False,
        ),
    ),
)
