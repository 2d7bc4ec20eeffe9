"""Qwen3-Next (Qwen Team 2025) without experts: gated delta rules, and every few layers attention.

A key head's queries, keys, values and gates lie side by side in one matrix, and a head's query and
gate of attention in another.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from research.errors import UserError
from research.pretrained.config_reader import ConfigReader
from research.pretrained.families.llama import NORMS, gated_tensors, outer_tensors
from research.pretrained.families.rope import rope_options, write_rope
from research.pretrained.family import Family
from research.pretrained.patterns import delta, kinds_of, layers_of, repeating
from research.pretrained.tensors import (
    Layout,
    Tensor,
    beside,
    head_width,
    heads_in,
    heads_out,
    heads_side_by_side,
    norm_tensors,
    taps_in,
    tensor,
)

LINEAR, FULL = "linear_attention", "full_attention"
OF_EXPERTS = """
decoder_sparse_step mlp_only_layers moe_intermediate_size norm_topk_prob num_experts
num_experts_per_tok output_router_logits router_aux_loss_coef shared_expert_intermediate_size
""".split()


def options(read: ConfigReader) -> dict[str, Any]:
    """Returns our options of the model that config.json describes."""
    number = read("num_hidden_layers")
    check_dense(read, number)
    read.only("hidden_act", "silu")
    read.only("attention_bias", False)
    every = read("full_attention_interval", 4)
    kinds = [LINEAR if i % every else FULL for i in range(1, number + 1)]
    kinds = read("layer_types", kinds)
    if set(kinds) != {LINEAR, FULL}:
        raise UserError(
            f"config.json has layer_types={sorted(set(kinds))}; of a qwen3_next model, {LINEAR} "
            f"and {FULL} can be read, and both have to be there."
        )
    linear = {
        "mixer": "gated_delta",
        "position": "none",
        "num_heads": read("linear_num_value_heads", 32),
        "num_key_heads": read("linear_num_key_heads", 16),
        "head_width": read("linear_key_head_dim", 128),
        "value_width": read("linear_value_head_dim", 128),
        "short_convolution": read("linear_conv_kernel_dim", 4),
        "output_norm_gain": True,
        "output_norm_epsilon": float(read("rms_norm_eps", 1e-6)),
    }
    deltas = {LINEAR: delta(linear), FULL: ""}
    return {
        "name": "decoder",
        "width": read("hidden_size"),
        "num_layers": number,
        "num_heads": read("num_attention_heads"),
        "num_kv_heads": read("num_key_value_heads", 2),
        "head_width": read("head_dim", 256),
        "qk_norm": "zero_centered_rms",
        "output_gate": True,
        "feedforward": read("intermediate_size"),
        "activation": "swiglu",
        "norm": "zero_centered_rmsnorm",
        "norm_epsilon": float(read("rms_norm_eps", 1e-6)),
        "use_bias": False,
        "tie_embeddings": read("tie_word_embeddings", False),
        **rope_options(read, fraction=read("partial_rotary_factor", 0.25)),
        "pattern": repeating([deltas[kind] for kind in kinds]),
    }


def check_dense(read: ConfigReader, number: int) -> None:
    """Raises UserError for a layer with experts.

    Args:
      read: reads config.json.
      number: number of layers.
    """
    experts, every = read("num_experts", 512), read("decoder_sparse_step", 1)
    dense = set(read("mlp_only_layers", []))
    sparse = [i for i in range(number) if i not in dense and experts and (i + 1) % every == 0]
    if sparse:
        raise UserError(
            f"config.json has num_experts={experts} in {len(sparse)} of {number} layers: mixtures "
            "of experts, which no model here has."
        )
    read.skip(*OF_EXPERTS)


def length(read: ConfigReader) -> int:
    """Returns the number of positions that the model was made for."""
    return read("max_position_embeddings", 32768)


def tensors(model: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yields every tensor, given our options of the model."""
    yield from outer_tensors(model)
    for i, layer in enumerate(layers_of(model)):
        there, here = f"model.layers.{i}", f"layers/{i}"
        of_mixer = delta_tensors if kind_of(layer) == LINEAR else attention_tensors
        yield from of_mixer(layer, there, f"{here}/mixer")
        yield from gated_tensors(there, here)
        for theirs, ours in NORMS.items():
            yield from norm_tensors(f"{there}.{theirs}", f"{here}/{ours}", biased=False)


def kind_of(layer: Mapping[str, Any]) -> str:
    """Returns the type of a layer."""
    return LINEAR if layer.get("mixer") == "gated_delta" else FULL


def attention_tensors(layer: Mapping[str, Any], there: str, here: str) -> Iterator[Tensor]:
    """Yields the tensors of a layer's attention.

    Args:
      layer: our options of the layer.
      there: name of the layer there.
      here: path of the mixer here.
    """
    width, heads, head = layer["width"], layer["num_heads"], head_width(layer)
    groups, one = layer["num_kv_heads"] or heads, f"{there}.self_attn"
    both = heads_side_by_side(2, heads, head, width)
    yield Tensor(f"{one}.q_proj.weight", (f"{here}/query", f"{here}/gate"), both)
    for name in ("key", "value"):
        shape = heads_in(groups, head, width)
        yield tensor(f"{one}.{name[0]}_proj.weight", f"{here}/{name}", shape)
    yield tensor(f"{one}.o_proj.weight", f"{here}/out", heads_out(heads, head, width))
    for name in ("query", "key"):
        yield tensor(f"{one}.{name[0]}_norm.weight", f"{here}/{name}_scale")


def delta_tensors(layer: Mapping[str, Any], there: str, here: str) -> Iterator[Tensor]:
    """Yields the tensors of a layer's gated delta rule; see `attention_tensors`."""
    width, heads, head = layer["width"], layer["num_heads"], head_width(layer)
    keys, values = layer["num_key_heads"] or heads, layer["value_width"] or head
    each, one, taps = heads // keys, f"{there}.linear_attn", layer["short_convolution"]
    # The rows of a key head are one axis, so that each part is some of them, for all key heads.
    rows = 2 * head + 2 * each * values
    per_key = Layout((head, keys, width), (2, 1, 0))
    per_value = Layout(
        ((each, values), keys, width), (3, 2, 0, 1), merged=(width, (keys, each), values)
    )
    parts = beside(
        (head, per_key), (head, per_key), (each * values, per_value), (each * values, per_value)
    )
    fused = Layout(((keys, rows), width), (1, 0, 2), sizes=parts.sizes, parts=parts.parts)
    names = ("query", "key", "value", "gate")
    yield Tensor(f"{one}.in_proj_qkvz.weight", tuple(f"{here}/{n}" for n in names), fused)
    rates = Layout(
        ((keys, 2, each), width), (1, 3, 0, 2), merged=(2, width, (keys, each)), sizes=(1, 1)
    )
    yield Tensor(f"{one}.in_proj_ba.weight", (f"{here}/beta", f"{here}/step"), rates)
    convolved = (("query", keys * head), ("key", keys * head), ("value", heads * values))
    filters = beside(*((size, taps_in(taps, size)) for _, size in convolved))
    names = tuple(f"{here}/{name}_taps" for name, _ in convolved)
    yield Tensor(f"{one}.conv1d.weight", names, filters)
    for theirs, ours in (("dt_bias", "step_bias"), ("A_log", "log_rate")):
        yield tensor(f"{one}.{theirs}", f"{here}/{ours}")
    yield tensor(f"{one}.norm.weight", f"{here}/norm_scale")
    yield tensor(f"{one}.out_proj.weight", f"{here}/out", heads_out(heads, values, width))


def config(model: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Returns config.json of a model of ours; `options` reads it back.

    Raises UserError if its layers are of other types.
    """
    kinds, layers = kinds_of(model, kind_of)
    if set(layers) != {LINEAR, FULL}:
        raise UserError(
            f"model.pattern={model.get('pattern', ())}: Qwen3-Next has layers of gated_delta and "
            "of softmax."
        )
    linear, full = layers[LINEAR], layers[FULL]
    return {
        "hidden_size": model["width"],
        "num_hidden_layers": model["num_layers"],
        "num_attention_heads": full["num_heads"],
        "num_key_value_heads": full["num_kv_heads"] or full["num_heads"],
        "head_dim": head_width(full),
        "linear_num_value_heads": linear["num_heads"],
        "linear_num_key_heads": linear["num_key_heads"] or linear["num_heads"],
        "linear_key_head_dim": head_width(linear),
        "linear_value_head_dim": linear["value_width"] or head_width(linear),
        "linear_conv_kernel_dim": linear["short_convolution"],
        "layer_types": kinds,
        "mlp_only_layers": list(range(model["num_layers"])),
        "num_experts": 0,
        "intermediate_size": model["feedforward"],
        "hidden_act": "silu",
        "rms_norm_eps": model["norm_epsilon"],
        "tie_word_embeddings": model["tie_embeddings"],
        "max_position_embeddings": length,
        # Without it, a quarter of the channels would turn.
        "rope_parameters": {"partial_rotary_factor": 1.0} | write_rope(full),
    }


QWEN3_NEXT = Family(
    "qwen3_next",
    "Qwen3NextForCausalLM",
    options,
    length,
    tensors,
    config,
    "model.",
    ("mtp.*",),
)
