"""Gemma 2 and Gemma 3 for text (Gemma Team 2024, 2025): sandwiched norms, windows by layer.

Gains are 1 + a parameter, embeddings are multiplied by sqrt(width) where they are looked up.
Gemma 2 bounds scores and logits, Gemma 3 normalizes queries and keys, and its layers with windows
have a RoPE of their own.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from research.pretrained.config_reader import ConfigReader
from research.pretrained.families.llama import (
    FULL,
    SLIDING,
    attention_tensors,
    gated_tensors,
    layer_kinds,
    outer_tensors,
    window_kind,
)
from research.pretrained.families.rope import BASE, rope_options, write_rope
from research.pretrained.family import Family, written
from research.pretrained.patterns import delta, kinds_of, repeating
from research.pretrained.tensors import Tensor, head_width, norm_tensors

NORMS = {
    "input_layernorm": "norm1",
    "post_attention_layernorm": "norm1_out",
    "pre_feedforward_layernorm": "norm2",
    "post_feedforward_layernorm": "norm2_out",
}
ACTIVATIONS = {"gelu_pytorch_tanh": "geglu"}
GLOBAL_BASE = 1e6
"""Base of RoPE in Gemma 3's full layers; that of its layers with windows is the usual one."""
UNSCALED = {"rope_scaling": "none", "rope_factor": 1.0}


def shared_options(read: ConfigReader) -> dict[str, Any]:
    """Returns our options of what both have."""
    width, heads = read("hidden_size"), read("num_attention_heads")
    head, scalar = read("head_dim", 256), read("query_pre_attn_scalar", 256)
    read.skip("hidden_act")  # of Gemma 1
    found = {
        "name": "decoder",
        "width": width,
        "num_layers": read("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": read("num_key_value_heads", heads),
        "head_width": head,
        "feedforward": read("intermediate_size"),
        "activation": read.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"),
        "norm": "zero_centered_rmsnorm",
        "norm_placement": "sandwich",
        "norm_epsilon": float(read("rms_norm_eps", 1e-6)),
        "use_bias": False,
        "embedding_scale": width**0.5,
        "tie_embeddings": read("tie_word_embeddings", True),
    }
    return found if scalar == head else found | {"score_scale": scalar**-0.5}


def options2(read: ConfigReader) -> dict[str, Any]:
    """Returns our options of the Gemma 2 that config.json describes."""
    return {
        **shared_options(read),
        "softcap": float(read.unless_off("attn_logit_softcapping", 50.0)),
        "output_cap": float(read.unless_off("final_logit_softcapping", 30.0)),
        **rope_options(read),
        **layers(read, every=2, full={}, sliding={}),
    }


def options3(read: ConfigReader) -> dict[str, Any]:
    """Returns our options of the Gemma 3 that config.json describes."""
    full = rope_options(read, FULL, base=GLOBAL_BASE)
    if read.has("rope_parameters"):
        sliding = rope_options(read, SLIDING)
    else:  # as transformers 4 wrote it
        sliding = {"rope_base": float(read("rope_local_base_freq", BASE))}
    every = read("sliding_window_pattern", read("_sliding_window_pattern", 6))
    found = shared_options(read) | {"qk_norm": "zero_centered_rms", "position": "rope"}
    if cap := read("final_logit_softcapping", 0.0):
        found["output_cap"] = float(cap)
    return found | layers(read, every, full, sliding)


def layers(
    read: ConfigReader, every: int, full: Mapping[str, Any], sliding: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns our options of the windows, and of what else differs between layers.

    Args:
      read: reads config.json.
      every: each layer of this number has no window, unless "layer_types" says it.
      full: our options of the layers without windows alone.
      sliding: those of the layers with windows.
    """
    kinds = [FULL if i % every == 0 else SLIDING for i in range(1, read("num_hidden_layers") + 1)]
    kinds = read("layer_types", kinds)
    window = read.unless_off("sliding_window", 4096)
    sliding = {"mask": "window", "window": window, **sliding}
    if not window or SLIDING not in kinds:
        return dict(full)
    if FULL not in kinds:
        return sliding
    plain, own = {**UNSCALED, **full}, {**UNSCALED, **sliding}
    differing = {key: value for key, value in own.items() if plain.get(key) != value}
    deltas = {FULL: "", SLIDING: delta(differing)}
    return {**full, "pattern": repeating([deltas[kind] for kind in kinds])}


def length(read: ConfigReader) -> int:
    """Returns the number of positions that the model was made for."""
    return read("max_position_embeddings", 8192)


def tensors(model: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yields every tensor, given our options of the model."""
    yield from outer_tensors(model)
    for i in range(model["num_layers"]):
        there, here = f"model.layers.{i}", f"layers/{i}"
        yield from attention_tensors(model, there, here)
        yield from gated_tensors(there, here)
        for theirs, ours in NORMS.items():
            yield from norm_tensors(f"{there}.{theirs}", f"{here}/{ours}", biased=False)


def shared_config(model: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Returns the keys of config.json that both have. Raises UserError for several windows."""
    kinds, window = layer_kinds(model)
    scale = model["score_scale"]
    return {
        "hidden_size": model["width"],
        "num_hidden_layers": model["num_layers"],
        "num_attention_heads": model["num_heads"],
        "num_key_value_heads": model["num_kv_heads"] or model["num_heads"],
        "head_dim": head_width(model),
        # Theirs is a whole number.
        "query_pre_attn_scalar": round(scale**-2) if scale else head_width(model),
        "intermediate_size": model["feedforward"],
        "hidden_activation": written(model, "activation", ACTIVATIONS),
        "rms_norm_eps": model["norm_epsilon"],
        "tie_word_embeddings": model["tie_embeddings"],
        "final_logit_softcapping": model["output_cap"] or None,
        "max_position_embeddings": length,
        "layer_types": kinds,
        "sliding_window": window or None,
    }


def config2(model: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Returns config.json of a Gemma 2 of ours; `options2` reads it back."""
    return shared_config(model, length) | {
        "attn_logit_softcapping": model["softcap"] or None,
        "rope_parameters": write_rope(model),
    }


def config3(model: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Returns config.json of a Gemma 3 of ours; `options3` reads it back."""
    _, kinds = kinds_of(model, window_kind)
    ropes = {kind: write_rope(kinds[kind]) for kind in kinds}
    # Where all layers are of one type, that of the other is not used.
    unused = {"rope_type": "default", "rope_theta": BASE}
    return shared_config(model, length) | {
        "rope_parameters": {kind: ropes.get(kind, unused) for kind in (FULL, SLIDING)}
    }


GEMMAS = (
    Family("gemma2", "Gemma2ForCausalLM", options2, length, tensors, config2, "model."),
    Family("gemma3_text", "Gemma3ForCausalLM", options3, length, tensors, config3, "model."),
)
