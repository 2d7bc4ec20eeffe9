"""Can a trained multi-head model be given fewer key and value heads, and what does it take?

    python -m research.train --config=configs/text.py --config.members=5 \
        --config.task.test_fraction=0.05 --config.model.width=64 --config.model.num_layers=3 \
        --config.model.feedforward=256 --config.model.num_heads=8 --config.train.steps=2000 \
        --config.train.checkpoint_every=2000 --config.optimizer.learning_rate=3e-3 \
        --workdir=runs/pretrained
    python -m research.sweep --experiment=experiments/convert_to_grouped.py \
        --workdir=runs/convert_to_grouped
    python -m research.report --workdir=runs/convert_to_grouped

105 runs, 5 minutes on one core after as many for the five models. Needs tiny Shakespeare.

Ainslie et al. 2023 convert the key and value heads of trained T5 models into fewer, and then train
for a twentieth of the original steps ("uptraining"). They find that the mean of the heads of a
group is a better start than the first of them, and this than new heads, and that grouped-query
attention is usable at once while multi-query attention needs the uptraining. Here five character
models of 8 heads are trained, and each replicate converts one of them: to 2 key and value heads or
to 1, evaluated as they are (0 steps), after 1 % and after 5 % of the 2,000 steps. The multi-head
model goes on for as many steps. The learning rate is a third of the first training's peak, since
the optimizer starts anew.

Expect, in nats of test over 5 models (multi-head 1.87, guessing single characters about 3.3): as
converted 3.02 with 2 heads that are means, 3.11 with the first heads, 3.16 with new ones; after 5 %
of the steps 2.19, 2.18 and 2.37. With one head 3.09, 3.27, 3.13, then 2.28, 2.28, 2.39. So
uptraining helps at every point (two claims supported), heads of the model are a better start for it
than new ones (supported for one head), and between the mean and the first the models do not decide.
That 5 % of the steps close the gap is refuted for both: 0.32 and 0.41 nats are left. These models
have 8 heads of 8 channels and were trained for 2,000 steps, those of the paper had up to 64 of 64
and a million.
"""

from research.ablation.claims import Claim, Direction, Equivalence, Trend
from research.ablation.experiment import Experiment, Outcome

AINSLIE = "Ainslie et al. 2023 (GQA)"
STEPS = "train.steps"
BEFORE, AFTER = {STEPS: 0}, {STEPS: 100}

experiment = Experiment(
    question="Can a trained multi-head model be given fewer key and value heads?",
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
        "train.log_every": 10,
        "train.eval_every": 20,
        "train.eval_batches": 12,
        "train.checkpoint_every": 100,
    },
    arms={
        "multi-head": {},
        "grouped, mean": {"model.num_kv_heads": 2},
        "grouped, first": {"model.num_kv_heads": 2, "train.init_heads": "first"},
        "grouped, random": {"model.num_kv_heads": 2, "train.init_heads": "random"},
        "multi-query, mean": {"model.num_kv_heads": 1},
        "multi-query, first": {"model.num_kv_heads": 1, "train.init_heads": "first"},
        "multi-query, random": {"model.num_kv_heads": 1, "train.init_heads": "random"},
    },
    axes={STEPS: (0, 20, 100)},
    seeds=5,
    outcome=Outcome(metric="loss"),
    ablated=("parameters", "flops_per_token", "state_bytes"),
    claims=(
        *(
            Claim(
                text=f"Before uptraining, {better} is a better start for {kind} attention than "
                f"{worse}.",
                source=f"{AINSLIE}, section 2.1",
                test=Direction(a=f"{kind}, {better}", b=f"{kind}, {worse}", at=BEFORE),
                within_steps=True,
            )
            for kind in ("grouped", "multi-query")
            for better, worse in (("mean", "first"), ("first", "random"))
        ),
        *(
            Claim(
                text=f"After uptraining for 5 % of the steps, {better} is still the better start "
                f"for multi-query attention than {worse}.",
                source=f"{AINSLIE}, Figure 4",
                published="T5 Large, multi-query, 5 % of the steps: mean over first over random",
                test=Direction(a=f"multi-query, {better}", b=f"multi-query, {worse}", at=AFTER),
                within_steps=True,
            )
            for better, worse in (("mean", "first"), ("first", "random"))
        ),
        Claim(
            text="As converted, grouped-query attention is better than multi-query.",
            source=f"{AINSLIE}, Figure 5",
            published="T5 XXL without uptraining: grouped reasonable, multi-query not usable",
            test=Direction(a="grouped, mean", b="multi-query, mean", margin=0.1, at=BEFORE),
            within_steps=True,
        ),
        *(
            Claim(
                text=f"Uptraining improves {kind} attention from 0 to 1 to 5 % of the steps.",
                source=f"{AINSLIE}, Figure 5",
                published="much of the gain by 5 % of the steps, diminishing returns from 10 %",
                test=Trend(f"{kind}, mean", STEPS, "decreasing", margin=0.1),
                within_steps=True,
            )
            for kind in ("grouped", "multi-query")
        ),
        *(
            Claim(
                text=f"After 5 % of the steps {kind} attention is within {margin} nats of the "
                "multi-head model that was trained on as long.",
                source=f"{AINSLIE}, Table 1",
                published={"multi-head": "XXL: 47.2 (average of 7 tasks)", f"{kind}, mean": score},
                test=Equivalence(f"{kind}, mean", "multi-head", margin, at=AFTER),
                within_steps=True,
            )
            for kind, margin, score in (
                ("grouped", 0.05, "XXL, 8 groups: 47.1"),
                ("multi-query", 0.1, "XXL: 46.6"),
            )
        ),
    ),
)
