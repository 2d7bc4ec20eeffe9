"""Llama (Touvron et al. 2023) and its kin: Mistral, Qwen2 and Qwen3.

They differ in biases (Qwen2), in norms of queries and keys (Qwen3) and in windows (Mistral).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from research.errors import UserError
from research.pretrained.config_reader import ConfigReader
from research.pretrained.families.rope import rope_options, write_rope
from research.pretrained.family import Family
from research.pretrained.patterns import delta, kinds_of, repeating
from research.pretrained.tensors import (
    TRANSPOSED,
    Tensor,
    head_tensor,
    head_width,
    heads_bias,
    heads_in,
    heads_out,
    tensor,
)

FULL, SLIDING = "full_attention", "sliding_attention"
WINDOWED = ("mistral", "qwen2", "qwen3")
NORMED, BIASED = ("qwen3",), ("qwen2",)
"""Families whose queries and keys are normalized, and whose projections have biases."""


def options(read: ConfigReader) -> dict[str, Any]:
    """Returns our options of the model that config.json describes."""
    width, heads = read("hidden_size"), read("num_attention_heads")
    read.only("hidden_act", "silu")
    found = {
        "name": "decoder",
        "width": width,
        "num_layers": read("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": read("num_key_value_heads", heads),
        "head_width": read("head_dim", width // heads),
        "feedforward": read("intermediate_size"),
        "activation": "swiglu",
        "norm": "rmsnorm",
        "norm_epsilon": float(read("rms_norm_eps", 1e-6)),
        "use_bias": False,
        "tie_embeddings": read("tie_word_embeddings", False),
        **rope_options(read),
        **windows(read),
    }
    if read.family in NORMED:
        found["qk_norm"] = "rms"
    if read.family in BIASED:
        found["qkv_bias"] = True
    read.only("mlp_bias", False)
    if read("attention_bias", False):
        raise UserError(
            "config.json has attention_bias=True: biases of the queries, keys, values and of the "
            "output alone, which no option here adds."
        )
    return found


def windows(read: ConfigReader) -> dict[str, Any]:
    """Returns our options of sliding windows, by layer if they differ."""
    if read.family not in WINDOWED or not read("use_sliding_window", read.family == "mistral"):
        read.skip("sliding_window", "max_window_layers", "layer_types")
        return {}
    window, number = read.unless_off("sliding_window", 4096), read("num_hidden_layers")
    first = read("max_window_layers", 0 if read.family == "mistral" else number)
    kinds = read("layer_types", [FULL] * first + [SLIDING] * (number - first))
    if not window or SLIDING not in kinds:
        return {}
    # A window counts the token itself, there and here.
    if set(kinds) == {SLIDING}:
        return {"mask": "window", "window": window}
    deltas = {SLIDING: delta({"mask": "window", "window": window}), FULL: ""}
    return {"pattern": repeating([deltas[kind] for kind in kinds])}


def length(read: ConfigReader) -> int:
    """Returns the number of positions that the model was made for."""
    return read("max_position_embeddings", 2048)


def attention_tensors(model: Mapping[str, Any], there: str, here: str) -> Iterator[Tensor]:
    """Yields the projections of a layer's attention, with their biases and norms.

    Args:
      model: our options.
      there: name of the layer there.
      here: path of the layer here.
    """
    width, heads, head = model["width"], model["num_heads"], head_width(model)
    groups = model.get("num_kv_heads") or heads
    for name, number in (("query", heads), ("key", groups), ("value", groups)):
        one = f"{there}.self_attn.{name[0]}_proj"
        yield tensor(f"{one}.weight", f"{here}/mixer/{name}", heads_in(number, head, width))
        if model.get("qkv_bias"):
            yield tensor(f"{one}.bias", f"{here}/mixer/{name}_bias", heads_bias(number, head))
    out = heads_out(heads, head, width)
    yield tensor(f"{there}.self_attn.o_proj.weight", f"{here}/mixer/out", out)
    if model.get("qk_norm", "none") != "none":
        for name in ("query", "key"):
            yield tensor(f"{there}.self_attn.{name[0]}_norm.weight", f"{here}/mixer/{name}_scale")


def tensors(model: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yields every tensor, given our options of the model."""
    yield from outer_tensors(model)
    for i in range(model["num_layers"]):
        there, here = f"model.layers.{i}", f"layers/{i}"
        yield from attention_tensors(model, there, here)
        yield from gated_tensors(there, here)
        for theirs, ours in NORMS.items():
            yield tensor(f"{there}.{theirs}.weight", f"{here}/{ours}/scale")


NORMS = {"input_layernorm": "norm1", "post_attention_layernorm": "norm2"}


def outer_tensors(model: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yields the tensors outside the layers."""
    yield tensor("model.embed_tokens.weight", "embedding")
    yield tensor("model.norm.weight", "norm/scale")
    yield head_tensor(model)


def gated_tensors(there: str, here: str) -> Iterator[Tensor]:
    """Yields the matrices of a layer's gated feed-forward layer."""
    for theirs, ours in (("gate_proj", "in"), ("up_proj", "gate"), ("down_proj", "out")):
        yield tensor(f"{there}.mlp.{theirs}.weight", f"{here}/feedforward/{ours}", TRANSPOSED)


def writer(family: str) -> Callable[[Mapping[str, Any], int], dict[str, Any]]:
    """Returns the function that writes config.json of a family's model."""

    def config(model: Mapping[str, Any], length: int) -> dict[str, Any]:
        found = {
            "hidden_size": model["width"],
            "num_hidden_layers": model["num_layers"],
            "num_attention_heads": model["num_heads"],
            "num_key_value_heads": model["num_kv_heads"] or model["num_heads"],
            "head_dim": head_width(model),
            "intermediate_size": model["feedforward"],
            "hidden_act": "silu",
            "rms_norm_eps": model["norm_epsilon"],
            "tie_word_embeddings": model["tie_embeddings"],
            "max_position_embeddings": length,
            "rope_parameters": write_rope(model),
        }
        if family in WINDOWED:
            found |= _written_windows(family, model)
        return found

    return config


def _written_windows(family: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of config.json about windows. Raises UserError for other patterns."""
    kinds, window = layer_kinds(model)
    if not window:
        return {"sliding_window": None}
    if family == "mistral":
        if FULL in kinds:
            raise UserError("model.pattern has layers without a window, and Mistral has none.")
        return {"sliding_window": window}
    found = {"sliding_window": window, "use_sliding_window": True, "layer_types": kinds}
    return found | {"max_window_layers": kinds.count(FULL)}


def layer_kinds(model: Mapping[str, Any]) -> tuple[list[str], int]:
    """Returns the type of each layer, full or sliding, and the window in tokens; 0: none slides.

    Raises UserError if layers have several windows.
    """
    kinds, layers = kinds_of(model, window_kind)
    return kinds, layers[SLIDING]["window"] if SLIDING in layers else 0


def window_kind(layer: Mapping[str, Any]) -> str:
    """Returns the type of a layer of attention: full or sliding."""
    return SLIDING if layer.get("mask") == "window" else FULL


def family(name: str, architecture: str) -> Family:
    """Returns a family of this kind."""
    old = ("*.rotary_emb.inv_freq",)
    return Family(name, architecture, options, length, tensors, writer(name), "model.", old)


LLAMA_SHAPED = (
    family("llama", "LlamaForCausalLM"),
    family("mistral", "MistralForCausalLM"),
    family("qwen2", "Qwen2ForCausalLM"),
    family("qwen3", "Qwen3ForCausalLM"),
)
