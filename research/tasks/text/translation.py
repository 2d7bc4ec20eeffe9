"""Sentence translation with a vocabulary shared by both languages.

Byte-level BPE is trained on both sides of the training split together (Sennrich et al. 2016,
"Neural Machine Translation of Rare Words with Subword Units", 3.2: joint BPE). Pairs are padded to
a few shapes and kept on the device; research/tasks/buckets.py determines their order.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from research.attention.parts.masks import LONGEST
from research.errors import UserError
from research.messages import tell
from research.options import option
from research.tasks.bins import bin_index, bin_label, word_bins
from research.tasks.buckets import Bounds, Epochs, assign, choose_bounds, padded_part
from research.tasks.corpora import cache_directory
from research.tasks.options import TaskOptions
from research.tasks.task import (
    BOS,
    EOS,
    FRACTION,
    PAD,
    Batch,
    Scored,
    Sums,
    Task,
    TokenOutputs,
    cross_entropy,
    log_normalizer,
    mean_logit,
    predicted_tokens,
    sliced,
)
from research.tasks.text.encoded_pairs import (
    Encoded,
    encode,
    in_buckets,
    padded_arrays,
    take_pairs,
    truncate,
)
from research.tasks.text.parallel_text import Corpus, read_corpus
from research.tasks.text.tokenizer import (
    CORPUS,
    FILE,
    SENTENCE,
    Tokenizer,
    digest_of,
    make_tokenizer,
)
from research.tasks.text.translation_scores import (
    bleu_tokenizer,
    by_slice,
    chrf,
    corpus_bleu,
    exact_match,
    signatures,
)

EVALUATION_BUCKETS = 2  # few, because each one is compiled for every split


@dataclass(frozen=True, kw_only=True)
class Translation(Task):
    """The translation task; the attributes not listed here are those of `Task`.

    `data` is {split: a mapping for each bucket} of arrays with a row per pair: "source" (N, S),
    "source_length" (N,), "source_words" (N,) and "target" (N, T), int32. Evaluation splits have
    filler rows to complete the last batch.

    Attributes:
      tokenizer: shared by both languages.
      bounds: maximum tokens of source and target in each training bucket.
      pairs: number of pairs in each training bucket, at least `batch_size`.
      padding: fraction of source and target positions, over an epoch, that are padding.
      encoded: {evaluation split: host arrays like those of a bucket, in the order of the files}.
      references: {split: N translations}.
      word_bins: ranges of the number of source words by which metrics are sliced; see `words_in`.
      label_smoothing: probability mass spread over the vocabulary in the objective.
      bleu_tokenizer: sacreBLEU's tokenizer for BLEU.
      corpus: facts about the data, written to corpus.json of the run.
    """

    higher_is_better = {
        **dict.fromkeys(("loss", "objective"), False),
        **dict.fromkeys(("accuracy", "bleu", "chrf", "exact_match"), True),
    }
    ranges = {
        **Task.ranges,
        "exact_match": FRACTION,
        **dict.fromkeys(("bleu", "chrf"), (0.0, 100.0)),
    }
    tokenizer: Tokenizer
    bounds: tuple[Bounds, ...]
    pairs: tuple[int, ...]
    padding: float
    encoded: Mapping[str, Mapping[str, Any]]
    references: Mapping[str, Sequence[str]]
    word_bins: Sequence[tuple[int, int]]
    label_smoothing: float = 0.0
    bleu_tokenizer: str = "13a"
    corpus: Mapping[str, Any] = field(default_factory=dict)
    frequencies: Sequence[float] = field(init=False)
    models: Sequence[str] = ("encoder_decoder", "recurrent")
    scores: Sequence[str] = ("bleu", "chrf", "exact_match")

    def __post_init__(self) -> None:
        object.__setattr__(self, "frequencies", self.epochs.frequencies)
        object.__setattr__(self, "signatures", signatures(self.bleu_tokenizer))

    @property
    def epochs(self) -> Epochs:
        """Assignment of pairs to steps."""
        return Epochs(self.pairs, self.batch_size)

    @property
    def tokens(self) -> float:
        positions = [part * sum(b) for part, b in zip(self.frequencies, self.bounds, strict=True)]
        return self.batch_size * sum(positions) * (1.0 - self.padding)

    @property
    def slices(self) -> Mapping[str, Sequence[str]]:
        labels = [bin_label(*b) for b in self.word_bins]
        return {f"{name}_by_source_length": labels for name in ("accuracy", *self.scores)}

    def bucket(self, step: Int[Array, ""]) -> Int[Array, ""]:
        """Returns the bucket of a step's batch; it does not depend on the seed."""
        return self.epochs.bucket(step)

    def batch(
        self, data: Any, key: Key[Array, ""], step: int | Int[Array, ""] = 0, bucket: int = 0
    ) -> Batch:
        """Returns the pairs of a step.

        If `bucket` is not the step's bucket, the result is some valid batch of `bucket`.
        """
        rows = self.epochs.rows(key, step, bucket)
        return _batch_of({name: array[rows] for name, array in data["train"][bucket].items()})

    def evaluation(
        self, data: Any, split: str, index: Int[Array, ""], total: int, bucket: int = 0
    ) -> Batch:
        """Returns batch `index` of a split's bucket; metrics ignore its filler rows."""
        rows = jnp.asarray(index) * self.batch_size + jnp.arange(self.batch_size)
        return _batch_of({name: array[rows] for name, array in data[split][bucket].items()})

    def evaluation_batches(self, split: str, total: int) -> Sequence[int]:
        """Returns the number of batches in each bucket of the whole split; ignores `total`."""
        return tuple(len(arrays["source"]) // self.batch_size for arrays in self.data[split])

    def examples(self, split: str, total: int) -> int:
        """Returns the number of pairs in a split."""
        return len(self.references[split])

    def example(self, split: str, index: int, total: int) -> Batch:
        """Returns pair `index` of a split, in the order of its files."""
        return _batch_of({n: a[index : index + 1] for n, a in self.encoded[split].items()})

    def metrics(self, outputs: TokenOutputs, batch: Batch) -> dict[str, Sums]:
        """Returns loss (nats per target token) and accuracy under teacher forcing.

        With label smoothing also "objective": with probability e the target is drawn uniformly from
        the vocabulary (Szegedy et al. 2016, section 7; e = 0.1 in Vaswani et al. 2017, section
        5.4).
        """
        targets = batch["targets"]
        weights = (targets >= 0).astype(jnp.float32)
        loss = cross_entropy(outputs, jnp.maximum(targets, 0))
        right = (predicted_tokens(outputs) == targets).astype(jnp.float32)
        words = jnp.broadcast_to(batch["source_words"][:, None], targets.shape)
        count = weights.sum()
        sums = {
            "loss": Sums((loss * weights).sum(), count),
            "accuracy": Sums((right * weights).sum(), count),
            "accuracy_by_source_length": sliced(
                right, weights, bin_index(words, self.word_bins), len(self.word_bins)
            ),
        }
        if self.label_smoothing:
            # Cross entropy with the uniform distribution: the mean of -log p over the vocabulary.
            uniform = log_normalizer(outputs) - mean_logit(outputs)
            smooth = loss + self.label_smoothing * (uniform - loss)
            sums["objective"] = Sums((smooth * weights).sum(), count)
        return sums

    def sources(self, split: str) -> Batch:
        """Returns the sources to decode, "source" (N, S) and "source_length" (N,), host arrays."""
        return {name: self.encoded[split][name] for name in ("source", "source_length")}

    def score(self, split: str, hypotheses: Sequence[Sequence[int]]) -> Scored:
        """Returns BLEU, chrF (0 to 100) and the fraction of exact matches, also by source length.

        Scores are computed on text with one line per sentence, as written into the run directory.

        Args:
          split: name of the split.
          hypotheses: tokens of each translation without end tokens, in the order of the split.
        """
        texts = [_line(self.tokenizer.decode(h)) for h in hypotheses]
        references = [_line(r) for r in self.references[split]]
        words = np.asarray(self.encoded[split]["source_words"])
        index = np.searchsorted([high for _, high in self.word_bins], words)
        measures = {
            "bleu": lambda some, right: corpus_bleu(some, right, self.bleu_tokenizer).score,
            "chrf": lambda some, right: chrf(some, right).score,
            "exact_match": exact_match,
        }
        return Scored(
            metrics={name: measure(texts, references) for name, measure in measures.items()},
            slices={
                f"{name}_by_source_length": by_slice(
                    measure, texts, references, index, len(self.word_bins)
                )
                for name, measure in measures.items()
            },
            files={
                f"{split}.hypotheses.txt": "".join(text + "\n" for text in texts),
                f"{split}.references.txt": "".join(text + "\n" for text in references),
                "sacrebleu.json": json.dumps(self.signatures, indent=1) + "\n",
            },
        )

    def artifacts(self) -> Mapping[str, str]:
        """Returns the files of the tokenizer and of the facts about the corpus."""
        tokenizer = self.tokenizer.to_json()
        known = {**self.corpus, "tokenizer": digest_of(tokenizer)}
        corpus = json.dumps(known, indent=1, ensure_ascii=False) + "\n"
        return {FILE: tokenizer, CORPUS: corpus}


def _line(text: str) -> str:
    """Joins the lines of `text` with spaces: a model may generate line breaks of any kind."""
    return " ".join(text.splitlines())


def _batch_of(rows: Mapping[str, Int[Array, "B *n"]]) -> Batch:
    """Returns the batch made of the given rows of `data`."""
    target = rows["target"]
    before = jnp.pad(target, ((0, 0), (1, 0)), constant_values=BOS)[:, :-1]
    return {
        "source": rows["source"],
        "source_length": rows["source_length"],
        "source_words": rows["source_words"],
        # The end token is a target but never an input, since nothing follows it.
        "inputs": jnp.where(before == EOS, PAD, before),
        "targets": jnp.where(target == PAD, -1, target),
    }


def _kept(config: "TranslationOptions", encoded: Encoded) -> Encoded:
    """Returns the training pairs that are not too long. Raises UserError if they are too few."""
    source, target = encoded.lengths
    kept = take_pairs(
        encoded, np.flatnonzero((source <= config.length) & (target <= config.length))
    )
    if len(kept.words) < config.batch_size:
        raise UserError(
            f"task.batch_size={config.batch_size} is too large: {config.path} has "
            f"{len(kept.words):,} pairs of at most task.length={config.length} tokens to train on."
        )
    return kept


def _known(
    config: "TranslationOptions", corpus: Corpus, cuts: Mapping, train: Encoded, bounds: list
) -> dict:
    """Returns the content of corpus.json; `cuts` is {split: {side: number of cut sentences}}."""
    counts = np.bincount(assign(*train.lengths, bounds), minlength=len(bounds)).tolist()
    return {
        "path": config.path,
        "source_language": config.source_language,
        "target_language": config.target_language,
        "pairs": {split: len(pairs) for split, pairs in corpus.splits.items()}
        | {"train": len(train.words)},
        "left_out_empty": corpus.left_out,
        "left_out_too_long": len(corpus.splits["train"]) - len(train.words),
        "cut": dict(cuts),
        "buckets": [
            {"source": s, "target": t, "pairs": n, "batches": n // config.batch_size}
            for (s, t), n in zip(bounds, counts, strict=True)
        ],
        "padding": padded_part(*train.lengths, bounds, config.batch_size),
    }


def _describe(known: Mapping[str, Any], length: int) -> str:
    """Returns a one-line summary of what `_known` returns."""
    pairs = ", ".join(f"{n:,} for {split}" for split, n in known["pairs"].items())
    out = f"{known['left_out_too_long']:,} of more than {length} tokens"
    if known["left_out_empty"]:
        out += f" and {known['left_out_empty']:,} with an empty side"
    sources = sum(sides["source"] for sides in known["cut"].values())
    return (
        f"{known['path']}: pairs: {pairs}; left out of training: {out}; cut for evaluation: "
        f"{sources:,} sources; {len(known['buckets'])} buckets, {known['padding']:.1%} padding"
    )


@dataclass(frozen=True, kw_only=True)
class TranslationOptions(TaskOptions):
    """Translation of sentences, with one vocabulary for both languages."""

    task = Translation
    decodes = True
    length: int = option(
        64, "maximum number of tokens in a sentence, including the end token", least=2, most=LONGEST
    )
    path: str = option("multi30k", 'a known corpus, or files "x/{split}.{language}"')
    source_language: str = option("de", "language of the source")
    target_language: str = option("en", "language of the target")
    bpe_vocab_size: int = option(
        1024, "vocabulary size of the BPE, which is trained on both sides of the training split"
    )
    buckets: int = option(
        6, "number of batch shapes; more shapes mean less padding and more compilation", least=1
    )
    label_smoothing: float = option(
        0.0,
        "label smoothing in the objective (Szegedy 2016); the reported loss has none",
        least=0,
        below=1,
    )
    bleu_tokenizer: str = option("auto", "sacreBLEU's tokenizer for BLEU; auto: by target_language")

    def make(self) -> Translation:
        """Returns the task, and reports on stderr which pairs were left out.

        Pairs with more than `length` tokens on one side are left out of training, and cut in
        evaluation splits. Raises UserError for inconsistent options and unusable files.
        """
        words_of_bleu = bleu_tokenizer(self.bleu_tokenizer, self.target_language)
        corpus = read_corpus(self.path, self.source_language, self.target_language)
        tokenizer = make_tokenizer(
            "bpe",
            [sentence for pair in corpus.splits["train"] for sentence in pair],
            SENTENCE,
            vocab_size=self.bpe_vocab_size,
            cache=cache_directory() / "tokenizers",
        )
        encoded = {
            split: encode(tokenizer, pairs, self.source_language)
            for split, pairs in corpus.splits.items()
        }
        train = _kept(self, encoded["train"])
        evaluated, cuts = {}, {}
        for split in [split for split in encoded if split != "train"]:
            evaluated[split], cuts[split] = truncate(encoded[split], self.length)
        bounds = choose_bounds(*train.lengths, self.buckets, self.batch_size)
        data = {"train": in_buckets(train, bounds)}
        for split, pairs in evaluated.items():
            own = choose_bounds(*pairs.lengths, EVALUATION_BUCKETS, self.batch_size)
            data[split] = in_buckets(pairs, own, self.batch_size)
        known = _known(self, corpus, cuts, train, bounds)
        tell(_describe(known, self.length))
        return Translation(
            length=self.length,
            batch_size=self.batch_size,
            vocab_size=tokenizer.vocab_size,
            data=jax.device_put(data),
            splits=tuple(evaluated),
            decoded=tuple(evaluated),
            tokenizer=tokenizer,
            bounds=tuple(bounds),
            pairs=tuple(bucket["pairs"] for bucket in known["buckets"]),
            padding=known["padding"],
            encoded={s: padded_arrays(e, _longest(e)) for s, e in evaluated.items()},
            references={s: [target for _, target in corpus.splits[s]] for s in evaluated},
            word_bins=word_bins([e.words for e in evaluated.values()]),
            label_smoothing=self.label_smoothing,
            bleu_tokenizer=words_of_bleu,
            corpus=known,
            files=corpus.files,
        )


def _longest(encoded: Encoded) -> Bounds:
    """Returns the smallest bucket that holds all pairs."""
    source, target = encoded.lengths
    return int(source.max()), int(target.max())
