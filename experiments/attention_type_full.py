"""What does recall cost? Every causal mechanism at the same number of parameters.

    python -m research.sweep --experiment=experiments/attention_type_full.py \
        --workdir=runs/attention_type_full
    python -m research.report --workdir=runs/attention_type_full

The full version of attention_type.py: all mixers, normalizers, scores, masks and head layouts that
can be decoded token by token, on multi-query associative recall, up to 8 pairs in 32 tokens. The
feed-forward width is solved so that every arm has the parameters of softmax attention, and the
report draws accuracy against the bytes of decoding state, as Arora et al. 2024 ("Simple linear
attention language models balance the recall-throughput tradeoff", Figure 2) do.

198 runs, 33 minutes on 2 cores as two shards side by side (--shard=1/2 and --shard=2/2); what each
arm reached is in results/attention_type_full. Expect: softmax, most position encodings that act on
scores, and delta rules and gated linear attention behind a short convolution at 0.99 to 1.00; the
same without the convolution, like every other fixed state, at the level of guessing (0.27).

All arms have one learning rate, 0.003, and none is tuned: in a pilot of 700 steps on one seed each,
0.01 was better by more than 0.02 for 3 of 63 arms (both monotonic ones and a latent of 8), and
failed where 0.003 solved the task for nearly all others. With three seeds, a common rate and 1,000
steps it is an overview that claims nothing: an arm that is low here may be slow. Whether shared
keys, sigmoid attention, hybrids and linear attention recall at rates of their own is claimed in
experiments/attention_type_variants.py.
"""

from research.ablation.experiment import Experiment, Outcome


def mixer(name: str, **options) -> dict:
    """Returns the deltas of an arm with another mixer, which applies no positions."""
    deltas = {"mixer": name, "position": "none"} | options
    return {f"model.{key}": value for key, value in deltas.items()}


def part(**options) -> dict:
    """Returns the deltas of an arm that changes a part of softmax attention."""
    return {f"model.{key}": value for key, value in options.items()}


KEPT_ALL = {
    "softmax": {},
    "no position": part(position="none"),
    "ALiBi": part(position="alibi"),
    "T5": part(position="t5"),
    "KERPLE": part(position="kerple"),
    "FIRE": part(position="fire"),
    "Shaw": part(position="shaw"),
    "Transformer-XL": part(position="transformer_xl"),
    "learned positions": part(position="learned"),
    "sinusoidal": part(position="sinusoidal"),
    "dot": part(score="dot"),
    "general": part(score="general"),
    "additive": part(score="additive"),
    "concat": part(score="concat"),
    "cosine": part(score="cosine"),
    "learned cosine": part(score="learned_cosine"),
    "softmax + 1": part(normalizer="softmax_plus_one"),
    "sink logit": part(normalizer="softmax_sink"),
    "sigmoid": part(normalizer="sigmoid"),
    "squared ReLU": part(normalizer="squared_relu"),
    "sparsemax": part(normalizer="sparsemax"),
    "entmax-1.5": part(normalizer="entmax15"),
    "smoothed": part(normalizer="smoothed"),
    "4 heads": part(num_heads=4),
    "talking heads": part(num_heads=4, talking_heads=True),
    "output gate": part(output_gate=True),
    "differential": part(mixer="differential"),
    "location-aware": mixer("location_aware"),
    "monotonic": mixer("monotonic"),
    "monotonic chunkwise": mixer("monotonic_chunkwise"),
    "location": part(score="location", position="none"),
    "synthesizer, dense": part(score="synthesizer_dense", position="none"),
    "synthesizer, random": part(score="synthesizer_random", position="none"),
}

SMALLER_CACHE = {
    "multi-query, 4 heads": part(num_heads=4, num_kv_heads=1),
    "grouped, 4 heads": part(num_heads=4, num_kv_heads=2),
    "latent": part(mixer="latent"),
    "latent of 8": part(mixer="latent", latent_width=8, rope_width=4),
    "window of 4": part(mask="window", window=4),
    "window of 16": part(mask="window", window=16),
    "window of 32": part(mask="window", window=32),
    "window of 16, sinks": part(mask="window | causal & global", window=16, global_tokens=4),
    "dilated": part(mask="dilated", window=16, dilation=2),
    "strided": part(mask="strided", stride=8),
    "BigBird": part(mask="causal & bigbird", block_length=8, global_tokens=4),
    "predicted window": part(predicted_window=8),
    "softmax and linear": part(pattern=("mixer=linear, position=none", "")),
    "window and softmax": part(pattern=("mask=window, window=4", "")),
}

FIXED_STATE = {
    "linear": mixer("linear"),
    "Performer": mixer("performer"),
    "Based of 4": mixer("based", feature_width=4),
    "Based of 8": mixer("based", feature_width=8),
    "Based of 16": mixer("based", feature_width=16),
    "Based of 16, convolution": mixer("based", feature_width=16, short_convolution=3),
    "retention": mixer("retention"),
    "gated linear": mixer("gated_linear"),
    "gated linear, convolution": mixer("gated_linear", short_convolution=3),
    "state space": mixer("state_space"),
    "state space, convolution": mixer("state_space", short_convolution=4),
    "delta": mixer("delta"),
    "delta, convolution": mixer("delta", short_convolution=4),
    "gated delta": mixer("gated_delta"),
    "gated delta, convolution": mixer("gated_delta", short_convolution=4),
    "gated convolution": mixer("gated_convolution"),
    "gated convolution of 4": mixer("gated_convolution", filter_length=4),
    "GRU": mixer("gru"),
    "LSTM": mixer("lstm"),
}

experiment = Experiment(
    question="What does recall cost? Every causal mechanism at the same number of parameters.",
    base="configs/recall.py",
    common={"task.length": 32, "model.feedforward": 128, "train.steps": 1000},
    arms=KEPT_ALL | SMALLER_CACHE | FIXED_STATE,
    seeds=(0, 1, 2),
    outcome=Outcome(metric="accuracy", solved=0.95),
    match="parameters",
    against="state_bytes",
    ablated=("flops_per_token", "state_bytes"),
)
