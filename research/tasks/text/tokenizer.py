"""Text to token numbers and back: characters, words, or byte-level BPE."""

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
"""Name under which a run keeps its tokenizer."""
CORPUS = "corpus.json"
"""Name under which a run keeps what is known of its data, the digest of its tokenizer included."""
MARKS = "marks_in_words"
"""Key of FILE where words keep their combining marks; vocabularies of before cut them off."""


class Tokenizer(Protocol):
    """Text to token numbers and back.

    Attributes:
      vocab_size: number of tokens.
      characters: (V,) float32, how many characters each token stands for.
    """

    vocab_size: int
    characters: np.ndarray

    def encode(self, text: str) -> np.ndarray: ...
    def decode(self, tokens: list[int]) -> str: ...
    def pieces(self, tokens: list[int]) -> list[str]: ...
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

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(self.alphabet[t] for t in tokens)

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Returns the text of each token."""
        return [self.alphabet[t] for t in tokens]

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

    def decode(self, tokens: Sequence[int]) -> str:
        return self.bpe.decode(list(tokens))

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Returns the text of each token; joined they are `decode(tokens)`.

        A character that is spread over tokens belongs to the last of them.
        """
        bytes_of = [bytes(_BYTE_OF[c] for c in self.bpe.id_to_token(t) or "") for t in tokens]
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        last = len(bytes_of) - 1
        return [decoder.decode(b, final=i == last) for i, b in enumerate(bytes_of)]

    def to_json(self) -> str:
        return json.dumps({"kind": "bpe", "tokenizer": json.loads(self.bpe.to_str())})


class WordTokenizer:
    """One token per distinct word, in code point order; words are what spaces part."""

    def __init__(self, words: Sequence[str]):
        self.words = list(words)
        self.vocab_size = len(self.words)
        # The space before a word counts as a character of it.
        self.characters = np.array([len(word) + 1 for word in self.words], np.float32)
        self._number = {word: i for i, word in enumerate(self.words)}

    def encode(self, text: str) -> np.ndarray:
        """Returns int32 tokens. Raises UserError for a word the model never saw."""
        words = text.split()
        unknown = sorted(set(words) - self._number.keys())
        if unknown:
            raise UserError(f"the text has words that the model never saw: {unknown[:10]}.")
        return np.fromiter((self._number[word] for word in words), np.int32, len(words))

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(self.pieces(tokens))

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Returns the text of each token, with the space before it."""
        return [" " + self.words[t] for t in tokens]

    def to_json(self) -> str:
        return json.dumps({"kind": "word", "words": self.words}, ensure_ascii=False)


class SentenceTokenizer:
    """Tokens of sentences; 0, 1, 2 are `SPECIAL` (`PAD`, `BOS`, `EOS` of tasks).

    No text is encoded as one of those, be it "</s>" itself. A space is put before the first word,
    so that a word has the same tokens wherever it stands, and is taken away again:
    decode(encode(text)) is the text, but for runs of spaces where tokens are words.
    """

    SPECIAL = ("<pad>", "<s>", "</s>")

    def __init__(self, inner: Tokenizer):
        self.inner = inner
        self.vocab_size = WORDS + inner.vocab_size
        # The space before the first word counts as a character.
        self.characters = np.concatenate([np.zeros(WORDS, np.float32), inner.characters])

    def encode(self, text: str) -> np.ndarray:
        """Returns int32 tokens, without those of `SPECIAL`."""
        return self.inner.encode(" " + text) + WORDS

    def encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns `encode` of each text, BPE in a fraction of the time."""
        if not isinstance(self.inner, BpeTokenizer):
            return [self.encode(text) for text in texts]
        encoded = self.inner.bpe.encode_batch_fast([" " + text for text in texts])
        return [np.array(e.ids, np.int32) + WORDS for e in encoded]

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens; those of `SPECIAL` are left out."""
        return self.inner.decode([t - WORDS for t in tokens if t >= WORDS]).removeprefix(" ")

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Returns the text of each token, with the space before a word; see BpeTokenizer.pieces.

        Tokens of `SPECIAL` show their names.
        """
        words = iter(self.inner.pieces([t - WORDS for t in tokens if t >= WORDS]))
        return [next(words) if t >= WORDS else self.SPECIAL[t] for t in tokens]

    def to_json(self) -> str:
        content = json.loads(self.inner.to_json())
        return json.dumps(content | {"kind": f"sentence_{content['kind']}"}, ensure_ascii=False)


class OpenTokenizer:
    """Tokens of texts that are read and not written; 0, 1 are `SPECIAL` (`PAD`, `UNKNOWN`).

    Texts are in lower case. Words are runs of letters and digits, each other character is a word of
    its own, and English contractions are parted as in the Penn Treebank (do n't, it 's), see
    `split_words`; a word that the vocabulary does not have is `UNKNOWN`. Pieces of a BPE need no
    such token, but what is replaced by a token that says nothing does.
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
        """Returns int32 tokens; there are none of an empty text alone."""
        if isinstance(self.inner, BpeTokenizer):
            return self.inner.encode(_spaced(text)) + len(self.SPECIAL)
        words = self._words_of(text)
        return np.array([self._number.get(_plain(w), UNKNOWN) for w in words], np.int32)

    def split(self, text: str) -> list[str]:
        """Returns the part of the text that each token of `encode` stands for."""
        if isinstance(self.inner, BpeTokenizer):
            return self.inner.pieces(self.inner.encode(_spaced(text)).tolist())
        return self._words_of(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens, `SPECIAL` ones by their names."""
        return "".join(self.pieces(tokens)).removeprefix(" ")

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Returns the text of each token, with the space before a word; `SPECIAL` their names."""
        first = len(self.SPECIAL)
        words = iter(self.inner.pieces([t - first for t in tokens if t >= first]))
        return [next(words) if t >= first else f" {self.SPECIAL[t]}" for t in tokens]

    def to_json(self) -> str:
        content = json.loads(self.inner.to_json())
        if self._words_of is split_words and has_marks("".join(content.get("words", ()))):
            content[MARKS] = True  # said only where it matters: other files are what they were
        return json.dumps(content | {"kind": f"open_{content['kind']}"}, ensure_ascii=False)


def _plain(word: str) -> str:
    return word.lower().replace("’", "'")


def _spaced(text: str) -> str:
    """Returns the text that a BPE reads: every word has a space before it, the first too."""
    return " " + " ".join(text.lower().split()) if text.strip() else ""


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
    return _train(text.splitlines(keepends=True), vocab_size, cache, f"{vocab_size}\n{text}")


def train_sentence_bpe(
    sentences: Sequence[str], vocab_size: int, cache: Path | None
) -> SentenceTokenizer:
    """Returns a tokenizer of `vocab_size` tokens or, if the sentences have no more, fewer.

    It is kept in `cache` under a hash of its inputs.
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
    """Returns a BPE trained on `lines`, kept in `cache` under a hash of the string `inputs`."""
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


def make_sentence_tokenizer(
    kind: str, sentences: Sequence[str], others: Sequence[str], vocab_size: int, cache: Path | None
) -> SentenceTokenizer:
    """Returns the tokenizer of sentences that `task.tokenizer` names.

    Args:
      kind: char, word or bpe.
      sentences: for training; a BPE is trained on them.
      others: whose characters or words it has to know, too.
      vocab_size: of a BPE.
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
      texts: for training.
      min_count: how often a word must occur to be in the vocabulary.
      vocab_size: of a BPE, `SPECIAL` included.
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
    """Returns the tokenizer of a run.

    Raises UserError when the run keeps none, or one that is damaged or not its own.
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
    except Exception as error:  # what tokenizers raises has no type of its own
        raise UserError(f"{path} is damaged: {type(error).__name__}: {error}.") from None


def digest_of(text: str) -> str:
    """Returns the sha256 of a text, hexadecimal."""
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
