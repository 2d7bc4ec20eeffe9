"""Turns texts into tokens, in parallel processes, and trains byte-level BPEs.

A text is encoded as ordinary text, so that none has the end token in it: it stands at the end of
every document and nowhere else.
"""

import contextlib
import itertools
import multiprocessing
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from research.errors import UserError, did_you_mean

BYTES = "bytes"
BPE = "bpe:"
END = "<|endoftext|>"
END_TOKENS = (END, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "<|im_end|>", "[SEP]")
"""Names of end tokens, of GPT-2, Llama 3, Llama 2 and T5, Gemma, ..., by which one is found."""
LONGEST = 2**20
"""Characters that are encoded at once. A token takes 560 bytes of memory until it is copied, so
longer documents are encoded in parts."""
_CUT = re.compile(r"(?<=\S)\n(?=\S)")
"""Where documents are cut: patterns of BPEs (of GPT-2, Llama 3, Qwen) see the end of a line alike
whether anything follows it or not, unless there is more white space beside it."""


@dataclass(frozen=True)
class Encoder:
    """What encodes: a tokenizer of the `tokenizers` library.

    Attributes:
      json: the tokenizer's JSON.
      vocab_size: number of tokens, the largest id + 1.
      end: id of the end token.
      is_bytes: whether tokens are the bytes of UTF-8, for which nothing need be asked.
    """

    json: str
    vocab_size: int
    end: int
    is_bytes: bool = False


class Batch(NamedTuple):
    """Documents that are encoded together, and `label`, what belongs to them."""

    texts: list[str]
    label: Any


def bytes_encoder() -> Encoder:
    """Returns the encoder whose tokens are the 256 bytes; the end token is 256.

    Its tokenizer is a BPE without merges, for those who read the shards.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # GPT-2 writes printable bytes as they are, and the others, in order, from U+0100 on.
    plain = [ord(c) for c in alphabet if ord(c) < 256]
    others = [b for b in range(256) if b not in set(plain)]
    character = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}
    library = tokenizers.Tokenizer(models.BPE({character[b]: b for b in range(256)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([END])
    return Encoder(library.to_str(), 257, 256, is_bytes=True)


def load_encoder(path: str, end_token: str = "") -> Encoder:
    """Returns the encoder of a tokenizer.json.

    Args:
      path: the file.
      end_token: its end token; "": the first of `END_TOKENS` that it has.

    Raises UserError if it is missing or damaged, or has no such token.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(
            f"--tokenizer={path!r} is no file; give a tokenizer.json, bpe:N (N tokens, trained on "
            "the training documents) or bytes."
        )
    try:
        text = file.read_text(encoding="utf-8")
        library = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more specific
        raise UserError(f"--tokenizer={path}: this is no tokenizer.json: {error}.") from None
    return make_encoder(text, end_token, library)


def make_encoder(
    text: str, end_token: str = "", library: tokenizers.Tokenizer | None = None
) -> Encoder:
    """Returns the encoder of a tokenizer's JSON; see `load_encoder`."""
    ids = (library or tokenizers.Tokenizer.from_str(text)).get_vocab(with_added_tokens=True)
    end = end_token or next((name for name in END_TOKENS if name in ids), "")
    if end not in ids:
        what = f"--end_token={end_token!r} is not in the tokenizer."
        what += did_you_mean(end_token, [t for t in ids if t.startswith(("<", "["))])
        none = "the tokenizer has no known end token; name the one to put after every document by "
        raise UserError(what if end_token else f"{none}--end_token.")
    return Encoder(text, max(ids.values()) + 1, ids[end])


def train_bpe(size: int, texts: Iterable[str]) -> Encoder:
    """Returns a byte-level BPE (Sennrich 2016; bytes and pre-tokens as in GPT-2), trained on texts.

    Args:
      size: number of tokens, including 256 bytes and the end token; fewer if the texts yield fewer.
      texts: training texts, read once.
    """
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator((part for text in texts for part in parts_of(text)), trainer)
    return make_encoder(library.to_str(), END, library)


def bpe_size(name: str) -> int:
    """Returns N of "bpe:N". Raises UserError unless it is a number with room for all bytes."""
    number = name.removeprefix(BPE)
    if not number.isdecimal() or int(number) < 257:
        raise UserError(
            f"--tokenizer={name!r}: N of bpe:N must be a number of at least 257, one token per "
            "byte and the end token; for example bpe:32768."
        )
    return int(number)


def parts_of(text: str, longest: int = LONGEST) -> list[str]:
    """Returns the parts in which a text is encoded, each of at most `longest` characters.

    A cut is behind a line, if there is one in the second half of a part.
    """
    parts, at = [], 0
    while len(text) - at > longest:
        # The cut needs a look at the character behind it.
        ends = [found.end() for found in _CUT.finditer(text, at + longest // 2, at + longest)]
        cut = ends[-1] if ends else at + longest
        parts.append(text[at:cut])
        at = cut
    return [*parts, text[at:]]


def encode(encoder: Encoder, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens of all texts, each with the end token, and the number of each (N,) int64.

    The tokens are uint16, or uint32 if the vocabulary needs it.
    """
    return _encode(_library(encoder), encoder, texts)


def _library(encoder: Encoder) -> tokenizers.Tokenizer | None:
    if encoder.is_bytes:
        return None
    library = tokenizers.Tokenizer.from_str(encoder.json)
    library.encode_special_tokens = True  # as ordinary text
    library.no_truncation()
    library.no_padding()
    return library


def _encode(
    library: tokenizers.Tokenizer | None, encoder: Encoder, texts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    kind = smallest_dtype(encoder.vocab_size)
    end = np.array([encoder.end], kind)
    pieces = [np.zeros(0, kind)]
    counts = []
    parts = [[text] if library is None else parts_of(text) for text in texts]
    if library is None:
        encoded = iter(np.frombuffer(text.encode(), np.uint8) for text in texts)
    else:
        flat = [part for several in parts for part in several]
        # No template of the tokenizer, such as a token at the beginning.
        try:
            ids = library.encode_batch_fast(flat, add_special_tokens=False)
        except Exception as error:  # the library raises nothing more specific
            raise UserError(f"--tokenizer cannot encode a document: {error}.") from None
        encoded = iter(np.array(one.ids, kind) for one in ids)
    for several in parts:
        own = [next(encoded) for _ in several]
        pieces += [*own, end]
        counts.append(sum(map(len, own)) + 1)
    return np.concatenate([p.astype(kind, copy=False) for p in pieces]), np.array(counts, np.int64)


def smallest_dtype(vocab_size: int) -> np.dtype:
    """Returns uint16 if all tokens fit into it, else uint32; little-endian."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def encode_all(
    encoder: Encoder, batches: Iterable[Batch], processes: int
) -> Generator[tuple[Any, np.ndarray, np.ndarray]]:
    """Yields (label, tokens, counts) of each batch, as `encode` returns them, in order.

    Two batches for each process are under way at any time, which bounds the memory.
    """
    if processes == 1:
        library = _library(encoder)
        for batch in batches:
            yield batch.label, *_encode(library, encoder, batch.texts)
        return
    with _processes(encoder, processes) as pool:
        batches = iter(batches)
        waiting = deque()
        for batch in itertools.islice(batches, 2 * processes):
            waiting.append((batch.label, pool.submit(_work, batch.texts)))
        while waiting:
            label, future = waiting.popleft()
            try:
                yield label, *future.result()
            except BrokenProcessPool:
                raise UserError(
                    f"--processes={processes}: one that encodes has ended, perhaps for want of "
                    "memory. The same command goes on; give fewer."
                ) from None
            for batch in itertools.islice(batches, 1):
                waiting.append((batch.label, pool.submit(_work, batch.texts)))


@contextlib.contextmanager
def _processes(encoder: Encoder, number: int) -> Generator[Executor]:
    # Started anew rather than forked: a fork of a process with threads can hang.
    pool = ProcessPoolExecutor(
        number, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(encoder,)
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


_WORKER: list = []
"""In a process that encodes: its tokenizer and encoder."""


def _begin(encoder: Encoder) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends this one
    # Each process has one core; their number is the user's choice.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _WORKER[:] = [_library(encoder), encoder]
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when its parent was killed, which would otherwise wait for work forever."""
    if parent := multiprocessing.parent_process():
        connection.wait([parent.sentinel])
        os._exit(1)


def _work(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    return _encode(*_WORKER, texts)
