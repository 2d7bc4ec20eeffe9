"""Classification of texts: the sentiment of sentences, or whatever their labels say.

Texts are padded to a few shapes and live on the device; research/tasks/buckets.py says in which
order they come. In training a token may become the unknown one: the word dropout of Iyyer et al.
2015, "Deep Unordered Composition Rivals Syntactic Methods for Text Classification", with the
unknown token where they leave the word out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key
from ml_collections import ConfigDict

from research.errors import UserError
from research.messages import tell
from research.tasks.buckets import Epochs, assign, choose_bounds, padded_part
from research.tasks.corpora import cache_directory
from research.tasks.task import PAD, UNKNOWN, Batch, word_bins
from research.tasks.text.classification import Classification
from research.tasks.text.encoded_pairs import padded_rows
from research.tasks.text.labelled_text import LabelledCorpus, LabelledTexts, read_labelled
from research.tasks.text.tokenizer import (
    CORPUS,
    FILE,
    OpenTokenizer,
    digest_of,
    make_open_tokenizer,
)

EVALUATION_BUCKETS = 2  # each is compiled for every split
DROPOUT_STREAM = 0xD209
"""Of word dropout, apart from that of the order of the texts."""


class Encoded(NamedTuple):
    """N texts as tokens, and the index of the label of each (N,)."""

    tokens: list[np.ndarray]
    labels: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, (N,)."""
        return np.array([len(t) for t in self.tokens], int)


@dataclass(frozen=True, kw_only=True)
class Sentiment(Classification):
    """The task of this file; the attributes that are not below are those of `Classification`.

    `data` is {split: one mapping for each bucket}, of arrays with a row for each text: "inputs"
    (N, T), "length" (N,) and "label" (N,), int32. Rows of the splits that are evaluated are filled
    up to full batches.

    Attributes:
      tokenizer: of the texts.
      encoded: {split: its texts}, of the evaluation splits in their order.
      bounds: most tokens of each bucket for training.
      texts: number of texts of each bucket for training, at least `batch_size`.
      padding: part of the positions of an epoch that is padding.
      word_dropout: probability of each token to become the unknown one.
      corpus: what is known of the data, for the run to keep.
    """

    options = {
        "path": "tinyshakespeare",
        "tokenizer": "char",
        "bpe_vocab_size": 1024,
        "buckets": 6,
        "min_count": 1,
        "word_dropout": 0.0,
    }
    tokenizer: OpenTokenizer
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
        """Which texts a step has."""
        return Epochs(self.texts, self.batch_size)

    @property
    def tokens(self) -> float:
        positions = sum(p * b for p, b in zip(self.frequencies, self.bounds, strict=True))
        return self.batch_size * positions * (1.0 - self.padding)

    def bucket(self, step: Int[Array, ""]) -> Int[Array, ""]:
        """Returns which bucket the batch of a step is from: the same for every seed."""
        return self.epochs.bucket(step)

    def batch(
        self, data: Any, key: Key[Array, ""], step: int | Int[Array, ""] = 0, bucket: int = 0
    ) -> Batch:
        """Returns the texts of a step, some of their tokens unknown.

        Where `bucket` is not that of the step, it is some batch of that bucket.
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
        """Returns batch `index` of a split's bucket. Rows that fill it up count for nothing."""
        rows = jnp.asarray(index) * self.batch_size + jnp.arange(self.batch_size)
        return {name: array[rows] for name, array in data[split][bucket].items()}

    def evaluation_batches(self, split: str, total: int) -> Sequence[int]:
        """Returns how many batches each bucket of the whole split has, whatever `total` is."""
        return tuple(len(arrays["label"]) // self.batch_size for arrays in self.data[split])

    def examples(self, split: str, total: int) -> int:
        """Returns how many texts a split has."""
        return len(self.encoded[split].labels)

    def example(self, split: str, index: int, total: int) -> Batch:
        """Returns text `index` of a split, in the order of its file."""
        tokens, label = self.encoded[split].tokens[index], self.encoded[split].labels[index]
        found = {"inputs": tokens[None], "length": [len(tokens)], "label": [label]}
        return {name: jnp.asarray(array, jnp.int32) for name, array in found.items()}

    def artifacts(self) -> Mapping[str, str]:
        """Returns the tokenizer, and what is known of the corpus, its labels among it."""
        tokenizer = self.tokenizer.to_json()
        known = {**self.corpus, "tokenizer": digest_of(tokenizer)}
        return {FILE: tokenizer, CORPUS: json.dumps(known, indent=1, ensure_ascii=False) + "\n"}


def encode(tokenizer: OpenTokenizer, texts: LabelledTexts, labels: Sequence[str]) -> Encoded:
    """Returns texts as tokens and the numbers of their labels."""
    number = {label: i for i, label in enumerate(labels)}
    tokens = [tokenizer.encode(text) for text, _ in texts]
    return Encoded(tokens, np.array([number[label] for _, label in texts], np.int32))


def choose_lengths(lengths: np.ndarray, number: int, least: int) -> tuple[int, ...]:
    """Returns the most tokens of at most `number` buckets, each with `least` texts or more."""
    nothing = np.zeros_like(lengths)
    return tuple(bound for bound, _ in choose_bounds(lengths, nothing, number, least))


def in_buckets(encoded: Encoded, bounds: Sequence[int], multiple: int = 1) -> list[dict[str, Any]]:
    """Returns the arrays of `Sentiment.data` of each bucket, filled up to a multiple of rows."""
    bucket = assign(encoded.lengths, np.zeros_like(encoded.lengths), [(b, 0) for b in bounds])
    found = []
    for i, bound in enumerate(bounds):
        rows = np.flatnonzero(bucket == i)
        filler = -len(rows) % multiple
        # What has no token has no mean: a filler has one.
        tokens = [encoded.tokens[r] for r in rows] + [np.array([UNKNOWN], np.int32)] * filler
        found.append(
            {
                "inputs": padded_rows(tokens, bound),
                "length": np.array([len(t) for t in tokens], np.int32),
                "label": np.append(encoded.labels[rows], np.full(filler, -1)).astype(np.int32),
            }
        )
    return found


def _known(config: ConfigDict, corpus: LabelledCorpus, encoded: Mapping, cut: Mapping) -> dict:
    """Returns what is known of the data; `cut` are {split: texts cut}."""
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
    """Returns one line on what `_known` returns."""
    texts = ", ".join(f"{sum(n.values()):,} for {split}" for split, n in known["texts"].items())
    out = f"; {known['left_out_empty']:,} empty ones left out" if known["left_out_empty"] else ""
    cut = sum(known["cut"].values())
    cut_text = f"; {cut:,} cut to {length} tokens" if cut else ""
    return (
        f"{known['path']}: texts: {texts}; {len(known['labels'])} labels{out}{cut_text}; "
        f"{vocabulary:,} tokens, {known['unknown_tokens']['validation']:.1%} of validation unknown"
    )


def _check(config: ConfigDict) -> None:
    if not 0.0 <= config.word_dropout < 1.0:
        raise UserError(f"task.word_dropout={config.word_dropout} must be in [0, 1).")
    if config.min_count < 1:
        raise UserError(f"task.min_count={config.min_count} must be at least 1.")
    if config.tokenizer == "bpe" and config.min_count != 1:
        raise UserError(
            f"task.min_count={config.min_count}: task.tokenizer='bpe' does not read it; leave it 1."
        )
    if config.buckets < 1:
        raise UserError(f"task.buckets={config.buckets} must be at least 1.")


def make_sentiment(config: ConfigDict) -> Sentiment:
    """Returns the task of `config.task`, and says on stderr what the data are.

    Texts of more than `length` tokens are cut. Raises UserError for what does not fit, and for
    unusable files.
    """
    _check(config)
    corpus = read_labelled(config.path)
    tokenizer = make_open_tokenizer(
        config.tokenizer,
        [text for text, _ in corpus.splits["train"]],
        config.min_count,
        config.bpe_vocab_size,
        cache_directory() / "tokenizers",
    )
    encoded = {s: encode(tokenizer, texts, corpus.labels) for s, texts in corpus.splits.items()}
    cut = {split: int((e.lengths > config.length).sum()) for split, e in encoded.items()}
    encoded = {
        s: Encoded([t[: config.length] for t in e.tokens], e.labels) for s, e in encoded.items()
    }
    train = encoded["train"]
    if len(train.labels) < config.batch_size:
        raise UserError(
            f"task.batch_size={config.batch_size} is too large: {config.path} has "
            f"{len(train.labels):,} texts to train on."
        )
    bounds = choose_lengths(train.lengths, config.buckets, config.batch_size)
    data = {"train": in_buckets(train, bounds)}
    for split in encoded.keys() - {"train"}:
        own = choose_lengths(encoded[split].lengths, EVALUATION_BUCKETS, config.batch_size)
        data[split] = in_buckets(encoded[split], own, config.batch_size)
    known = _known(config, corpus, encoded, cut)
    tell(_describe(known, config.length, tokenizer.vocab_size))
    nothing = np.zeros_like(train.lengths)
    return Sentiment(
        length=config.length,
        batch_size=config.batch_size,
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
        padding=padded_part(train.lengths, nothing, [(b, 0) for b in bounds], config.batch_size),
        word_dropout=config.word_dropout,
        corpus=known,
        files=corpus.files,
    )
