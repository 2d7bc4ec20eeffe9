"""What `research.prepare` is asked for: documents, tokenizer, splits and shards."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from research.errors import UserError
from research.tasks.digests import file_digest
from research.tasks.tokens.documents import Source, described
from research.tasks.tokens.encoding import (
    BYTES,
    Encoder,
    bytes_encoder,
    load_encoder,
    smallest_dtype,
)
from research.tasks.tokens.shards import DTYPES


@dataclass(frozen=True)
class Request:
    """What is to be prepared; with the same request, the same bytes are written.

    Attributes:
      sources: where documents for training (and validation) are.
      held_out: where documents for validation are; (): some of those of `sources`.
      field: field of JSON lines, or column, that has the text.
      separator: what stands between the documents of a text file; "": each file is one document.
      tokenizer: path of a tokenizer.json, "bpe:N" or "bytes".
      end_token: name of the end token; "": found by convention.
      validation: fraction of the documents that are held out, without `held_out`.
      shard_tokens: tokens of a shard.
      dtype: "uint16", "uint32" or "auto", the smaller one that has room for the vocabulary.
    """

    sources: Sequence[Source]
    held_out: Sequence[Source]
    field: str
    separator: str
    tokenizer: str
    end_token: str
    validation: float
    shard_tokens: int
    dtype: str

    def record(self) -> dict[str, Any]:
        """Returns the request as JSON values; equal ones lead to equal shards."""
        file = Path(self.tokenizer).expanduser()
        own = {"tokenizer": f"sha256:{file_digest(file)}"} if file.is_file() else {}
        return {
            **asdict(self),
            "sources": described(self.sources),
            "held_out": described(self.held_out),
            "validation": 0.0 if self.held_out else self.validation,
            **own,
        }


def is_held_out(content: bytes, request: Request) -> bool:
    """Returns whether a hash of the content falls into the validation part.

    So the split depends neither on the order of documents nor on how they are packed into files,
    and equal documents are in the same split.
    """
    if request.held_out:
        return False
    number = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
    return number < request.validation * 2**64


def encoder_of(request: Request) -> Encoder:
    """Returns the encoder of a request whose tokenizer need not be trained.

    Raises UserError if there is none, or no such end token.
    """
    if request.tokenizer == BYTES:
        if request.end_token:
            raise UserError("--end_token is of no use with --tokenizer=bytes: it is the token 256.")
        return bytes_encoder()
    return load_encoder(request.tokenizer, request.end_token)


def dtype_of(request: Request, encoder: Encoder) -> np.dtype:
    """Returns the dtype of the tokens on disk. Raises UserError if the vocabulary is too large."""
    needed = smallest_dtype(encoder.vocab_size)
    dtype = DTYPES.get(request.dtype, needed)
    if dtype.itemsize < needed.itemsize:
        raise UserError(
            f"--dtype={request.dtype} has room for {2**16:,} tokens; the tokenizer has "
            f"{encoder.vocab_size:,}. Take uint32 or auto."
        )
    return dtype
