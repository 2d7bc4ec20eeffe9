"""BERT (Devlin et al. 2019) with a head for classes of the pooled first state."""

from collections.abc import Iterator, Mapping
from typing import Any

from research.errors import UserError
from research.pretrained.config_reader import ConfigReader
from research.pretrained.families.gpt2 import ACTIVATIONS
from research.pretrained.family import Family
from research.pretrained.tensors import (
    TRANSPOSED,
    Layout,
    Tensor,
    heads_bias,
    heads_in,
    heads_out,
    tensor,
)


def options(read: ConfigReader) -> dict[str, Any]:
    """Returns our options of the model that config.json describes."""
    read.only("position_embedding_type", "absolute")
    read.only("problem_type", "single_label_classification")
    read.only("is_decoder", False)
    read.only("add_cross_attention", False)
    read.skip("tie_word_embeddings", "directionality", "output_past")
    read.skip(*POOLER)
    return {
        "name": "classifier",
        "body": "transformer",
        "width": read("hidden_size"),
        "num_layers": read("num_hidden_layers"),
        "num_heads": read("num_attention_heads"),
        "feedforward": read("intermediate_size"),
        "activation": read.choice("hidden_act", ACTIVATIONS, "gelu"),
        "norm": "layernorm",
        "norm_epsilon": float(read("layer_norm_eps", 1e-12)),
        "norm_placement": "post",
        "use_bias": True,
        "position": "learned",
        "embedding_norm": True,
        "token_types": read("type_vocab_size", 2),
        "pooling": "first",
        "pooler": True,
    }


POOLER = tuple(
    f"pooler_{key}"
    for key in ("fc_size", "num_attention_heads", "num_fc_layers", "size_per_head", "type")
)
"""Keys of the first checkpoints that were published, and never read."""


def length(read: ConfigReader) -> int:
    """Returns the number of positions."""
    return read("max_position_embeddings", 512)


def tensors(model: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yields every tensor, given our options of the model."""
    tables = {
        "word": "embed/embedding",
        "position": "position",
        "token_type": "token_type",
    }
    for theirs, ours in tables.items():
        yield tensor(f"bert.embeddings.{theirs}_embeddings.weight", ours)
    yield from affine("bert.embeddings.LayerNorm", "embedding_norm")
    for i in range(model["num_layers"]):
        yield from layer_tensors(model, f"bert.encoder.layer.{i}", f"stack/layers/{i}")
    yield from dense("bert.pooler.dense", "pool/pooler")
    yield from dense("classifier", "head")


def layer_tensors(model: Mapping[str, Any], there: str, here: str) -> Iterator[Tensor]:
    """Yields the tensors of a layer."""
    width, heads = model["width"], model["num_heads"]
    head = model.get("head_width") or width // heads
    mixer, feed = f"{here}/mixer", f"{here}/feedforward"
    for name in ("query", "key", "value"):
        one = f"{there}.attention.self.{name}"
        yield tensor(f"{one}.weight", f"{mixer}/{name}", heads_in(heads, head, width))
        yield tensor(f"{one}.bias", f"{mixer}/{name}_bias", heads_bias(heads, head))
    out = heads_out(heads, head, width)
    yield from dense(f"{there}.attention.output.dense", f"{mixer}/out", out)
    yield from affine(f"{there}.attention.output.LayerNorm", f"{here}/norm1")
    yield from dense(f"{there}.intermediate.dense", f"{feed}/in")
    yield from dense(f"{there}.output.dense", f"{feed}/out")
    yield from affine(f"{there}.output.LayerNorm", f"{here}/norm2")


def dense(there: str, here: str, layout: Layout = TRANSPOSED) -> Iterator[Tensor]:
    """Yields a matrix and its bias."""
    yield tensor(f"{there}.weight", here, layout)
    yield tensor(f"{there}.bias", f"{here}_bias")


def affine(there: str, here: str) -> Iterator[Tensor]:
    """Yields the gain and bias of a norm."""
    yield tensor(f"{there}.weight", f"{here}/scale")
    yield tensor(f"{there}.bias", f"{here}/bias")


def config(model: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Returns config.json of a model of ours; `options` reads it back."""
    back = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    if model["activation"] not in back:
        raise UserError(f"model.activation={model['activation']!r}")
    return {
        "hidden_size": model["width"],
        "num_hidden_layers": model["num_layers"],
        "num_attention_heads": model["num_heads"],
        "intermediate_size": model["feedforward"],
        "hidden_act": back[model["activation"]],
        "layer_norm_eps": model["norm_epsilon"],
        "type_vocab_size": model["token_types"],
        "max_position_embeddings": length,
    }


def special(read: ConfigReader) -> dict[str, int]:
    """Returns the id of padding."""
    return {"pad": read("pad_token_id", 0)}


BERT = Family(
    "bert",
    "BertForSequenceClassification",
    options,
    length,
    tensors,
    config,
    superfluous=("bert.embeddings.position_ids",),
    task="sentiment",
    special=special,
)
