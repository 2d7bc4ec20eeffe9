"""Text to token numbers and back: characters, or byte-level BPE."""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers

from research.ablation.store import write_text
from research.errors import UserError, check_name

FILE = "tokenizer.json"
"""Name under which a run keeps its tokenizer."""


class Tokenizer(Protocol):
    """Text to token numbers and back; `characters[t]` is how many characters token t stands for."""

    vocab_size: int
    characters: np.ndarray

    def encode(self, text: str) -> np.ndarray: ...
    def decode(self, tokens: list[int]) -> str: ...
    def to_json(self) -> str: ...


class CharTokenizer:
    """One token per distinct character of a text, in code point order (as nanoGPT's)."""

    def __init__(self, alphabet: str):
        self.alphabet = alphabet
        self.vocab_size = len(alphabet)
        self.characters = np.ones(self.vocab_size, np.float32)
        self._number = {character: i for i, character in enumerate(alphabet)}

    def encode(self, text: str) -> np.ndarray:
        """Returns int32 tokens. Raises UserError for a character the model never saw."""
        unknown = sorted(set(text) - self._number.keys())
        if unknown:
            raise UserError(
                f"the text has characters that the model never saw: {unknown[:10]}; "
                f"its alphabet is {self.alphabet!r}."
            )
        return np.fromiter((self._number[c] for c in text), np.int32, len(text))

    def decode(self, tokens: list[int]) -> str:
        return "".join(self.alphabet[t] for t in tokens)

    def to_json(self) -> str:
        return json.dumps({"kind": "char", "alphabet": self.alphabet})


class BpeTokenizer:
    """Byte-level BPE (Sennrich 2016; bytes as in GPT-2): every text can be encoded."""

    def __init__(self, bpe: tokenizers.Tokenizer):
        self.bpe = bpe
        self.vocab_size = bpe.get_vocab_size()
        # A token may hold part of a character only: count the bytes that start one.
        self.characters = np.array(
            [self._starts(bpe.id_to_token(t)) for t in range(self.vocab_size)], np.float32
        )

    @staticmethod
    def _starts(token: str | None) -> int:
        return sum(_BYTE_OF[c] & 0xC0 != 0x80 for c in token or "")

    def encode(self, text: str) -> np.ndarray:
        """Returns int32 tokens."""
        return np.array(self.bpe.encode(text).ids, np.int32)

    def decode(self, tokens: list[int]) -> str:
        return self.bpe.decode(tokens)

    def to_json(self) -> str:
        return json.dumps({"kind": "bpe", "tokenizer": json.loads(self.bpe.to_str())})


def _byte_alphabet() -> dict[str, int]:
    """Returns GPT-2's table from the printable stand-in of each byte to the byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def train_bpe(text: str, vocab_size: int, cache: Path | None) -> BpeTokenizer:
    """Returns a byte-level BPE trained on `text`; kept in `cache` under a hash of its inputs."""
    if vocab_size < 256:
        raise UserError(f"task.bpe_vocab_size={vocab_size} must be at least 256, one per byte.")
    digest = hashlib.sha256(f"{vocab_size}\n{text}".encode()).hexdigest()[:16]
    path = cache / f"bpe-{vocab_size}-{digest}.json" if cache else None
    if path and path.is_file():
        return BpeTokenizer(tokenizers.Tokenizer.from_file(str(path)))
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(text.splitlines(keepends=True), trainer)
    if path:
        # Keeping it saves time and nothing else, so a disk that refuses is no reason to stop.
        with contextlib.suppress(OSError):
            write_text(path, bpe.to_str())
    return BpeTokenizer(bpe)


def make_tokenizer(kind: str, text: str, vocab_size: int, cache: Path | None) -> Tokenizer:
    """Returns the tokenizer that `task.tokenizer` names, made from the training text.

    `text` for "char" is the whole corpus, so that validation holds no unknown character.
    """
    check_name("task.tokenizer", kind, ("char", "bpe"))
    if kind == "char":
        return CharTokenizer("".join(sorted(set(text))))
    return train_bpe(text, vocab_size, cache)


def load_tokenizer(run: Path) -> Tokenizer:
    """Returns the tokenizer of a run. Raises UserError when the run keeps none."""
    path = run / FILE
    if not path.is_file():
        raise UserError(f"{run} has no {FILE}: it is not a run of a text task.")
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["kind"] == "char":
        return CharTokenizer(content["alphabet"])
    return BpeTokenizer(tokenizers.Tokenizer.from_str(json.dumps(content["tokenizer"])))
