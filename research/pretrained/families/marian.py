"""Marian (Junczys-Dowmunt et al. 2018), as in OPUS-MT: BART's tensors without a norm of embeddings.

Its positions are sines, first all sines and then all cosines, which checkpoints leave out. Here
they are a table like any learned one.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from research.errors import UserError
from research.pretrained.config_reader import ConfigReader
from research.pretrained.families import bart
from research.pretrained.families.bart import STACKS, length
from research.pretrained.family import Family
from research.pretrained.special_tokens import TRANSLATION, sequence_tokens
from research.pretrained.tensors import Tensor


def options(read: ConfigReader) -> dict[str, Any]:
    """Returns our options of the model that config.json describes."""
    read.only("normalize_embedding", False)
    read.only("static_position_embeddings", True)
    read.only("share_encoder_decoder_embeddings", True)
    read.only("decoder_vocab_size", read("vocab_size"))
    read.skip("extra_pos_embeddings")  # sines need no table, and so no rows before the first
    return bart.shared_options(read) | {"embedding_norm": False}


def sines(length: int, width: int) -> np.ndarray:
    """Returns sin and then cos of position / 10000^(2 i / width), float32 (length, width)."""
    rates = 10000.0 ** (-np.arange(0, width, 2) / width)
    angles = np.arange(length)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles[:, : width // 2])], 1).astype(np.float32)


def tensors(model: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yields every tensor, given our options of the model."""
    yield from bart.shared_tensors(model)
    table = sines(model["length"], model["width"])
    for stack, prefix in STACKS.items():
        name = f"model.{stack}.embed_positions.weight"
        yield Tensor(name, (f"{prefix}position",), otherwise=table)


def config(model: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Returns config.json of a model of ours; `options` reads it back."""
    if model["embedding_norm"]:
        raise UserError("model.embedding_norm=True")
    return bart.config(model, length) | {"share_encoder_decoder_embeddings": True}


# OPUS-MT's padding is its last token, of which each model has another.
MARIAN = Family(
    "marian",
    "MarianMTModel",
    options,
    length,
    tensors,
    config,
    "model.",
    task=TRANSLATION,
    special=sequence_tokens(pad=58100, start=58100, end=0),
)
