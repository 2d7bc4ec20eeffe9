"""BART (Lewis et al. 2020): norms after the layers and embeddings, learned positions.

Its table of positions begins with two rows that nothing reads. Marian has the same tensors but for
the norm of the embeddings, and sines as its positions.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from research.errors import UserError
from research.pretrained.config_reader import ConfigReader
from research.pretrained.families.gpt2 import ACTIVATIONS
from research.pretrained.family import Family
from research.pretrained.special_tokens import FORCED, TRANSLATION, sequence_tokens
from research.pretrained.tensors import (
    TRANSPOSED,
    UNREAD,
    Layout,
    Tensor,
    heads_bias,
    heads_in,
    heads_out,
    tensor,
)

OFFSET = 2
"""Rows of the table of positions before that of the first position."""
SILU = ACTIVATIONS | {"swish": "silu", "silu": "silu"}
STACKS = {"encoder": "source_", "decoder": ""}
"""{stack: what names of parameters outside its layers begin with}."""
AFFINE = (("weight", "scale"), ("bias", "bias"))


def shared_options(read: ConfigReader) -> dict[str, Any]:
    """Returns our options of a BART or Marian model that config.json describes."""
    width, depth = read("d_model"), read("decoder_layers")
    for name in ("attention_heads", "ffn_dim"):
        both = [read(f"{stack}_{name}") for stack in STACKS]
        if both[0] != both[1]:
            raise UserError(
                f"config.json has encoder_{name}={both[0]} and decoder_{name}={both[1]}; only a "
                "model with the same of both can be read."
            )
    read.only("is_decoder", False)
    read.only("tie_word_embeddings", True)
    read.only("normalize_before", False)
    read.only("add_final_layer_norm", False)
    read.skip("num_hidden_layers", "output_past", "prefix", "add_bias_logits", FORCED)
    return {
        "name": "encoder_decoder",
        "width": width,
        "num_layers": depth,
        "encoder_layers": read("encoder_layers"),
        "num_heads": read("decoder_attention_heads"),
        "feedforward": read("decoder_ffn_dim"),
        "activation": read.choice("activation_function", SILU, "gelu"),
        "norm": "layernorm",
        "norm_epsilon": 1e-5,
        "norm_placement": "post",
        "use_bias": True,
        "position": "learned",
        "embedding_scale": width**0.5 if read("scale_embedding", False) else 1.0,
        "output_bias": True,
        "tie_embeddings": True,
    }


def options(read: ConfigReader) -> dict[str, Any]:
    """Returns our options of the model that config.json describes."""
    read.only("normalize_embedding", True)
    read.only("static_position_embeddings", False)
    read.only("extra_pos_embeddings", OFFSET)
    return shared_options(read) | {"embedding_norm": True}


def length(read: ConfigReader) -> int:
    """Returns the number of positions."""
    return read("max_position_embeddings", 1024)


def tensors(model: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yields every tensor, given our options of the model."""
    yield from shared_tensors(model)
    for stack, prefix in STACKS.items():
        rows = Layout((OFFSET + model["length"], model["width"]), sizes=(OFFSET, model["length"]))
        paths = (f"{UNREAD}/{prefix}position", f"{prefix}position")
        yield Tensor(f"model.{stack}.embed_positions.weight", paths, rows)
        for kind, ours in AFFINE:
            name = f"model.{stack}.layernorm_embedding.{kind}"
            yield tensor(name, f"{prefix}embedding_norm/{ours}")


def shared_tensors(model: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yields the tensors that a BART and a Marian have."""
    yield tensor("model.shared.weight", "embedding")
    for name in ("model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"):
        yield Tensor(f"{name}.weight", ("embedding",), repeats=True)
    yield tensor("final_logits_bias", "head_bias", Layout(sizes=(1,)))
    numbers = {"encoder": model["encoder_layers"] or model["num_layers"]}
    numbers["decoder"] = model["num_layers"]
    for stack, number in numbers.items():
        for i in range(number):
            yield from layer_tensors(model, stack, i)


def layer_tensors(model: Mapping[str, Any], stack: str, i: int) -> Iterator[Tensor]:
    """Yields the tensors of layer i of a stack, "encoder" or "decoder"."""
    there, here = f"model.{stack}.layers.{i}", f"{stack}/layers/{i}"
    norms = {"self_attn_layer_norm": "norm1", "final_layer_norm": "norm2"}
    yield from attention_tensors(model, f"{there}.self_attn", f"{here}/mixer")
    if stack == "decoder":
        yield from attention_tensors(model, f"{there}.encoder_attn", f"cross/layers/{i}")
        norms["encoder_attn_layer_norm"] = "norm_cross"
    for theirs, ours in (("fc1", "in"), ("fc2", "out")):
        yield tensor(f"{there}.{theirs}.weight", f"{here}/feedforward/{ours}", TRANSPOSED)
        yield tensor(f"{there}.{theirs}.bias", f"{here}/feedforward/{ours}_bias")
    for theirs, ours in norms.items():
        for kind, own in AFFINE:
            yield tensor(f"{there}.{theirs}.{kind}", f"{here}/{ours}/{own}")


def attention_tensors(model: Mapping[str, Any], there: str, here: str) -> Iterator[Tensor]:
    """Yields the projections of one attention, with their biases."""
    width, heads = model["width"], model["num_heads"]
    head = model.get("head_width") or width // heads
    for name in ("query", "key", "value"):
        one = f"{there}.{name[0]}_proj"
        yield tensor(f"{one}.weight", f"{here}/{name}", heads_in(heads, head, width))
        yield tensor(f"{one}.bias", f"{here}/{name}_bias", heads_bias(heads, head))
    yield tensor(f"{there}.out_proj.weight", f"{here}/out", heads_out(heads, head, width))
    yield tensor(f"{there}.out_proj.bias", f"{here}/out_bias")


def config(model: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Returns config.json of a model of ours; `options` reads it back."""
    back = {ours: theirs for theirs, ours in reversed(SILU.items())}
    if model["activation"] not in back:
        raise UserError(f"model.activation={model['activation']!r}")
    scale = model["embedding_scale"]
    if scale not in (1.0, model["width"] ** 0.5):
        raise UserError(f"model.embedding_scale={scale}, which is 1 or the root of the width there")
    found = {
        "d_model": model["width"],
        "encoder_layers": model["encoder_layers"] or model["num_layers"],
        "decoder_layers": model["num_layers"],
        "activation_function": back[model["activation"]],
        "scale_embedding": scale != 1.0,
        "max_position_embeddings": length,
        "is_encoder_decoder": True,
        "tie_word_embeddings": model["tie_embeddings"],
    }
    for stack in STACKS:
        found[f"{stack}_attention_heads"] = model["num_heads"]
        found[f"{stack}_ffn_dim"] = model["feedforward"]
    return found


BART = Family(
    "bart",
    "BartForConditionalGeneration",
    options,
    length,
    tensors,
    config,
    "model.",
    task=TRANSLATION,
    special=sequence_tokens(pad=1, start=2, end=2),
)
