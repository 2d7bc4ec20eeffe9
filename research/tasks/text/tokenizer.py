"""Tokenizers: characters, words, or byte-level BPE."""

import codecs
import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers

from research.errors import UserError, check_name
from research.runs.store import read_json, write_text
from research.tasks.task import UNKNOWN, WORDS
from research.tasks.text.words import has_marks, split_at_marks, split_words

FILE = "tokenizer.json"
"""File of a run with its tokenizer."""
CORPUS = "corpus.json"
"""File of a run with facts about its data, including the digest of its tokenizer."""
MARKS = "marks_in_words"
"""Key in FILE, set if words keep their combining marks; older vocabularies split them off."""


class Tokenizer(Protocol):
    """Converts text to token ids and back.

    Attributes:
      vocab_size: number of tokens.
      characters: (V,) float32, number of characters of each token.
    """

    vocab_size: int
    characters: np.ndarray

    def encode(self, text: str) -> np.ndarray: ...
    def decode(self, tokens: list[int]) -> str: ...
    def pieces(self, tokens: list[int]) -> list[str]: ...
    def to_json(self) -> str: ...


class CharTokenizer:
    """One token per distinct character of a text, in code point order (as in nanoGPT)."""

    def __init__(self, alphabet: str):
        self.alphabet = alphabet
        self.vocab_size = len(alphabet)
        self.characters = np.ones(self.vocab_size, np.float32)
        self._number = {character: i for i, character in enumerate(alphabet)}

    def encode(self, text: str) -> np.ndarray:
        """Returns int32 tokens. Raises UserError for a character outside the alphabet."""
        unknown = sorted(set(text) - self._number.keys())
        if unknown:
            raise UserError(
                f"the text has characters that the model never saw: {unknown[:10]}; "
                f"its alphabet is {self.alphabet!r}."
            )
        return np.fromiter((self._number[c] for c in text), np.int32, len(text))

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(self.alphabet[t] for t in tokens)

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Returns the text of each token."""
        return [self.alphabet[t] for t in tokens]

    def to_json(self) -> str:
        return json.dumps({"kind": "char", "alphabet": self.alphabet})


class BpeTokenizer:
    """Byte-level BPE (Sennrich 2016; bytes as in GPT-2), which can encode any text."""

    def __init__(self, bpe: tokenizers.Tokenizer):
        self.bpe = bpe
        self.vocab_size = bpe.get_vocab_size()
        # A token may contain only part of a character, so count the bytes that start one in UTF-8.
        self.characters = np.array(
            [self._starts(bpe.id_to_token(t)) for t in range(self.vocab_size)], np.float32
        )

    @staticmethod
    def _starts(token: str | None) -> int:
        return sum(_BYTE_OF[c] & 0xC0 != 0x80 for c in token or "")

    def encode(self, text: str) -> np.ndarray:
        """Returns int32 tokens."""
        return np.array(self.bpe.encode(text).ids, np.int32)

    def decode(self, tokens: Sequence[int]) -> str:
        return self.bpe.decode(list(tokens))

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Returns the text of each token; concatenated, they equal `decode(tokens)`.

        A character that is split over several tokens belongs to the last of them.
        """
        bytes_of = [bytes(_BYTE_OF[c] for c in self.bpe.id_to_token(t) or "") for t in tokens]
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        last = len(bytes_of) - 1
        return [decoder.decode(b, final=i == last) for i, b in enumerate(bytes_of)]

    def to_json(self) -> str:
        return json.dumps({"kind": "bpe", "tokenizer": json.loads(self.bpe.to_str())})


class WordTokenizer:
    """One token per distinct word, in code point order; words are separated by spaces."""

    def __init__(self, words: Sequence[str]):
        self.words = list(words)
        self.vocab_size = len(self.words)
        # The space before a word counts as one of its characters.
        self.characters = np.array([len(word) + 1 for word in self.words], np.float32)
        self._number = {word: i for i, word in enumerate(self.words)}

    def encode(self, text: str) -> np.ndarray:
        """Returns int32 tokens. Raises UserError for a word outside the vocabulary."""
        words = text.split()
        unknown = sorted(set(words) - self._number.keys())
        if unknown:
            raise UserError(f"the text has words that the model never saw: {unknown[:10]}.")
        return np.fromiter((self._number[word] for word in words), np.int32, len(words))

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(self.pieces(tokens))

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Returns the text of each token, with a space before it."""
        return [" " + self.words[t] for t in tokens]

    def to_json(self) -> str:
        return json.dumps({"kind": "word", "words": self.words}, ensure_ascii=False)


class SentenceTokenizer:
    """Tokenizer of sentences; ids 0, 1, 2 are `SPECIAL` (`PAD`, `BOS`, `EOS` of tasks).

    No text is encoded as a special token, not even "</s>". Encoding adds a space before the first
    word, so that a word has the same tokens at every position, and decoding removes it:
    decode(encode(text)) equals the text, except for runs of spaces if tokens are words.
    """

    SPECIAL = ("<pad>", "<s>", "</s>")

    def __init__(self, inner: Tokenizer):
        self.inner = inner
        self.vocab_size = WORDS + inner.vocab_size
        # The space before the first word counts as a character.
        self.characters = np.concatenate([np.zeros(WORDS, np.float32), inner.characters])

    def encode(self, text: str) -> np.ndarray:
        """Returns int32 tokens, without special ones."""
        return self.inner.encode(" " + text) + WORDS

    def encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes each text; for BPE much faster than calling `encode` on each."""
        if not isinstance(self.inner, BpeTokenizer):
            return [self.encode(text) for text in texts]
        encoded = self.inner.bpe.encode_batch_fast([" " + text for text in texts])
        return [np.array(e.ids, np.int32) + WORDS for e in encoded]

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens, without special ones."""
        return self.inner.decode([t - WORDS for t in tokens if t >= WORDS]).removeprefix(" ")

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Returns the text of each token, with the space before a word; see BpeTokenizer.pieces.

        Special tokens are represented by their names.
        """
        words = iter(self.inner.pieces([t - WORDS for t in tokens if t >= WORDS]))
        return [next(words) if t >= WORDS else self.SPECIAL[t] for t in tokens]

    def to_json(self) -> str:
        content = json.loads(self.inner.to_json())
        return json.dumps(content | {"kind": f"sentence_{content['kind']}"}, ensure_ascii=False)


class OpenTokenizer:
    """Tokenizer of texts that are only read; ids 0, 1 are `SPECIAL` (`PAD`, `UNKNOWN`).

    Converts texts to lower case. Words are runs of letters and digits, any other character is a
    separate word, and English contractions are split as in the Penn Treebank (do n't, it 's), see
    `split_words`. Words outside the vocabulary become `UNKNOWN`. A BPE never needs that token for
    encoding, but word dropout and attributions use it as a neutral replacement.
    """

    SPECIAL = ("<pad>", "<unknown>")

    def __init__(
        self,
        inner: WordTokenizer | BpeTokenizer,
        words_of: Callable[[str], list[str]] = split_words,
    ):
        self.inner = inner
        self._words_of = words_of
        self.vocab_size = len(self.SPECIAL) + inner.vocab_size
        self.characters = np.concatenate([np.zeros(len(self.SPECIAL)), inner.characters])
        self._number = {}
        if isinstance(inner, WordTokenizer):
            self._number = {w: i + len(self.SPECIAL) for i, w in enumerate(inner.words)}

    def encode(self, text: str) -> np.ndarray:
        """Returns int32 tokens; at least one unless the text is empty."""
        if isinstance(self.inner, BpeTokenizer):
            return self.inner.encode(_spaced(text)) + len(self.SPECIAL)
        words = self._words_of(text)
        return np.array([self._number.get(_plain(w), UNKNOWN) for w in words], np.int32)

    def split(self, text: str) -> list[str]:
        """Returns the piece of text behind each token of `encode`."""
        if isinstance(self.inner, BpeTokenizer):
            return self.inner.pieces(self.inner.encode(_spaced(text)).tolist())
        return self._words_of(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens, with special ones represented by their names."""
        return "".join(self.pieces(tokens)).removeprefix(" ")

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Returns the text of each token, with the space before a word; names of special ones."""
        first = len(self.SPECIAL)
        words = iter(self.inner.pieces([t - first for t in tokens if t >= first]))
        return [next(words) if t >= first else f" {self.SPECIAL[t]}" for t in tokens]

    def to_json(self) -> str:
        content = json.loads(self.inner.to_json())
        if self._words_of is split_words and has_marks("".join(content.get("words", ()))):
            content[MARKS] = True  # only if it matters, so that the digests of others stay the same
        return json.dumps(content | {"kind": f"open_{content['kind']}"}, ensure_ascii=False)


def _plain(word: str) -> str:
    return word.lower().replace("’", "'")


def _spaced(text: str) -> str:
    """Returns the text in lower case with exactly one space before every word, as BPE input."""
    return " " + " ".join(text.lower().split()) if text.strip() else ""


def _byte_alphabet() -> dict[str, int]:
    """Returns GPT-2's table {printable character that represents a byte: the byte}."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def train_bpe(text: str, vocab_size: int, cache: Path | None) -> BpeTokenizer:
    """Trains a byte-level BPE on `text`, or loads it from `cache` by a hash of its inputs."""
    if vocab_size < 256:
        raise UserError(f"task.bpe_vocab_size={vocab_size} must be at least 256, one per byte.")
    return _train(text.splitlines(keepends=True), vocab_size, cache, f"{vocab_size}\n{text}")


def train_sentence_bpe(
    sentences: Sequence[str], vocab_size: int, cache: Path | None
) -> SentenceTokenizer:
    """Trains a tokenizer of `vocab_size` tokens, or fewer if the sentences do not yield as many.

    Cached in `cache` under a hash of the inputs.
    """
    if vocab_size < 256 + WORDS:
        raise UserError(
            f"task.bpe_vocab_size={vocab_size} must be at least {256 + WORDS}: one per byte and "
            f"{', '.join(SentenceTokenizer.SPECIAL)}."
        )
    lines = [" " + sentence for sentence in sentences]
    size = vocab_size - WORDS
    inputs = "\n".join(["sentences", str(size), *lines])
    return SentenceTokenizer(_train(lines, size, cache, inputs))


def _train(lines: list[str], vocab_size: int, cache: Path | None, inputs: str) -> BpeTokenizer:
    """Trains a BPE on `lines`, cached in `cache` under a hash of the string `inputs`."""
    digest = hashlib.sha256(inputs.encode()).hexdigest()[:16]
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
    bpe.train_from_iterator(lines, trainer)
    if path:
        # The cache only saves time, so ignore a disk that cannot be written.
        with contextlib.suppress(OSError):
            write_text(path, bpe.to_str())
    return BpeTokenizer(bpe)


def make_tokenizer(kind: str, text: str, vocab_size: int, cache: Path | None) -> Tokenizer:
    """Returns the tokenizer that `task.tokenizer` names, made from the training text.

    For "char", `text` is the whole corpus, so that validation has no unknown character.
    """
    check_name("task.tokenizer", kind, ("char", "bpe"))
    if kind == "char":
        return CharTokenizer("".join(sorted(set(text))))
    return train_bpe(text, vocab_size, cache)


def make_sentence_tokenizer(
    kind: str, sentences: Sequence[str], others: Sequence[str], vocab_size: int, cache: Path | None
) -> SentenceTokenizer:
    """Returns the sentence tokenizer that `task.tokenizer` names.

    Args:
      kind: char, word or bpe.
      sentences: training sentences; a BPE is trained on them.
      others: other sentences, whose characters or words must be in the vocabulary too.
      vocab_size: vocabulary size of a BPE.
      cache: see `train_sentence_bpe`.
    """
    check_name("task.tokenizer", kind, ("char", "word", "bpe"))
    everything = [*sentences, *others]
    if kind == "char":
        alphabet = {" "}.union(*everything)
        return SentenceTokenizer(CharTokenizer("".join(sorted(alphabet))))
    if kind == "word":
        words = {word for sentence in everything for word in sentence.split()}
        return SentenceTokenizer(WordTokenizer(sorted(words)))
    return train_sentence_bpe(sentences, vocab_size, cache)


def make_open_tokenizer(
    kind: str, texts: Sequence[str], min_count: int, vocab_size: int, cache: Path | None
) -> OpenTokenizer:
    """Returns the tokenizer that `task.tokenizer` names, made from the training texts.

    Args:
      kind: word or bpe.
      texts: training texts.
      min_count: minimum number of occurrences of a word in the vocabulary.
      vocab_size: vocabulary size of a BPE, including special tokens.
      cache: see `train_bpe`.
    """
    check_name("task.tokenizer", kind, ("word", "bpe"))
    if kind == "word":
        counts = Counter(_plain(word) for text in texts for word in split_words(text))
        words = sorted(word for word, count in counts.items() if count >= min_count)
        return OpenTokenizer(WordTokenizer(words))
    special = len(OpenTokenizer.SPECIAL)
    if vocab_size < 256 + special:
        raise UserError(
            f"task.bpe_vocab_size={vocab_size} must be at least {256 + special}: one per byte and "
            f"{', '.join(OpenTokenizer.SPECIAL)}."
        )
    lines = [_spaced(text) for text in texts]
    inputs = "\n".join(["open", str(vocab_size), *lines])
    return OpenTokenizer(_train(lines, vocab_size - special, cache, inputs))


def load_tokenizer(run: Path) -> Tokenizer:
    """Loads the tokenizer of a run.

    Raises UserError if the run has none, or if the file is damaged or of another run.
    """
    path = run / FILE
    if not path.is_file():
        raise UserError(f"{run} has no {FILE}: it is not a run of a text task.")
    text = path.read_text(encoding="utf-8", errors="replace")
    recorded = (read_json(run / CORPUS) or {}).get("tokenizer")
    if recorded not in (None, digest_of(text)):
        raise UserError(f"{path} is not the tokenizer that {run} was trained with.")
    try:
        return _from_json(text)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise UserError(f"{path} is damaged: {type(error).__name__}: {error}.") from None


def digest_of(text: str) -> str:
    """Returns the sha256 of a text in UTF-8, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def _from_json(text: str) -> Tokenizer:
    content = json.loads(text)
    shell, _, kind = content["kind"].rpartition("_")
    if kind == "char":
        inner: Tokenizer = CharTokenizer(content["alphabet"])
    elif kind == "word":
        inner = WordTokenizer(content["words"])
    else:
        inner = BpeTokenizer(tokenizers.Tokenizer.from_str(json.dumps(content["tokenizer"])))
    if shell == "open" and not isinstance(inner, CharTokenizer):
        cut = has_marks("".join(content.get("words", ()))) and MARKS not in content
        return OpenTokenizer(inner, split_at_marks if cut else split_words)
    return SentenceTokenizer(inner) if shell else inner
