"""MPT (MosaicML 2023): ALiBi, no biases, one fused matrix of queries, keys and values."""

from collections.abc import Iterator, Mapping
from typing import Any

from research.pretrained.config_reader import ConfigReader
from research.pretrained.families.bloom import check_four_times
from research.pretrained.family import Family
from research.pretrained.tensors import (
    Layout,
    Tensor,
    head_tensor,
    head_width,
    heads_out,
    linear_tensors,
    norm_tensors,
    tensor,
)

OF_TRAINING = "embedding_fraction init_config init_device tokenizer_name verbose".split()
"""Keys of its training, which nothing that computes the model reads."""
NORMS = {"low_precision_layernorm": "layernorm", "layernorm": "layernorm"}


def options(read: ConfigReader) -> dict[str, Any]:
    """Returns our options of the model that config.json describes."""
    width = read("d_model", 2048)
    read.only("expansion_ratio", 4)
    read.only("no_bias", True)
    # With ALiBi there is no table of positions, whatever "learned_pos_emb" says.
    read.skip("learned_pos_emb", *OF_TRAINING)
    attention = read.within("attn_config")
    attention.only("attn_type", "multihead_attention")
    attention.only("alibi", True)
    attention.only("alibi_bias_max", 8)
    attention.skip("attn_impl")
    found = {
        "name": "decoder",
        "width": width,
        "num_layers": read("n_layers", 24),
        "num_heads": read("n_heads", 16),
        "feedforward": 4 * width,
        "activation": "gelu",
        "norm": read.choice("norm_type", NORMS, "low_precision_layernorm"),
        "norm_epsilon": float(read("layer_norm_epsilon", 1e-5)),
        "use_bias": False,
        "position": "alibi",
        "score_scale": float(attention("softmax_scale", 0.0)),
        "tie_embeddings": read("tie_word_embeddings", True),
    }
    attention.check_all_read()
    return found


def length(read: ConfigReader) -> int:
    """Returns the number of positions that the model was trained with."""
    return read("max_seq_len", 2048)


def tensors(model: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yields every tensor, given our options of the model."""
    width, heads, head = model["width"], model["num_heads"], head_width(model)
    yield tensor("transformer.wte.weight", "embedding")
    yield from norm_tensors("transformer.norm_f", "norm", biased=False)
    yield head_tensor(model)
    fused = Layout(((3, heads, head), width), (0, 3, 1, 2), sizes=(1, 1, 1))
    for i in range(model["num_layers"]):
        there, here = f"transformer.blocks.{i}", f"layers/{i}"
        names = tuple(f"{here}/mixer/{name}" for name in ("query", "key", "value"))
        yield Tensor(f"{there}.attn.Wqkv.weight", names, fused)
        out = heads_out(heads, head, width)
        yield tensor(f"{there}.attn.out_proj.weight", f"{here}/mixer/out", out)
        for theirs, ours in (("up_proj", "in"), ("down_proj", "out")):
            feed = f"{here}/feedforward/{ours}"
            yield from linear_tensors(f"{there}.ffn.{theirs}", feed, biased=False)
        for number in (1, 2):
            ours = f"{here}/norm{number}"
            yield from norm_tensors(f"{there}.norm_{number}", ours, biased=False)


def config(model: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Returns config.json of a model of ours; `options` reads it back.

    Raises UserError for a feed-forward layer of another width.
    """
    check_four_times("MPT", model)
    return {
        "d_model": model["width"],
        "n_layers": model["num_layers"],
        "n_heads": model["num_heads"],
        "layer_norm_epsilon": model["norm_epsilon"],
        "tie_word_embeddings": model["tie_embeddings"],
        "max_seq_len": length,
        "attn_config": {"softmax_scale": model["score_scale"] or None},
    }


MPT = Family("mpt", "MptForCausalLM", options, length, tensors, config, "transformer.")
