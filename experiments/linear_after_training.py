"""Can a trained softmax model be given linear attention, and does teaching it first help?

    python -m research.train --config=configs/text.py --config.members=5 \
        --config.task.test_fraction=0.05 --config.model.width=64 --config.model.num_layers=3 \
        --config.model.feedforward=256 --config.model.num_heads=8 --config.train.steps=2000 \
        --config.train.checkpoint_every=2000 --config.optimizer.learning_rate=3e-3 \
        --workdir=runs/pretrained
    python -m research.sweep --experiment=experiments/linear_after_training.py \
        --workdir=runs/linear_after_training
    python -m research.report --workdir=runs/linear_after_training

The models are those of experiments/convert_to_grouped.py. Needs tiny Shakespeare.

Zhang et al. 2024 (LoLCATs) replace the softmax attention of trained models by linear attention with
a learned feature map. They first teach each feature map to give the outputs of the softmax that it
replaces (attention transfer), and then train on for a short time. They find that this recovers more
than to train on without it, and that linear attention beside a softmax over a window recovers more
than linear attention alone. Here five character models are converted: to linear attention without
anything to learn (elu + 1, without RoPE, as in Mercat et al. 2024), to the learned feature map, and
to that with a window of 8 of 64 characters; the last two as they are, or taught for 100 steps. Each
is evaluated as converted, and after 100 and 200 steps, so that what was taught and trained for 100
steps can be compared with what was trained for 200. A window of 8 alone says what the linear part
is for, and the softmax model goes on for as many steps. The paper trains adapters of low rank; here
all parameters are trained.

105 runs, 11 minutes on one core, and 4 for the models. Expect, in nats over 5 models, as converted
and after 200 steps: softmax 1.87 and 1.87, its window 1.89 and 1.88, elu + 1 2.98 and 2.41, the
learned map 2.90 and 2.26, taught 2.82 and 2.21, the hybrid 2.97 and 2.13, taught 2.18 and 1.90. Six
claims are supported: teaching helps wherever it was asked but for the learned map as converted
(open), and the hybrid most. That the taught hybrid is within 0.05 nats of softmax attention stays
open (0.03). That it is better than its window alone is refuted: these models hardly look further
back than 8 characters.
"""

from research.ablation.claims import Claim, Direction, Equivalence
from research.ablation.experiment import Experiment, Outcome

ZHANG = "Zhang et al. 2024 (LoLCATs)"
STEPS = "train.steps"
BEFORE, AFTER = {STEPS: 0}, {STEPS: 200}
LEARNED = {"model.mixer": "hedgehog"}
HYBRID = LEARNED | {"model.window": 8}
TAUGHT = {"train.transfer_steps": 100}

experiment = Experiment(
    question="Can a trained softmax model be given linear attention, and does teaching it help?",
    base="configs/text.py",
    common={
        "task.test_fraction": 0.05,
        "model.width": 64,
        "model.num_layers": 3,
        "model.feedforward": 256,
        "model.num_heads": 8,
        "optimizer.learning_rate": 1e-3,
        "optimizer.warmup_steps": 10,
        "train.init_from": "runs/pretrained/seed-{replicate}",
        "train.log_every": 20,
        "train.eval_every": 50,
        "train.eval_batches": 12,
        "train.checkpoint_every": 200,
    },
    arms={
        "softmax": {},
        "window": {"model.mask": "window", "model.window": 8},
        "elu": {"model.mixer": "linear", "model.position": "none"},
        "learned": LEARNED,
        "learned, taught": LEARNED | TAUGHT,
        "hybrid": HYBRID,
        "hybrid, taught": HYBRID | TAUGHT,
    },
    axes={STEPS: (0, 100, 200)},
    seeds=5,
    outcome=Outcome(metric="loss"),
    ablated=("parameters", "flops_per_token", "state_bytes"),
    claims=(
        *(
            Claim(
                text=f"{when}, {kind} attention is better if it was taught.",
                source=f"{ZHANG}, section 3",
                published="training on is easy once linear attention gives the outputs of softmax",
                test=Direction(a=f"{kind}, taught", b=kind, at=at),
                within_steps=True,
            )
            for kind in ("learned", "hybrid")
            for when, at in (("As converted", BEFORE), ("After 200 steps", AFTER))
        ),
        *(
            Claim(
                text=f"After {at} steps, taught linear attention is better beside a window.",
                source=f"{ZHANG}, section 3",
                published="a window lowers the error of the outputs and the perplexity",
                test=Direction(a="hybrid, taught", b="learned, taught", at={STEPS: at}),
                within_steps=True,
            )
            for at in (0, 200)
        ),
        Claim(
            text="After 200 steps, a learned feature map that was taught is better than elu + 1.",
            source=ZHANG,
            test=Direction(a="learned, taught", b="elu", at=AFTER),
            within_steps=True,
        ),
        Claim(
            text="After 200 steps, the taught hybrid is better than its window alone.",
            test=Direction(a="hybrid, taught", b="window", at=AFTER),
            within_steps=True,
        ),
        Claim(
            text="After 200 steps the taught hybrid is within 0.05 nats of the softmax model.",
            source=ZHANG,
            published="most of the gap to the softmax model is closed",
            test=Equivalence("hybrid, taught", "softmax", 0.05, at=AFTER),
            within_steps=True,
        ),
    ),
)
