"""Mamba-2 (Dao and Gu 2024): selective state spaces without attention.

One fused matrix has z, x, B, C and the steps; x, B and C share a convolution.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from research.errors import UserError
from research.pretrained.config_reader import ConfigReader
from research.pretrained.family import Family
from research.pretrained.tensors import (
    TRANSPOSED,
    Layout,
    Tensor,
    beside,
    head_tensor,
    head_width,
    heads_bias,
    heads_in,
    heads_out,
    taps_in,
    tensor,
)

TRAINED_LENGTH = 2048
"""Tokens that the authors' models were trained with; config.json says nothing of it."""
OF_TRAINING = """
chunk_size norm_before_gate rescale_prenorm_residual residual_in_fp32 rms_norm time_step_floor
time_step_init_scheme time_step_max time_step_min time_step_rank time_step_scale
""".split()
"""Keys of the initialization and of how it is computed, or that nothing reads."""


def options(read: ConfigReader) -> dict[str, Any]:
    """Returns our options of the model that config.json describes."""
    width, heads, head = read("hidden_size"), read("num_heads"), read("head_dim")
    expand = read("expand", 2)
    if heads * head != read("intermediate_size", int(expand * width)):
        raise UserError(
            f"config.json has num_heads={heads} of head_dim={head}, which are not expand={expand} "
            f"times hidden_size={width}."
        )
    read.only("hidden_act", "silu")
    check_steps(read)
    read.skip(*OF_TRAINING)
    epsilon = float(read("layer_norm_epsilon", 1e-5))
    return {
        "name": "decoder",
        "mixer": "state_space",
        "position": "none",
        "width": width,
        "num_layers": read("num_hidden_layers"),
        "num_heads": heads,
        "head_width": head,
        "feature_width": read("state_size", 128),
        "state_groups": read("n_groups", 8),
        "short_convolution": read("conv_kernel", 4),
        "convolution_bias": read("use_conv_bias", True),
        "feedforward": 0,
        "norm": "rmsnorm",
        "norm_epsilon": epsilon,
        "output_norm_gain": True,
        "output_norm_epsilon": epsilon,
        "use_bias": False,
        "tie_embeddings": read("tie_word_embeddings", False),
    }


def check_steps(read: ConfigReader) -> None:
    """Raises UserError for steps that are bounded to less than the positive numbers."""
    # Infinity is written as such by transformers 4, and as {"__float__": "Infinity"} by 5.
    limits = [
        float(one["__float__"]) if isinstance(one, dict) else float(one)
        for one in read("time_step_limit", [0.0, math.inf])
    ]
    if limits != [0.0, math.inf]:
        raise UserError(
            f"config.json has time_step_limit={limits}: bounds of the steps, which no option here "
            "sets."
        )


def length(read: ConfigReader) -> int:
    """Returns the number of positions that the authors' models were trained with."""
    return TRAINED_LENGTH


def tensors(model: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yields every tensor, given our options of the model."""
    width, heads, head = model["width"], model["num_heads"], head_width(model)
    groups, taps = model["state_groups"], model["short_convolution"]
    inner, shared = heads * head, groups * (model["feature_width"] or head)
    inward, grouped = heads_in(heads, head, width), heads_in(groups, shared // groups, width)
    fused = beside(
        (inner, inward), (inner, inward), (shared, grouped), (shared, grouped), (heads, TRANSPOSED)
    )
    convolved = (("value", inner), ("key", shared), ("query", shared))
    filters = beside(*((size, taps_in(taps, size)) for _, size in convolved))
    biases = beside(*((size, Layout()) for _, size in convolved))
    yield tensor("backbone.embeddings.weight", "embedding")
    yield tensor("backbone.norm_f.weight", "norm/scale")
    yield head_tensor(model)
    for i in range(model["num_layers"]):
        there, here = f"backbone.layers.{i}.mixer", f"layers/{i}/mixer"
        names = ("gate", "value", "key", "query", "step")
        yield Tensor(f"{there}.in_proj.weight", tuple(f"{here}/{n}" for n in names), fused)
        names = tuple(f"{here}/{name}_taps" for name, _ in convolved)
        yield Tensor(f"{there}.conv1d.weight", names, filters)
        if model["convolution_bias"]:
            names = tuple(f"{here}/{name}_taps_bias" for name, _ in convolved)
            yield Tensor(f"{there}.conv1d.bias", names, biases)
        for theirs, ours in (("A_log", "log_rate"), ("D", "skip"), ("dt_bias", "step_bias")):
            yield tensor(f"{there}.{theirs}", f"{here}/{ours}")
        yield tensor(f"{there}.norm.weight", f"{here}/norm_scale", heads_bias(heads, head))
        yield tensor(f"{there}.out_proj.weight", f"{here}/out", heads_out(heads, head, width))
        yield tensor(f"backbone.layers.{i}.norm.weight", f"layers/{i}/norm1/scale")


def config(model: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Returns config.json of a model of ours; `options` reads it back.

    Raises UserError for heads that are together no multiple of the width.
    """
    width, heads, head = model["width"], model["num_heads"], head_width(model)
    if heads * head % width:
        raise UserError(
            f"model.num_heads={heads} of width {head} are together no multiple of model.width="
            f"{width}; those of Mamba-2 are."
        )
    return {
        "hidden_size": width,
        "num_hidden_layers": model["num_layers"],
        "num_heads": heads,
        "head_dim": head,
        "expand": heads * head // width,
        "state_size": model["feature_width"] or head,
        "n_groups": model["state_groups"],
        "conv_kernel": model["short_convolution"],
        "use_conv_bias": model["convolution_bias"],
        "hidden_act": "silu",
        "layer_norm_epsilon": model["norm_epsilon"],
        "tie_word_embeddings": model["tie_embeddings"],
    }


MAMBA2 = Family("mamba2", "Mamba2ForCausalLM", options, length, tensors, config, "backbone.")
