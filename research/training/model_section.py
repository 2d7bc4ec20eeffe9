"""The keys of `config.model`, until models declare their own: each is read by every model."""

from collections.abc import Mapping
from dataclasses import dataclass, make_dataclass
from typing import Any

from research.errors import read_part
from research.options import (
    Declared,
    Part,
    choice,
    defaults_read,
    every_option,
    option,
    revisions,
    values_read,
)


@dataclass(frozen=True, kw_only=True)
class ModelKeys(Part):
    """A model and its mechanisms."""

    width: int = option(64, "of the residual stream; of a recurrent state")
    num_layers: int = option(2, "of encoder and decoder each, where there are both")
    encoder_layers: int = option(0, "layers of an encoder; 0: num_layers")
    encoder: str = option("mask=full", "deltas on the mechanism, for the encoder")
    cross: str = option("mask=full, position=none", "deltas on the mechanism, for cross-attention")
    cell: str = option("lstm", "lstm or gru")
    attention: str = option(
        "additive", "how a recurrent decoder reads the source: additive, dot, fixed_initial, ..."
    )
    input_feeding: bool = option(
        True, "what was read last is given to the next step (Luong 2015, 3.3)"
    )
    embedding_width: int = option(0, "of the embeddings; 0: width")
    body: str = option(
        "transformer", "transformer, bilstm, lstm, or none, which pools the embeddings"
    )
    pooling: str = option("mean", "class_token (of a transformer), mean, attention or last")
    listener: str = option("bilstm", "bilstm, transformer or conformer")
    subsampling: str = option("convolution", "convolution, or pyramid (Chan 2016; of bilstm)")
    levels: int = option(2, "times that the subsampling halves the number of frames: 0 to 3")
    speller: str = option("recurrent", "recurrent or transformer")
    ctc_weight: float = option(0.0, "of CTC in the objective (Kim 2017); 0: no CTC; 1: no speller")
    filter_conv: int = option(15, "taps of the Conformer's convolution over time")
    median_window: int = option(
        0, "frames on either side of the median of what a recurrent speller read last; 0: all"
    )
    feedforward: int = option(256, "hidden width of the feed-forward layer; 0: no such layer")
    activation: str = option("gelu", "gelu, gelu_tanh, relu or swiglu")
    norm: str = option("rmsnorm", "rmsnorm or layernorm")
    use_bias: bool = option(False, "biases in projections and norms")
    tie_embeddings: bool = option(True, "output matrix = embedding matrix")
    dropout: float = option(0.0, "on embeddings and on what each sublayer adds (Vaswani 2017, 5.4)")
    init_stddev: float = option(0.02, "of the matrices of the layers; 0: 1 / sqrt(fan in)")
    embedding_stddev: float = option(
        0.02, "of embeddings, positions and the output matrix; 0: as above"
    )
    init_scale: float = option(1.0, "multiplies every initial matrix")
    dtype: str = option("float32", "of activations, float32 or bfloat16; parameters stay float32")
    remat: bool = option(False, "recompute each layer in the backward pass to save memory")
    mixer: str = option("softmax", "what moves information between positions; see MECHANISMS.md")
    pattern: tuple[str, ...] = option(
        (),
        "layers that differ: a delta on these keys for each, repeated to num_layers, such as "
        '"mask=window, window=16"; (): all alike',
    )
    num_heads: int = option(4, "heads of attention")
    num_kv_heads: int = option(0, "heads that keys and values have; 0: num_heads, 1: multi-query")
    head_width: int = option(0, "channels of a head; 0: width / num_heads")
    score: str = option("scaled_dot", "how well a query and a key match; see MECHANISMS.md")
    score_width: int = option(0, "hidden width of additive and concat; 0: that of a head")
    temperature: float = option(0.1, "of cosine; the first of learned_cosine")
    mask: str = option(
        "causal", 'which keys a query sees, or several: "causal & bigbird"; see MECHANISMS.md'
    )
    window: int = option(
        0, "keys that a query sees: window, dilated; on either side: local, longformer"
    )
    prefix_length: int = option(0, "tokens that see each other under mask=prefix")
    dilation: int = option(0, "distance between the keys of mask=dilated")
    stride: int = option(0, "of mask=strided")
    global_tokens: int = option(
        0, "leading tokens that see and are seen by all: global, longformer, ..."
    )
    block_length: int = option(0, "tokens to a block of mask=bigbird")
    random_blocks: int = option(1, "that a block sees under mask=bigbird")
    predicted_window: int = option(
        0, "keys on either side of a position that the query predicts; 0: off"
    )
    normalizer: str = option("softmax", "from scores to weights; see MECHANISMS.md")
    sharpening: float = option(1.0, "multiplies the scores before normalizer=softmax")
    softcap: float = option(0.0, "bounds scores to +-softcap by tanh; 0: off")
    position: str = option("rope", "how a query knows where a key is; see MECHANISMS.md")
    rope_base: float = option(10000.0, "of RoPE's frequencies")
    rope_fraction: float = option(1.0, "of a head's channels that rope turns")
    rope_scaling: str = option("none", "none, linear, ntk or yarn")
    rope_factor: float = option(1.0, "how many times longer than what it was trained on")
    rope_original_length: int = option(
        0, "tokens that it was trained on; 0: task.length / rope_factor"
    )
    max_distance: int = option(128, "where t5 and shaw stop telling distances apart")
    num_buckets: int = option(32, "of t5")
    talking_heads: bool = option(False, "scores and weights mixed over the heads")
    output_gate: bool = option(False, "what heads read times sigmoid(x W)")
    latent_width: int = option(0, "kept of a token by mixer=latent; 0: width / 2")
    rope_width: int = option(
        0, "channels of the keys of mixer=latent that turn; 0: half of head_width"
    )
    filter_length: int = option(
        0, "taps of gated_convolution (0: task.length), location_aware (0: 15)"
    )
    short_convolution: int = option(
        0, "taps on queries, keys, values of linear-time mixers; 0: none"
    )
    feature_width: int = option(0, "features of performer and based; 0: chosen")
    rank: int = option(0, "positions that linformer projects to; 0: task.length / 4")
    chunk: int = option(0, "keys that monotonic_chunkwise looks back at; 0: 4")
    mechanism_seed: int = option(0, "of what is drawn once and not learned: bigbird, performer")
    implementation: str = option(
        "auto",
        "how it is computed, never what: auto, dense, blockwise, ...; linear-time mixers: "
        "parallel, chunkwise, recurrent",
    )
    block_size: int = option(0, "of blocks and chunks; 0: chosen for the length")


MODELS: dict[str, Any] = {
    name: make_dataclass(name, (), bases=(ModelKeys,), frozen=True, kw_only=True)
    for name in ("classifier", "decoder", "encoder_decoder", "recurrent", "speech")
}


@dataclass(frozen=True, kw_only=True)
class ModelSection(Part):
    """What learns it: `config.model`."""

    name: ModelKeys = choice(MODELS, "decoder", "what learns it")


def read_model(values: Mapping[str, Any]) -> ModelSection:
    """Returns the model of `config.model`. Raises UserError for a value that is wrong."""
    return read_part("model", ModelSection, values)


def model_values(options: ModelSection) -> dict[str, Any]:
    """Returns {key: value} of all keys that the model reads, its name among them."""
    return values_read(options)


def model_defaults(options: ModelSection) -> dict[str, Any]:
    """Returns {key: declared default} of these keys."""
    return defaults_read(options)


def model_revisions(options: ModelSection) -> dict[str, int]:
    """Returns {what: revision}, of the revisions above 0."""
    return revisions(options)


def every_model_option() -> dict[str, list[Declared]]:
    """Returns {key: its declarations}."""
    return every_option([{"model": ModelSection}])
