"""T5 (Raffel et al. 2020), versions 1.0 and 1.1: relative biases, and no scale of the scores.

The layers of a stack share the table of the first; here each has its own, which starts as a copy.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from research.errors import UserError
from research.pretrained.config_reader import ConfigReader
from research.pretrained.family import Family
from research.pretrained.special_tokens import TRANSLATION, sequence_tokens
from research.pretrained.tensors import TRANSPOSED, Tensor, heads_in, heads_out, tensor

ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gated-gelu": "geglu",
    "gated-silu": "swiglu",
}
"""{feed_forward_proj: model.activation}; "gated-gelu" is GELU's tanh form there and here."""
GATED = ("geglu", "swiglu")
LONGEST = 512
"""Tokens of a sequence that T5 was trained on, where config.json does not say it."""


def options(read: ConfigReader) -> dict[str, Any]:
    """Returns our options of the model that config.json describes."""
    width, layers = read("d_model"), read("num_layers")
    read.only("is_decoder", False)
    read.skip("dense_act_fn", "is_gated_act", "output_past", "num_hidden_layers")
    # Version 1.0 has one table for tokens and logits and scales these; 1.1 has two and does not.
    # transformers 5 writes tie_word_embeddings=True for both.
    tied = read("tie_word_embeddings", True)
    scaled = read("scale_decoder_outputs", tied)
    return {
        "name": "encoder_decoder",
        "width": width,
        "num_layers": read("num_decoder_layers", layers),
        "encoder_layers": layers,
        "num_heads": read("num_heads"),
        "head_width": read("d_kv"),
        "feedforward": read("d_ff"),
        "activation": read.choice("feed_forward_proj", ACTIVATIONS, "relu"),
        "norm": "rmsnorm",
        "norm_epsilon": float(read("layer_norm_epsilon", 1e-6)),
        "use_bias": False,
        "score": "dot",
        "position": "t5",
        "num_buckets": read("relative_attention_num_buckets", 32),
        "max_distance": read("relative_attention_max_distance", 128),
        "output_scale": width**-0.5 if scaled else 1.0,
        "tie_embeddings": scaled,
    }


def length(read: ConfigReader) -> int:
    """Returns the number of positions that the model was made for."""
    return read("n_positions", LONGEST)


def tensors(model: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yields every tensor, given our options of the model."""
    tied = model["tie_embeddings"]
    yield Tensor("shared.weight", ("embedding",), copies=() if tied else ("source_embedding",))
    for stack in ("encoder", "decoder"):
        yield Tensor(f"{stack}.embed_tokens.weight", ("embedding",), repeats=True)
        yield tensor(f"{stack}.final_layer_norm.weight", f"{stack}/norm/scale")
    if tied:
        yield Tensor("lm_head.weight", ("embedding",), repeats=True)
    else:
        yield Tensor("lm_head.weight", ("head",), TRANSPOSED, otherwise="shared.weight")
    numbers = {"encoder": model["encoder_layers"] or model["num_layers"]}
    numbers["decoder"] = model["num_layers"]
    for stack, number in numbers.items():
        # One tensor for the tables of all layers.
        paths = [f"{stack}/layers/{i}/mixer/biases_0_table" for i in range(number)]
        name = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield Tensor(name, (paths[0],), copies=tuple(paths[1:]))
        for i in range(number):
            yield from layer_tensors(model, stack, i)


def layer_tensors(model: Mapping[str, Any], stack: str, i: int) -> Iterator[Tensor]:
    """Yields the tensors of layer i of a stack, "encoder" or "decoder"."""
    there, here = f"{stack}.block.{i}.layer", f"{stack}/layers/{i}"
    yield from attention_tensors(model, f"{there}.0.SelfAttention", f"{here}/mixer")
    yield tensor(f"{there}.0.layer_norm.weight", f"{here}/norm1/scale")
    if stack == "decoder":
        yield from attention_tensors(model, f"{there}.1.EncDecAttention", f"cross/layers/{i}")
        yield tensor(f"{there}.1.layer_norm.weight", f"{here}/norm_cross/scale")
    last = f"{there}.{2 if stack == 'decoder' else 1}"
    names = {"wi_0": "in", "wi_1": "gate"} if model["activation"] in GATED else {"wi": "in"}
    for theirs, ours in (names | {"wo": "out"}).items():
        name = f"{last}.DenseReluDense.{theirs}.weight"
        yield tensor(name, f"{here}/feedforward/{ours}", TRANSPOSED)
    yield tensor(f"{last}.layer_norm.weight", f"{here}/norm2/scale")


def attention_tensors(model: Mapping[str, Any], there: str, here: str) -> Iterator[Tensor]:
    """Yields the projections of one attention."""
    width, heads = model["width"], model["num_heads"]
    head = model["head_width"] or width // heads
    for name in ("query", "key", "value"):
        yield tensor(f"{there}.{name[0]}.weight", f"{here}/{name}", heads_in(heads, head, width))
    yield tensor(f"{there}.o.weight", f"{here}/out", heads_out(heads, head, width))


def config(model: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Returns config.json of a model of ours; `options` reads it back."""
    back = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    if model["activation"] not in back:
        raise UserError(f"model.activation={model['activation']!r}")
    tied = model["tie_embeddings"]
    return {
        "d_model": model["width"],
        "num_layers": model["encoder_layers"] or model["num_layers"],
        "num_decoder_layers": model["num_layers"],
        "num_heads": model["num_heads"],
        "d_kv": model["head_width"] or model["width"] // model["num_heads"],
        "d_ff": model["feedforward"],
        "feed_forward_proj": back[model["activation"]],
        "layer_norm_epsilon": model["norm_epsilon"],
        "relative_attention_num_buckets": model["num_buckets"],
        "relative_attention_max_distance": model["max_distance"],
        "n_positions": length,
        "is_encoder_decoder": True,
        "tie_word_embeddings": tied,
    }


ABSENT = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)
"""In older checkpoints, and never read."""
T5 = Family(
    "t5",
    "T5ForConditionalGeneration",
    options,
    length,
    tensors,
    config,
    superfluous=ABSENT,
    task=TRANSLATION,
    special=sequence_tokens(pad=0, start=0, end=1),
)
