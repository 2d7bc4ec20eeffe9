"""Text classification: the sentiment of sentences, or any other labels.

Texts are padded to a few shapes and kept on the device; research/tasks/buckets.py determines their
order. Word dropout in training replaces tokens by the unknown token, where Iyyer et al. 2015, "Deep
Unordered Composition Rivals Syntactic Methods for Text Classification", delete the word.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from research.errors import UserError
from research.messages import tell
from research.options import option
from research.tasks.bins import word_bins
from research.tasks.buckets import Epochs, assign, choose_bounds, padded_part
from research.tasks.classification import Classification
from research.tasks.corpora import cache_directory
from research.tasks.options import TaskOptions
from research.tasks.task import (
    PAD,
    UNKNOWN,
    Batch,
)
from research.tasks.text.encoded_pairs import padded_rows
from research.tasks.text.labelled_text import LabelledCorpus, LabelledTexts, read_labelled
from research.tasks.text.tokenizer import (
    CORPUS,
    FILE,
    OPEN,
    Tokenizer,
    digest_of,
    make_tokenizer,
)

EVALUATION_BUCKETS = 2  # few, because each one is compiled for every split
DROPOUT_STREAM = 0xD209
"""Random stream of word dropout, separate from that of the order of the texts."""


class Encoded(NamedTuple):
    """N texts as tokens, and their label indices (N,)."""

    tokens: list[np.ndarray]
    labels: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each text, (N,)."""
        return np.array([len(t) for t in self.tokens], int)


@dataclass(frozen=True, kw_only=True)
class Sentiment(Classification):
    """The text classification task; the attributes not listed here are those of `Classification`.

    `data` is {split: a mapping for each bucket} of arrays with a row per text: "inputs" (N, T),
    "length" (N,) and "label" (N,), int32. Evaluation splits have filler rows to complete the last
    batch.

    Attributes:
      tokenizer: tokenizer of the texts.
      encoded: {evaluation split: its texts, in the order of the file}.
      bounds: maximum tokens in each training bucket.
      texts: number of texts in each training bucket, at least `batch_size`.
      padding: fraction of the positions in an epoch that are padding.
      word_dropout: probability that a token is replaced by the unknown token.
      corpus: facts about the data, written to corpus.json of the run.
    """

    tokenizer: Tokenizer
    encoded: Mapping[str, Encoded]
    bounds: tuple[int, ...]
    texts: tuple[int, ...]
    padding: float
    word_dropout: float
    corpus: Mapping[str, Any] = field(default_factory=dict)
    frequencies: Sequence[float] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "frequencies", self.epochs.frequencies)

    @property
    def epochs(self) -> Epochs:
        """Assignment of texts to steps."""
        return Epochs(self.texts, self.batch_size)

    @property
    def tokens(self) -> float:
        positions = sum(p * b for p, b in zip(self.frequencies, self.bounds, strict=True))
        return self.batch_size * positions * (1.0 - self.padding)

    def bucket(self, step: Int[Array, ""]) -> Int[Array, ""]:
        """Returns the bucket of a step's batch; it does not depend on the seed."""
        return self.epochs.bucket(step)

    def batch(
        self, data: Any, key: Key[Array, ""], step: int | Int[Array, ""] = 0, bucket: int = 0
    ) -> Batch:
        """Returns the texts of a step, with word dropout applied.

        If `bucket` is not the step's bucket, the result is some valid batch of `bucket`.
        """
        rows = self.epochs.rows(key, step, bucket)
        found = {name: array[rows] for name, array in data["train"][bucket].items()}
        if self.word_dropout:
            key = jax.random.fold_in(jax.random.fold_in(key, DROPOUT_STREAM), step)
            dropped = jax.random.bernoulli(key, self.word_dropout, found["inputs"].shape)
            dropped &= found["inputs"] != PAD
            found["inputs"] = jnp.where(dropped, UNKNOWN, found["inputs"])
        return found

    def evaluation(
        self, data: Any, split: str, index: Int[Array, ""], total: int, bucket: int = 0
    ) -> Batch:
        """Returns batch `index` of a split's bucket; metrics ignore its filler rows."""
        rows = jnp.asarray(index) * self.batch_size + jnp.arange(self.batch_size)
        return {name: array[rows] for name, array in data[split][bucket].items()}

    def evaluation_batches(self, split: str, total: int) -> Sequence[int]:
        """Returns the number of batches in each bucket of the whole split; ignores `total`."""
        return tuple(len(arrays["label"]) // self.batch_size for arrays in self.data[split])

    def examples(self, split: str, total: int) -> int:
        """Returns the number of texts in a split."""
        return len(self.encoded[split].labels)

    def example(self, split: str, index: int, total: int) -> Batch:
        """Returns text `index` of a split, in the order of its file."""
        tokens, label = self.encoded[split].tokens[index], self.encoded[split].labels[index]
        found = {"inputs": tokens[None], "length": [len(tokens)], "label": [label]}
        return {name: jnp.asarray(array, jnp.int32) for name, array in found.items()}

    def artifacts(self) -> Mapping[str, str]:
        """Returns the files of the tokenizer and of the facts about the corpus, such as labels."""
        tokenizer = self.tokenizer.to_json()
        known = {**self.corpus, "tokenizer": digest_of(tokenizer)}
        return {FILE: tokenizer, CORPUS: json.dumps(known, indent=1, ensure_ascii=False) + "\n"}


def encode(tokenizer: Tokenizer, texts: LabelledTexts, labels: Sequence[str]) -> Encoded:
    """Encodes texts as tokens, and labels as their indices in `labels`."""
    number = {label: i for i, label in enumerate(labels)}
    tokens = [tokenizer.encode(text) for text, _ in texts]
    return Encoded(tokens, np.array([number[label] for _, label in texts], np.int32))


def choose_lengths(lengths: np.ndarray, number: int, least: int) -> tuple[int, ...]:
    """Returns the maximum lengths of at most `number` buckets with at least `least` texts each."""
    nothing = np.zeros_like(lengths)
    return tuple(bound for bound, _ in choose_bounds(lengths, nothing, number, least))


def in_buckets(encoded: Encoded, bounds: Sequence[int], multiple: int = 1) -> list[dict[str, Any]]:
    """Returns `Sentiment.data` of one split, with filler rows up to a multiple of `multiple`."""
    bucket = assign(encoded.lengths, np.zeros_like(encoded.lengths), [(b, 0) for b in bounds])
    found = []
    for i, bound in enumerate(bounds):
        rows = np.flatnonzero(bucket == i)
        filler = -len(rows) % multiple
        # A filler has one token, because pooling over an empty sequence would be 0 / 0.
        tokens = [encoded.tokens[r] for r in rows] + [np.array([UNKNOWN], np.int32)] * filler
        found.append(
            {
                "inputs": padded_rows(tokens, bound),
                "length": np.array([len(t) for t in tokens], np.int32),
                "label": np.append(encoded.labels[rows], np.full(filler, -1)).astype(np.int32),
            }
        )
    return found


def _known(
    config: "SentimentOptions", corpus: LabelledCorpus, encoded: Mapping, cut: Mapping
) -> dict:
    """Returns the content of corpus.json; `cut` is {split: number of cut texts}."""
    unknown = {
        split: float(np.mean(np.concatenate(e.tokens) == UNKNOWN)) for split, e in encoded.items()
    }
    return {
        "path": config.path,
        "labels": list(corpus.labels),
        "texts": {
            split: {label: int((e.labels == i).sum()) for i, label in enumerate(corpus.labels)}
            for split, e in encoded.items()
        },
        "unknown_tokens": unknown,
        "left_out_empty": corpus.left_out,
        "cut": dict(cut),
    }


def _describe(known: Mapping[str, Any], length: int, vocabulary: int) -> str:
    """Returns a one-line summary of what `_known` returns."""
    texts = ", ".join(f"{sum(n.values()):,} for {split}" for split, n in known["texts"].items())
    out = f"; {known['left_out_empty']:,} empty ones left out" if known["left_out_empty"] else ""
    cut = sum(known["cut"].values())
    cut_text = f"; {cut:,} cut to {length} tokens" if cut else ""
    return (
        f"{known['path']}: texts: {texts}; {len(known['labels'])} labels{out}{cut_text}; "
        f"{vocabulary:,} tokens, {known['unknown_tokens']['validation']:.1%} of validation unknown"
    )


@dataclass(frozen=True, kw_only=True)
class SentimentOptions(TaskOptions):
    """Texts into classes: the sentiment of sentences, or whatever their labels say."""

    task = Sentiment
    path: str = option(
        "sst2",
        'a known corpus, one file or a pattern "x/{split}.tsv", with a text, a tab and '
        "a label in each line",
    )
    tokenizer: str = option(
        "word", "tokens: lower-case words, or byte-level BPE", allowed=("word", "bpe")
    )
    bpe_vocab_size: int = option(
        1024,
        "vocabulary size of the BPE, which is trained on the training split",
        when={"tokenizer": ("bpe",)},
    )
    min_count: int = option(
        1,
        "minimum number of occurrences in the training split of a word in the vocabulary",
        when={"tokenizer": ("word",)},
        least=1,
    )
    buckets: int = option(
        6, "number of batch shapes; more shapes mean less padding and more compilation", least=1
    )
    word_dropout: float = option(
        0.0,
        "probability that a token is replaced by the unknown token in training",
        least=0,
        below=1,
    )

    def make(self) -> Sentiment:
        """Returns the task, and summarizes the data on stderr.

        Texts of more than `length` tokens are cut. Raises UserError for inconsistent options and
        unusable files.
        """
        corpus = read_labelled(self.path)
        tokenizer = make_tokenizer(
            self.tokenizer,
            [text for text, _ in corpus.splits["train"]],
            OPEN,
            min_count=self.min_count,
            vocab_size=self.bpe_vocab_size,
            cache=cache_directory() / "tokenizers",
        )
        encoded = {s: encode(tokenizer, texts, corpus.labels) for s, texts in corpus.splits.items()}
        cut = {split: int((e.lengths > self.length).sum()) for split, e in encoded.items()}
        encoded = {
            s: Encoded([t[: self.length] for t in e.tokens], e.labels) for s, e in encoded.items()
        }
        train = encoded["train"]
        if len(train.labels) < self.batch_size:
            raise UserError(
                f"task.batch_size={self.batch_size} is too large: {self.path} has "
                f"{len(train.labels):,} texts to train on."
            )
        bounds = choose_lengths(train.lengths, self.buckets, self.batch_size)
        data = {"train": in_buckets(train, bounds)}
        for split in encoded.keys() - {"train"}:
            own = choose_lengths(encoded[split].lengths, EVALUATION_BUCKETS, self.batch_size)
            data[split] = in_buckets(encoded[split], own, self.batch_size)
        known = _known(self, corpus, encoded, cut)
        tell(_describe(known, self.length, tokenizer.vocab_size))
        nothing = np.zeros_like(train.lengths)
        return Sentiment(
            length=self.length,
            batch_size=self.batch_size,
            classes=len(corpus.labels),
            labels=corpus.labels,
            vocab_size=tokenizer.vocab_size,
            length_bins=word_bins([e.lengths for s, e in encoded.items() if s != "train"]),
            data=jax.device_put(data),
            splits=tuple(s for s in encoded if s != "train"),
            tokenizer=tokenizer,
            encoded={s: e for s, e in encoded.items() if s != "train"},
            bounds=bounds,
            texts=tuple(len(arrays["label"]) for arrays in data["train"]),
            padding=padded_part(train.lengths, nothing, [(b, 0) for b in bounds], self.batch_size),
            word_dropout=self.word_dropout,
            corpus=known,
            files=corpus.files,
        )
