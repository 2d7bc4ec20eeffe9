"""How many heads does a model of 125M need, and is it their number or their width?

    python -m research.plan --experiment=experiments/tpu/head_count_125m.py --tokens=10B \
        --max_members=auto
    python -m research.sweep --experiment=experiments/tpu/head_count_125m.py --distributed \
        --max_members=auto --workdir=runs/tpu_head_count_125m

The width of 768 is cut into 4 to 48 heads, as in row (A) of Table 3 of Vaswani et al. 2017; or all
heads are 64 wide, however many there are, as Bhojanapalli et al. 2020 propose against the low-rank
bottleneck. "48 of 16" and "48 of 64" differ in the width of a head alone. Wider heads have more
parameters, which the report shows beside the loss.

21 runs on v5e:4x4, one after the other: two do not fit at once, with logits of 50,304 tokens. The
plan says 12.7 hours, $244 on demand, $50 spot; 0.29 s a step with heads of 128, 0.33 with 12 of 64
and 0.53 with 48 of 16, which a TPU pads to 128. The narrowest arm takes 15.9 GB of 16.9, and 14.9
when it is compiled. It has not been run. One head of 768 is left out: splash attention of that
width does not compile for a v5e within the training step (its kernel exceeds the fast memory).
"""

from research.ablation.claims import Claim, Direction
from research.ablation.experiment import Experiment, Outcome

VASWANI = "Vaswani et al. 2017, Table 3 (A): a single head is worse, and so are too many"
BOTTLENECK = (
    "Bhojanapalli et al. 2020, Theorem 1 and section 4: narrow heads are a low-rank bottleneck"
)


def heads(number: int, width: int) -> dict[str, int]:
    """Returns the arm of so many heads of this width."""
    return {"model.num_heads": number, "model.head_width": width}


experiment = Experiment(
    question="How many heads should a model of 125M have, and how wide?",
    base="configs/tpu/lm_125m.py",
    common={
        # For all arms, so that times compare heads: "auto" may choose another for some.
        "model.implementation": "splash",
        "parallel.slice": "v5e:4x4",
    },
    arms={
        "4 of 192": heads(4, 192),
        "6 of 128": heads(6, 128),
        "12 of 64": heads(12, 64),
        "24 of 32": heads(24, 32),
        "48 of 16": heads(48, 16),
        "24 of 64": heads(24, 64),
        "48 of 64": heads(48, 64),
    },
    seeds=3,
    # Validation chooses nothing: no arm is tuned, and the last step is reported.
    outcome=Outcome(metric="loss", split="validation", at="final"),
    ablated=("parameters", "flops_per_token", "state_bytes"),
    claims=(
        Claim(
            text="The width cut into 48 heads of 16 predicts worse than into 12 of 64.",
            source=VASWANI,
            published="perplexity 5.29, 5.00, 4.92, 4.91 and 5.01 with 1, 4, 8, 16 and 32 heads",
            test=Direction("12 of 64", "48 of 16"),
        ),
        Claim(
            text="It is their width and not their number: 48 heads of 64 predict better than 48 of "
            "16.",
            source=BOTTLENECK,
            test=Direction("48 of 64", "48 of 16"),
        ),
        Claim(
            text="At a fixed width of heads, more of them do not hurt: 48 heads of 64 predict "
            "better than 12 of 64.",
            source=BOTTLENECK,
            test=Direction("48 of 64", "12 of 64"),
        ),
    ),
)
