"""BLOOM (Le Scao et al. 2022): ALiBi, and a norm of the embeddings.

Each head's query, key and value lie side by side in one fused matrix, as in GPT-NeoX.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from research.errors import UserError
from research.pretrained.config_reader import ConfigReader
from research.pretrained.families.gpt_neox import fused_layer_tensors
from research.pretrained.family import Family
from research.pretrained.tensors import Tensor, head_tensor, norm_tensors, tensor

OF_MEGATRON = """
attention_softmax_in_fp32 bias_dropout_fusion masked_softmax_fusion offset_alibi skip_bias_add
skip_bias_add_qkv unk_token_id n_inner
""".split()
"""Keys of the program that trained it, which published checkpoints have and nobody reads."""


def options(read: ConfigReader) -> dict[str, Any]:
    """Returns our options of the model that config.json describes."""
    read.only("apply_residual_connection_post_layernorm", False)
    read.skip(*OF_MEGATRON)
    # Published checkpoints have the second name of each.
    width = read("hidden_size", read("n_embed", 64))
    return {
        "name": "decoder",
        "width": width,
        "num_layers": read("n_layer", read("num_hidden_layers", 2)),
        "num_heads": read("n_head", read("num_attention_heads", 8)),
        "feedforward": 4 * width,
        "activation": "gelu_tanh",
        "norm": "layernorm",
        "norm_epsilon": float(read("layer_norm_epsilon", 1e-5)),
        "use_bias": True,
        "position": "alibi",
        "embedding_norm": True,
        "tie_embeddings": read("tie_word_embeddings", True),
    }


def length(read: ConfigReader) -> int:
    """Returns the number of positions that the model was trained with."""
    return read("seq_length", 2048)


def tensors(model: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yields every tensor, given our options of the model."""
    yield tensor("transformer.word_embeddings.weight", "embedding")
    yield from norm_tensors("transformer.word_embeddings_layernorm", "embedding_norm")
    yield from norm_tensors("transformer.ln_f", "norm")
    yield head_tensor(model)
    for i in range(model["num_layers"]):
        there, here = f"transformer.h.{i}", f"layers/{i}"
        yield from fused_layer_tensors(model, there, here, "self_attention")


def config(model: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Returns config.json of a model of ours; `options` reads it back.

    Raises UserError for a feed-forward layer of another width.
    """
    check_four_times("BLOOM", model)
    return {
        "hidden_size": model["width"],
        "n_layer": model["num_layers"],
        "n_head": model["num_heads"],
        "layer_norm_epsilon": model["norm_epsilon"],
        "tie_word_embeddings": model["tie_embeddings"],
        "seq_length": length,
    }


def check_four_times(name: str, model: Mapping[str, Any]) -> None:
    """Raises UserError for a feed-forward layer that is not four times as wide as the model."""
    if model["feedforward"] != 4 * model["width"]:
        raise UserError(
            f"model.feedforward={model['feedforward']}; that of {name} is 4 width, "
            f"{4 * model['width']}."
        )


BLOOM = Family("bloom", "BloomForCausalLM", options, length, tensors, config, "transformer.")
