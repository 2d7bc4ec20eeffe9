"""GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023): parallel sublayers, partial RoPE.

Each head's query, key and value lie side by side in one fused matrix.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from research.pretrained.config_reader import ConfigReader
from research.pretrained.families.gpt2 import ACTIVATIONS
from research.pretrained.families.rope import BASE, rope_options, write_rope
from research.pretrained.family import Family, written
from research.pretrained.tensors import (
    Tensor,
    biases_side_by_side,
    head_tensor,
    head_width,
    heads_out,
    heads_side_by_side,
    linear_tensors,
    norm_tensors,
    tensor,
)


def options(read: ConfigReader) -> dict[str, Any]:
    """Returns our options of the model that config.json describes."""
    read.only("attention_bias", True)
    # As transformers 4 wrote it: "rotary_pct" and "rotary_emb_base".
    fraction, base = read("rotary_pct", 0.25), read("rotary_emb_base", BASE)
    return {
        "name": "decoder",
        "width": read("hidden_size"),
        "num_layers": read("num_hidden_layers"),
        "num_heads": read("num_attention_heads"),
        "feedforward": read("intermediate_size"),
        "activation": read.choice("hidden_act", ACTIVATIONS, "gelu"),
        "norm": "layernorm",
        "norm_epsilon": float(read("layer_norm_eps", 1e-5)),
        "use_bias": True,
        "parallel_residual": read("use_parallel_residual", True),
        "tie_embeddings": read("tie_word_embeddings", False),
        **rope_options(read, fraction=fraction, base=base),
    }


def length(read: ConfigReader) -> int:
    """Returns the number of positions."""
    return read("max_position_embeddings", 2048)


def tensors(model: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yields every tensor, given our options of the model."""
    yield tensor("gpt_neox.embed_in.weight", "embedding")
    yield from norm_tensors("gpt_neox.final_layer_norm", "norm")
    yield head_tensor(model, "embed_out.weight")
    for i in range(model["num_layers"]):
        yield from fused_layer_tensors(model, f"gpt_neox.layers.{i}", f"layers/{i}", "attention")


def fused_layer_tensors(
    model: Mapping[str, Any], there: str, here: str, attention: str
) -> Iterator[Tensor]:
    """Yields the tensors of a layer of GPT-NeoX or BLOOM.

    Args:
      model: our options.
      there: name of the layer there.
      here: path of the layer here.
      attention: name of its attention there.
    """
    width, heads, head = model["width"], model["num_heads"], head_width(model)
    fused, names = f"{there}.{attention}.query_key_value", ("query", "key", "value")
    matrices, biases = (tuple(f"{here}/mixer/{n}{end}" for n in names) for end in ("", "_bias"))
    yield Tensor(f"{fused}.weight", matrices, heads_side_by_side(3, heads, head, width))
    yield Tensor(f"{fused}.bias", biases, biases_side_by_side(3, heads, head))
    out = f"{there}.{attention}.dense"
    yield tensor(f"{out}.weight", f"{here}/mixer/out", heads_out(heads, head, width))
    yield tensor(f"{out}.bias", f"{here}/mixer/out_bias")
    yield from linear_tensors(f"{there}.mlp.dense_h_to_4h", f"{here}/feedforward/in")
    yield from linear_tensors(f"{there}.mlp.dense_4h_to_h", f"{here}/feedforward/out")
    yield from norm_tensors(f"{there}.input_layernorm", f"{here}/norm1")
    yield from norm_tensors(f"{there}.post_attention_layernorm", f"{here}/norm2")


def config(model: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Returns config.json of a model of ours; `options` reads it back."""
    return {
        "hidden_size": model["width"],
        "num_hidden_layers": model["num_layers"],
        "num_attention_heads": model["num_heads"],
        "intermediate_size": model["feedforward"],
        "hidden_act": written(model, "activation", ACTIVATIONS),
        "layer_norm_eps": model["norm_epsilon"],
        "use_parallel_residual": model["parallel_residual"],
        "tie_word_embeddings": model["tie_embeddings"],
        "max_position_embeddings": length,
        # Without it, a quarter of the channels would turn.
        "rope_parameters": {"partial_rotary_factor": 1.0} | write_rope(model),
    }


OLD = ("*.attention.bias", "*.attention.masked_bias", "*.attention.rotary_emb.inv_freq")
"""Buffers in older checkpoints."""

GPT_NEOX = Family(
    "gpt_neox", "GPTNeoXForCausalLM", options, length, tensors, config, "gpt_neox.", OLD
)
