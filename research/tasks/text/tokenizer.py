"""Presets of `tokenizers.Tokenizer`: characters, words or byte-level BPE.

All that distinguishes them is in the JSON of the library, which a run keeps as tokenizer.json.
"""

import codecs
import contextlib
import functools
import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from research.errors import UserError
from research.runs.store import read_json, write_text

FILE = "tokenizer.json"
"""File of a run with its tokenizer."""
CORPUS = "corpus.json"
"""File of a run with facts about its data, including the digest of its tokenizer."""

SENTENCE = ("<pad>", "<s>", "</s>")
"""Special tokens of sentences, which are read or written: `PAD`, `BOS`, `EOS` of tasks."""
OPEN = (" <pad>", " <unknown>")
"""Special tokens of texts of an open vocabulary, which are only read: `PAD`, `UNKNOWN` of tasks."""


class Tokenizer:
    """Converts text to token ids and back.

    Special tokens have the first ids in the presets. No text is encoded as one of them, not even
    "</s>".

    With the special tokens `SENTENCE`, encoding adds a space before the first word, so that a word
    has the same tokens at every position, and decoding removes it: decode(encode(text)) equals the
    text, except for runs of spaces if tokens are words.

    Attributes:
      library: the tokenizer of the library.
      kind: what the tokens are, as in `task.tokenizer`: "char", "word" or "bpe".
      special: names of the special tokens: `SENTENCE`, `OPEN` or none.
      vocab_size: number of tokens.
      characters: (V,) float32, number of characters of each token, with the space before a word.
    """

    def __init__(self, library: tokenizers.Tokenizer):
        library.encode_special_tokens = True  # as ordinary text
        library.no_truncation()  # models cut texts themselves, and say so
        library.no_padding()
        self.library = library
        by_character = isinstance(library.pre_tokenizer, pre_tokenizers.FixedLength)
        # A Unigram of another project has pieces of words like a BPE.
        is_bpe = isinstance(library.model, (models.BPE, models.Unigram))
        self.kind = "bpe" if is_bpe else "char" if by_character else "word"
        added = library.get_added_tokens_decoder()
        self._named = {token: added[token].content for token in sorted(added)}
        self.special = tuple(self._named.values())
        self._ids = library.get_vocab()
        self.vocab_size = max(self._ids.values(), default=-1) + 1
        # A token may contain only part of a character, so count the bytes that start one in UTF-8.
        self.characters = np.array(
            [
                0 if t in self._named else sum(b & 0xC0 != 0x80 for b in self._bytes(t))
                for t in range(self.vocab_size)
            ],
            np.float32,
        )
        self._before = " " if self.special == SENTENCE else ""

    def encode(self, text: str) -> np.ndarray:
        """Returns int32 tokens, without special ones except for unknown words if `OPEN`.

        Raises UserError for a word or character outside the vocabulary if not `OPEN`.
        """
        return self.encode_all([text])[0]

    def encode_start(self, text: str) -> np.ndarray:
        """Returns int32 tokens of a text that nothing comes before: `around[0]`, then the text."""
        return np.concatenate([np.array(self.around[0], np.int32), self.encode(text)])

    @functools.cached_property
    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The special tokens before and after a text, such as Llama's first token; none of ours.

        Tokenizers of other libraries put them there by their post-processor.
        """
        if self.library.post_processor is None:
            return (), ()
        words = (word for word, i in sorted(self._ids.items()) if i not in self._named)
        found = self.library.encode([next(words, "")], is_pretokenized=True)
        text = [i for i, one in enumerate(found.special_tokens_mask) if not one]
        if not text:
            return tuple(found.ids), ()
        return tuple(found.ids[: text[0]]), tuple(found.ids[text[-1] + 1 :])

    def encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes each text; much faster than calling `encode` on each."""
        texts = [self._before + text for text in texts]
        try:
            if self.kind == "char":
                # The library takes 25 times as long, and 400 bytes of memory for each character.
                return [
                    np.fromiter((self._ids[c] for c in text), np.int32, len(text)) for text in texts
                ]
            return [
                np.array(e.ids, np.int32)
                for e in self.library.encode_batch_fast(texts, add_special_tokens=False)
            ]
        except Exception:  # the library raises nothing more specific
            unknown = {part for text in texts for part in self.parts(text)} - self._ids.keys()
            if not unknown:
                raise
            what = "words" if self.kind == "word" else "characters"
            raise UserError(
                f"the text has {what} that the model never saw: "
                f"{sorted(part.strip() or part for part in unknown)[:10]}."
            ) from None

    def decode(self, tokens: Sequence[int], text_only: bool = False) -> str:
        """Returns the text of tokens; special ones are named unless `SENTENCE` or `text_only`."""
        left_out = text_only or self.special == SENTENCE
        return self.library.decode(list(tokens), skip_special_tokens=left_out)

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Returns the text of each token, with the space before a word; names of special ones.

        A character that is split over several tokens belongs to the last of them.
        """
        bytes_of = [self._bytes(t) for t in tokens if t not in self._named]
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        last = len(bytes_of) - 1
        texts = iter([decoder.decode(b, final=i == last) for i, b in enumerate(bytes_of)])
        return [self._named[t] if t in self._named else next(texts) for t in tokens]

    def split(self, text: str) -> list[str]:
        """Returns the piece of text behind each token of `encode`; words as they are written."""
        if self.kind != "word":
            return self.pieces(self.encode(text).tolist())
        found = self.library.encode(text, add_special_tokens=False)
        return [text[start:end] for start, end in found.offsets]

    def parts(self, text: str) -> list[str]:
        """Returns the words (with a space before each) or characters of a text, normalized."""
        if self.library.normalizer:
            text = self.library.normalizer.normalize_str(text)
        return [part for part, _ in self.library.pre_tokenizer.pre_tokenize_str(text)]

    def to_json(self) -> str:
        return self.library.to_str()

    def _bytes(self, token: int) -> bytes:
        text = self.library.id_to_token(token) or ""
        if self.kind == "bpe" and _BYTE_OF.keys() >= set(text):
            return bytes(_BYTE_OF[c] for c in text)
        # As SentencePiece writes a space, in tokenizers that are not of this project.
        return text.replace("\u2581", " ").encode() if self.kind == "bpe" else text.encode()


def _byte_alphabet() -> dict[str, int]:
    """Returns GPT-2's table {printable character that represents a byte: the byte}."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()

# Python's white space, for the library, whose \s lacks four control characters.
_SPACES = Regex(r"[\s\x1c-\x1f]+")
# Lowercase makes a σ of every Σ; at the end of a word it is ς, as for str.lower.
_LOWERCASE = (
    normalizers.Replace(
        Regex(r"(?<=\p{Cased}\p{Case_Ignorable}*)Σ(?!\p{Case_Ignorable}*\p{Cased})"), "ς"
    ),
    normalizers.Lowercase(),
)
_OPEN_WORDS = normalizers.Sequence([normalizers.Replace("’", "'"), *_LOWERCASE])
_OPEN_BPE = normalizers.Sequence(
    [
        *_LOWERCASE,
        normalizers.Replace(_SPACES, " "),
        normalizers.Strip(),
        normalizers.Prepend(" "),  # not to an empty text
    ]
)


def _word_pattern(letter: str, inside: str, other: str) -> str:
    """Returns the pattern of words: runs of letters, digits and "_"; any other single character.

    English contractions are split as in the Penn Treebank (do n't, it 's).
    """
    return (
        rf"(?i){letter}{inside}*(?=n['’]t\b)|n['’]t\b|['’](?:s|m|d|ll|re|ve)\b"
        rf"|{letter}{inside}*|{other}"
    )


# A combining mark belongs to the character before it (\w includes marks in this engine, unlike in
# Python's), so words in Hindi, Tamil or pointed Arabic stay whole, as do those with zero-width
# joiners. In a script without spaces (Chinese, Thai), a word is everything between spaces or
# punctuation.
_WORD = _word_pattern(r"[\w\p{N}]", r"[\w\p{N}\x{200c}\x{200d}]", r"[^\w\p{N}\s]\p{M}*")
_WORD_CUT_AT_MARKS = _word_pattern(r"[\p{L}\p{N}_]", r"[\p{L}\p{N}_]", r"[^\p{L}\p{N}_\s]")


def _preset(
    model: models.Model,
    special: Sequence[str],
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    normalizer: normalizers.Normalizer | None = None,
) -> Tokenizer:
    """Returns the tokenizer with these components of the library.

    With special tokens, decoding removes a space at the beginning.
    """
    library = tokenizers.Tokenizer(model)
    library.add_special_tokens(list(special))
    library.pre_tokenizer = pre_tokenizer
    if normalizer:
        library.normalizer = normalizer
    join = decoders.ByteLevel() if isinstance(model, models.BPE) else decoders.Fuse()
    library.decoder = decoders.Sequence([join, decoders.Strip(" ", 1, 0)]) if special else join
    return Tokenizer(library)


def _words(pattern: Regex, invert: bool) -> pre_tokenizers.PreTokenizer:
    """Returns a pre-tokenizer that puts a space before each word.

    Words are what `pattern` matches if `invert`, else what is between its matches.
    """
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, "removed", invert),
            pre_tokenizers.Metaspace(" ", prepend_scheme="always", split=False),
        ]
    )


def _word_level(tokens: Sequence[str], special: Sequence[str]) -> models.WordLevel:
    vocabulary = {token: i for i, token in enumerate([*special, *tokens])}
    # No token is "<unk>": without a token for unknown words, the library raises.
    return models.WordLevel(vocabulary, unk_token=OPEN[1] if special == OPEN else "<unk>")


def characters(alphabet: str, special: Sequence[str] = ()) -> Tokenizer:
    """Returns a tokenizer with one token for each character of `alphabet` (as in nanoGPT)."""
    return _preset(_word_level(alphabet, special), special, pre_tokenizers.FixedLength(1))


def sentence_words(words: Sequence[str]) -> Tokenizer:
    """Returns a tokenizer with one token for each word; words are separated by white space."""
    model = _word_level([" " + word for word in words], SENTENCE)
    return _preset(model, SENTENCE, _words(_SPACES, invert=False))


def open_words(words: Sequence[str], pattern: str = _WORD) -> Tokenizer:
    """Returns a tokenizer of words of lower case; others than `words` are `UNKNOWN`.

    Words are runs of letters, digits and "_"; any other character is a separate word. English
    contractions are split as in the Penn Treebank (do n't, it 's).
    """
    model = _word_level([" " + word for word in words], OPEN)
    return _preset(model, OPEN, _words(Regex(pattern), invert=True), _OPEN_WORDS)


def byte_pairs(trained: tokenizers.Tokenizer, special: Sequence[str] = ()) -> Tokenizer:
    """Returns a byte-level BPE (Sennrich 2016; bytes as in GPT-2), which can encode any text.

    With the special tokens `OPEN`, texts become lower case with one space before every word. A BPE
    never needs `UNKNOWN` for encoding, but word dropout and attributions use it as a neutral
    replacement.

    Args:
      trained: a trained BPE without special tokens.
      special: `SENTENCE`, `OPEN` or none.
    """
    model = json.loads(trained.to_str())["model"]
    vocabulary = {token: i for i, token in enumerate(special)}
    vocabulary |= {token: i + len(special) for token, i in model["vocab"].items()}
    return _preset(
        models.BPE(vocabulary, [tuple(pair) for pair in model["merges"]]),
        special,
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        _OPEN_BPE if special == OPEN else None,
    )


def make_tokenizer(
    kind: str,
    texts: Sequence[str],
    special: Sequence[str] = (),
    *,
    others: Sequence[str] = (),
    min_count: int = 1,
    vocab_size: int = 0,
    cache: Path | None = None,
) -> Tokenizer:
    """Returns the tokenizer that `task.tokenizer` names, made from the training texts.

    Args:
      kind: char, word or bpe.
      texts: training texts.
      special: `SENTENCE`, `OPEN` or none.
      others: other texts, whose characters or words must be in the vocabulary too, if not `OPEN`.
      min_count: minimum number of occurrences of a word in the vocabulary, if `OPEN`.
      vocab_size: number of tokens of a BPE, which has fewer if the texts do not yield as many.
      cache: directory that keeps trained BPEs under a hash of their inputs.

    Raises UserError for a BPE that is smaller than the bytes.
    """
    if kind == "bpe":
        return _train_bpe(texts, vocab_size, special, cache)
    if kind == "word" and special == OPEN:
        parts = open_words([]).parts
        counts = Counter(part for text in texts for part in parts(text))
        return open_words(sorted(p[1:] for p, count in counts.items() if count >= min_count))
    if kind == "word":
        return sentence_words(sorted({w for text in (*texts, *others) for w in text.split()}))
    always = {" "} if special == SENTENCE else set()
    return characters("".join(sorted(always.union(*texts, *others))), special)


def _train_bpe(
    texts: Sequence[str], vocab_size: int, special: Sequence[str], cache: Path | None
) -> Tokenizer:
    size = vocab_size - len(special)
    if size < 256:
        reserved = ", ".join(["one per byte", *(name.strip() for name in special)])
        raise UserError(
            f"task.bpe_vocab_size={vocab_size} must be at least {256 + len(special)}: {reserved}."
        )
    lines = [line for text in texts for line in _lines(text, special)]
    inputs = "\n".join([*special, str(size), *lines])
    digest = hashlib.sha256(inputs.encode()).hexdigest()[:16]
    path = cache / f"bpe-{size}-{digest}.json" if cache else None
    if path and path.is_file():
        return byte_pairs(tokenizers.Tokenizer.from_file(str(path)), special)
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(lines, trainer)
    if path:
        # The cache only saves time, so ignore a disk that cannot be written.
        with contextlib.suppress(OSError):
            write_text(path, bpe.to_str())
    return byte_pairs(bpe, special)


def _lines(text: str, special: Sequence[str]) -> list[str]:
    """Returns the text as a BPE will read it; the lines of one without special tokens."""
    if special == SENTENCE:
        return [" " + text]
    return [_OPEN_BPE.normalize_str(text)] if special == OPEN else text.splitlines(keepends=True)


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
        return from_json(text)
    except Exception as error:  # the library raises nothing more specific
        raise UserError(f"{path} is damaged: {type(error).__name__}: {error}.") from None


def digest_of(text: str) -> str:
    """Returns the sha256 of a text in UTF-8, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def from_json(text: str) -> Tokenizer:
    """Returns the tokenizer of a FILE; runs of before kept only what goes into a preset."""
    content = json.loads(text)
    if "kind" not in content:
        return Tokenizer(tokenizers.Tokenizer.from_str(text))
    use, _, kind = content["kind"].rpartition("_")
    special = {"": (), "sentence": SENTENCE, "open": OPEN}[use]
    if kind == "char":
        return characters(content["alphabet"], special)
    if kind == "bpe":
        trained = tokenizers.Tokenizer.from_str(json.dumps(content["tokenizer"]))
        return byte_pairs(trained, special)
    words = content["words"]
    if use == "sentence":
        return sentence_words(words)
    has_marks = any(unicodedata.category(c)[0] == "M" for c in "".join(words))
    cut = has_marks and "marks_in_words" not in content
    return open_words(words, _WORD_CUT_AT_MARKS if cut else _WORD)
