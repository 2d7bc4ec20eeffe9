"""What becomes of a trained model with a window, with sinks, or with RoPE scaled to longer texts?

    python -m research.train --config=configs/text.py --config.members=5 \
        --config.task.test_fraction=0.05 --config.model.width=64 --config.model.num_layers=3 \
        --config.model.feedforward=256 --config.model.num_heads=8 --config.train.steps=2000 \
        --config.train.checkpoint_every=2000 --config.optimizer.learning_rate=3e-3 \
        --workdir=runs/pretrained
    python -m research.sweep --experiment=experiments/windows_after_training.py \
        --workdir=runs/windows_after_training
    python -m research.report --workdir=runs/windows_after_training

50 runs, none of which trains, 7 minutes on one core after 5 for the models. The models are those of
experiments/convert_to_grouped.py. Needs tiny Shakespeare.

Five character models were trained on 64 characters. Nothing of them has to be converted for another
mask or another scale of RoPE, so they are evaluated as they are, at 64 to 512 characters: with all
keys, with the last 64, with the last 60 or 63 and the first 4 or 1 (the sinks of Xiao et al. 2023),
and with RoPE scaled by 2 or 4, as position interpolation (Chen et al. 2023), NTK-aware and YaRN
(Peng et al. 2023) do it. As a mask, sinks keep their distance in the text, which the model has not
seen beyond 64; in the cache of Xiao et al. they are right before the window. The full model is
therefore streamed through such a cache, too, with 0, 1 and 4 sinks.

Expect, in nats of test at 8 times the length: 3.11 with all keys, 1.80 with a window (1.87 at the
trained length's double), 2.07 and 2.30 with 1 and 4 sinks kept at their distance in the text. So
sinks hurt as a mask, and a cache that streams does as well without them (ratio 1.002): these models
need no sink, against what Xiao et al. find for large ones. NTK-aware scaling is better than none at
2 and 4 times the length, YaRN at 2 (at 4 it is open), and interpolation without training on is far
worse than none (2.82 against 2.05 at 2 times), as its authors say. 7 claims are supported, 6
refuted, 1 is open.
"""

from research.ablation.claims import Claim, Direction, Equivalence, Threshold, Trend
from research.ablation.experiment import Experiment, Outcome

XIAO = "Xiao et al. 2023 (StreamingLLM)"
CHEN = "Chen et al. 2023 (position interpolation)"
PENG = "Peng et al. 2023 (YaRN)"
BY_LENGTH = "loss_by_length"
LENGTHS = (64, 128, 256, 512)
TWICE, FOUR_TIMES, LONGEST = ({"slice": str(length)} for length in LENGTHS[1:])


def scaled(how: str, factor: float) -> dict:
    """Returns the deltas of an arm whose RoPE is scaled."""
    own = {"model.rope_original_length": 64} if how == "yarn" else {}
    return {"model.rope_scaling": how, "model.rope_factor": factor, **own}


def sinks(number: int) -> dict:
    """Returns the deltas of an arm that sees the first tokens and the last, 64 in all."""
    return {
        "model.mask": "window | causal & global",
        "model.window": 64 - number,
        "model.global_tokens": number,
    }


def lower(a: str, b: str, at: dict, margin: float = 0.0) -> Direction:
    """Returns the test that the loss of arm `a` at a length is lower than that of `b`."""
    return Direction(a=a, b=b, margin=margin, at=at, metric=BY_LENGTH)


experiment = Experiment(
    question="What becomes of a trained model with a window, sinks, or RoPE at another scale?",
    base="configs/text.py",
    common={
        "task.test_fraction": 0.05,
        "task.eval_lengths": LENGTHS,
        "model.width": 64,
        "model.num_layers": 3,
        "model.feedforward": 256,
        "model.num_heads": 8,
        "train.init_from": "runs/pretrained/seed-{replicate}",
        "train.steps": 0,
        "train.eval_batches": 12,
    },
    arms={
        "full": {"task.stream_sinks": (0, 1, 4)},
        "window": {"model.mask": "window", "model.window": 64},
        "window, 1 sink": sinks(1),
        "window, 4 sinks": sinks(4),
        "interpolated 2x": scaled("linear", 2.0),
        "interpolated 4x": scaled("linear", 4.0),
        "NTK 2x": scaled("ntk", 2.0),
        "NTK 4x": scaled("ntk", 4.0),
        "YaRN 2x": scaled("yarn", 2.0),
        "YaRN 4x": scaled("yarn", 4.0),
    },
    seeds=5,
    outcome=Outcome(metric="loss_longest"),
    ablated=("flops_per_token", "state_bytes"),
    # Within the steps of the first training: no arm is trained that could converge.
    claims=(
        Claim(
            text="A cache without the first characters streams much worse than one with four.",
            source=f"{XIAO}, Table 1",
            published="Llama-2-13B, 0+1024 against 4+1020 tokens: 5158.07 against 5.40",
            test=Threshold("full", at_least=1.1, metric="stream_perplexity_ratio"),
            within_steps=True,
        ),
        Claim(
            text="At eight times the length, a window with four sinks is better than one without.",
            source=f"{XIAO}, Table 2",
            published={"window": "Llama-2-7B: perplexity 3359.95", "window, 4 sinks": "9.59"},
            test=lower("window, 4 sinks", "window", LONGEST, 0.05),
            within_steps=True,
        ),
        Claim(
            text="One sink is better than none.",
            source=f"{XIAO}, Table 2",
            published={"window": "Llama-2-7B: perplexity 3359.95", "window, 1 sink": "11.88"},
            test=lower("window, 1 sink", "window", LONGEST, 0.05),
            within_steps=True,
        ),
        Claim(
            text="With a window of the trained length the loss changes little beyond it.",
            test=Trend("window", "slice", "flat", margin=0.2, metric=BY_LENGTH),
            within_steps=True,
        ),
        Claim(
            text="With all keys the loss rises beyond the trained length.",
            source=f"{CHEN}, Table 1",
            test=Trend("full", "slice", "increasing", margin=0.3, metric=BY_LENGTH),
            within_steps=True,
        ),
        *(
            Claim(
                text=f"At {factor} times the length, RoPE is better {way} than not scaled.",
                source=source,
                test=lower(f"{way} {factor}x", "full", at),
                within_steps=True,
            )
            for way, source in (
                ("interpolated", f"{CHEN}: after training on; as it is, worse than that"),
                ("NTK", f"{PENG}, section 3.1: without training on"),
                ("YaRN", f"{PENG}, section 3.4"),
            )
            for factor, at in ((2, TWICE), (4, FOUR_TIMES))
        ),
        *(
            Claim(
                text=f"At {factor} times the length, YaRN is better than position interpolation.",
                source=f"{PENG}, section 3.4",
                test=lower(f"YaRN {factor}x", f"interpolated {factor}x", at),
                within_steps=True,
            )
            for factor, at in ((2, TWICE), (4, FOUR_TIMES))
        ),
        Claim(
            text="At twice the length, YaRN keeps the loss of a window of the trained length.",
            test=Equivalence("YaRN 2x", "window", 0.05, at=TWICE, metric=BY_LENGTH),
            within_steps=True,
        ),
    ),
)
