"""GPT-2 (Radford et al. 2019), as transformers keeps it: one fused matrix of queries, keys, values.

Its matrices are (in, out) like ours, because they are those of a Conv1D.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from research.pretrained.config_reader import ConfigReader
from research.pretrained.family import Family, written
from research.pretrained.tensors import (
    Layout,
    Tensor,
    head_tensor,
    head_width,
    norm_tensors,
    tensor,
)

ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"} | {
    "relu": "relu"
}


def options(read: ConfigReader) -> dict[str, Any]:
    """Returns our options of the model that config.json describes."""
    width = read("n_embd")
    read.only("scale_attn_weights", True)
    read.only("scale_attn_by_inverse_layer_idx", False)
    read.only("add_cross_attention", False)
    read.skip("reorder_and_upcast_attn", "resid_pdrop", "n_ctx")
    read.skip(*(f"summary_{key}" for key in SUMMARY))
    return {
        "name": "decoder",
        "width": width,
        "num_layers": read("n_layer"),
        "num_heads": read("n_head"),
        "feedforward": read("n_inner", 4 * width),
        "activation": read.choice("activation_function", ACTIVATIONS, "gelu_new"),
        "norm": "layernorm",
        "norm_epsilon": float(read("layer_norm_epsilon", 1e-5)),
        "use_bias": True,
        "position": "learned",
        "tie_embeddings": read("tie_word_embeddings", True),
    }


OLD = ("*.attn.bias", "*.attn.masked_bias")
"""Buffers of the causal mask, in older checkpoints."""
SUMMARY = ("activation", "first_dropout", "proj_to_labels", "type", "use_proj")
"""Of classification heads, "summary_..."."""


def length(read: ConfigReader) -> int:
    """Returns the number of positions."""
    return read("n_positions", 1024)


def tensors(model: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yields every tensor, given our options of the model."""
    width, heads = model["width"], model["num_heads"]
    head = head_width(model)
    yield tensor("transformer.wte.weight", "embedding")
    yield tensor("transformer.wpe.weight", "position")
    yield from norm_tensors("transformer.ln_f", "norm")
    yield head_tensor(model)
    for i in range(model["num_layers"]):
        there, here = f"transformer.h.{i}", f"layers/{i}"
        mixer, feed = f"{here}/mixer", f"{here}/feedforward"
        qkv = Layout((width, (3, heads, head)), (1, 0, 2, 3), sizes=(1, 1, 1))
        names = ("query", "key", "value")
        yield Tensor(f"{there}.attn.c_attn.weight", tuple(f"{mixer}/{n}" for n in names), qkv)
        biases = Layout(((3, heads, head),), sizes=(1, 1, 1))
        yield Tensor(f"{there}.attn.c_attn.bias", tuple(f"{mixer}/{n}_bias" for n in names), biases)
        yield tensor(f"{there}.attn.c_proj.weight", f"{mixer}/out", Layout(((heads, head), width)))
        yield tensor(f"{there}.attn.c_proj.bias", f"{mixer}/out_bias")
        for theirs, ours in (("c_fc", "in"), ("c_proj", "out")):
            yield tensor(f"{there}.mlp.{theirs}.weight", f"{feed}/{ours}")
            yield tensor(f"{there}.mlp.{theirs}.bias", f"{feed}/{ours}_bias")
        for number in (1, 2):
            yield from norm_tensors(f"{there}.ln_{number}", f"{here}/norm{number}")


def config(model: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Returns config.json of a model of ours; `options` reads it back."""
    return {
        "n_embd": model["width"],
        "n_layer": model["num_layers"],
        "n_head": model["num_heads"],
        "n_inner": model["feedforward"],
        "n_positions": length,
        "activation_function": written(model, "activation", ACTIVATIONS),
        "layer_norm_epsilon": model["norm_epsilon"],
        "tie_word_embeddings": model["tie_embeddings"],
    }


GPT2 = Family("gpt2", "GPT2LMHeadModel", options, length, tensors, config, "transformer.", OLD)
