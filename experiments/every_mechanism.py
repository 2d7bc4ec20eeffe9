"""Does every registered mechanism train? A few steps of each, built from the registry.

    python -m research.sweep --experiment=experiments/every_mechanism.py --workdir=runs/every
    python -m research.report --workdir=runs/every

One arm for every mixer, score, mask, normalizer, position encoding and switch, 30 steps on one
seed: a check that each is reachable from a config by its name, compiles and learns, and a quick
look at what each costs. It is no ablation: nothing is tuned, and one seed is no evidence.
When it had 64 arms they took 5 minutes on 2 cores as two shards (--shard=1/2 and 2/2), most of it
compilation; it has more now.
"""

from research.ablation.experiment import Experiment, Outcome
from research.attention.parts.tables import TABLES
from research.attention.registry import MECHANISM_OPTIONS, MIXERS
from research.options import declarations, has_to_be_set

NEEDS = {"window": 8, "prefix_length": 8, "dilation": 2, "stride": 8, "global_tokens": 2}
NEEDS |= {"top_blocks": 2}
# Blocks and a window that 32 tokens have several of.
SHORT = {"compress_length": 4, "compress_stride": 2, "block_length": 4, "top_blocks": 4}
SIZES = {"native_sparse": SHORT | {"window": 8}}
ON = {"num_kv_heads": 1, "softcap": 5.0, "qk_norm": "rms", "predicted_window": 8}
ON |= {"value_residual": "learned", "score_conv_queries": 3, "index_top": 8}
# Of models around their mixers.
AROUND = {"norm": "zero_centered_rmsnorm", "embedding_scale": 8.0, "parallel_residual": True}
AROUND |= {"embedding_norm": True, "output_scale": 0.5, "output_bias": True}
FREE = {"model.position": "none"}
# What the arm "mixer softmax" is made of; these have no arm of their own.
BASE = ("softmax", "scaled_dot", "causal", "rope")


def arms() -> dict[str, dict]:
    """Returns {"key name": deltas} for everything that is registered."""
    found: dict[str, dict] = {}
    for name, entry in MIXERS.items():
        mask = {} if entry.causal else {"model.mask": "full"}
        sizes = {f"model.{key}": value for key, value in SIZES.get(name, {}).items()}
        own = {"model.mixer": name, **FREE, **mask, **sizes}
        found[f"mixer {name}"] = own if name != "softmax" else {}
    for field, table in TABLES.items():
        for name, part in table.items():
            if name in BASE:
                continue
            options = declarations(part).items()
            needed = [key for key, declared in options if has_to_be_set(declared)]
            needs = {f"model.{key}": NEEDS.get(key, 8) for key in needed}
            found[f"{field} {name}"] = {f"model.{field}": name, **needs}
    for name in MECHANISM_OPTIONS:
        found[name] = {f"model.{name}": ON.get(name, True)}
    for name, value in AROUND.items():
        found[name] = {f"model.{name}": value}
    found["parallel_residual"] |= {"model.feedforward": 64}
    found["score_scale"] = {"model.score_scale": 0.2}
    found["value_width"] = {"model.mixer": "gated_delta", "model.value_width": 32, **FREE}
    biased = {"model.short_convolution": 4, "model.convolution_bias": True}
    delta = {"model.mixer": "gated_delta", **FREE}
    found["num_key_heads"] = {"model.num_key_heads": 1, **delta}
    found["output_norm_gain"] = {"model.output_norm_gain": True, **delta}
    space = {"model.mixer": "state_space", **FREE}
    found["convolution_bias"] = {**biased, **space}
    found["state_groups"] = {"model.state_groups": 2, **space}
    for name in ("trapezoidal", "rotating", "biased_state"):
        found[name] = {f"model.{name}": True, **space}
    found["log_levels"] = {"model.log_levels": 6, **space}
    found["share_kv"] = {"model.pattern": ("mask=causal", "share_kv=true")}
    found["pattern"] = {"model.pattern": ("mixer=gated_delta, position=none", "position=alibi")}
    return found


experiment = Experiment(
    question="Does every registered mechanism train?",
    base="configs/recall.py",
    common={
        "task.length": 32,
        "task.num_pairs": (1, 2, 4),
        "model.num_heads": 2,
        "train.steps": 30,
        "train.log_every": 5,
        "train.eval_every": 15,
        "train.eval_batches": 2,
        "optimizer.warmup_steps": 5,
    },
    arms=arms(),
    seeds=(0,),
    outcome=Outcome(metric="loss", split="test", at="final"),
    ablated=("parameters", "flops_per_token", "state_bytes"),
)
