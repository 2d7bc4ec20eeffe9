"""Speech recognition: transcribes recordings, or strings of concatenated recordings.

Recordings are kept on the device as log-mel features (features.py). With `task.join` every step
concatenates random recordings into strings (joining.py); validation and test have strings of their
own recordings, the same for every seed. Without it, epochs of single recordings are used. Rows with
more frames or tokens than their bucket are ignored; `corpus` records how many. Tokens are those of
`task.tokenizer`; PAD is also the blank of CTC.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from research.tasks.bins import bin_index, bin_label
from research.tasks.buckets import ORDER_SEED, Bounds, Epochs
from research.tasks.speech.joining import Plan, draw_plan, joined, masked
from research.tasks.speech.recognition_scores import (
    RATES,
    SpeechOutputs,
    edit_distance,
    error_rates,
)
from research.tasks.task import (
    EOS,
    PAD,
    Batch,
    Scored,
    Sums,
    Task,
    cross_entropy,
    sliced,
)
from research.tasks.text.tokenizer import CORPUS, FILE, Tokenizer, digest_of

# Evaluation uses separate random streams, so that no seed ever trains on evaluation data.
EVALUATION_SEED = {"validation": 0x5EED0031, "test": 0x5EED0032}
ROWS = 64  # number of strings generated at once for decoding


@dataclass(frozen=True, kw_only=True)
class Speech(Task):
    """The speech recognition task; the attributes not listed here are those of `Task`.

    `data` is the result of `joining.stored` for all recordings, with the number of their "words"
    (R,), and "order": {split: (rows,) for each bucket}, positions in the split, -1 for filler rows.

    Attributes:
      tokenizer: tokenizer of the transcripts.
      join: possible numbers of recordings in a string, for each training bucket; empty: epochs of
        single recordings.
      strings: {evaluation split: number of recordings in each of its strings}.
      pools: {split: (first recording, number of recordings) of each pool}; a string takes its
        recordings from one pool, such as one speaker.
      pause: shortest and longest pause, in frames.
      bounds: {split: maximum frames and tokens of each bucket}.
      epochs: assignment of recordings to steps, if `join` is empty.
      time_masks, band_masks: number of masks, and the maximum frames or bands of one.
      references: {evaluation split: N transcripts}.
      word_bins: ranges of the number of words by which metrics are sliced.
      mean_tokens: average number of frames plus target tokens of a training row.
      corpus: facts about the data, written to corpus.json of the run.
    """

    higher_is_better = {
        **dict.fromkeys(("loss", "ctc_loss", "ctc_too_short", "objective", "error_rate"), False),
        "accuracy": True,
        **dict.fromkeys(RATES, False),
    }
    tokenizer: Tokenizer
    join: tuple[tuple[int, ...], ...]
    strings: Mapping[str, np.ndarray]
    pools: Mapping[str, tuple[tuple[int, int], ...]]
    pause: tuple[int, int]
    bounds: Mapping[str, tuple[Bounds, ...]]
    epochs: Epochs | None
    time_masks: tuple[int, int]
    band_masks: tuple[int, int]
    references: Mapping[str, Sequence[str]]
    word_bins: Sequence[tuple[int, int]]
    mean_tokens: float
    corpus: Mapping[str, Any] = field(default_factory=dict)
    frequencies: Sequence[float] = field(init=False)
    select: str = "error_rate"
    models: Sequence[str] = ("speech",)
    scores: Sequence[str] = RATES
    aligned: Sequence[str] = ("diagonality", "entropy", "monotonicity", "on_span", "coverage")

    def __post_init__(self) -> None:
        numbers = [len(group) for group in self.join]
        found = tuple(n / sum(numbers) for n in numbers)
        frequencies = self.epochs.frequencies if self.epochs else found
        object.__setattr__(self, "frequencies", frequencies)

    @property
    def tokens(self) -> float:
        return self.batch_size * self.mean_tokens

    @property
    def slices(self) -> Mapping[str, Sequence[str]]:
        labels = [bin_label(*b) for b in self.word_bins]
        return {f"{name}_by_words": labels for name in ("error_rate", *self.scores)}

    def bucket(self, step: Int[Array, ""]) -> Int[Array, ""]:
        """Returns the bucket of a step's batch; it does not depend on the seed."""
        if self.epochs:
            return self.epochs.bucket(step)
        key = jax.random.fold_in(jax.random.key(ORDER_SEED), step)
        return jax.random.choice(key, len(self.join), p=jnp.array(self.frequencies))

    def batch(
        self, data: Any, key: Key[Array, ""], step: int | Int[Array, ""] = 0, bucket: int = 0
    ) -> Batch:
        """Returns the strings or recordings of a step, with SpecAugment masks applied."""
        of_numbers, of_plans, of_masks = jax.random.split(jax.random.fold_in(key, step), 3)
        if self.epochs:
            rows = data["order"]["train"][bucket][self.epochs.rows(key, step, bucket)]
            plan = self._recordings("train", rows)
        else:
            group = self.join[bucket]
            number = jax.random.choice(of_numbers, jnp.array(group), (self.batch_size,))
            keys = jax.random.split(of_plans, self.batch_size)
            plan = draw_plan(keys, number, max(group), self.pools["train"], self.pause)
        batch = self._batch(data, plan, self.bounds["train"][bucket])
        masks = jax.random.split(of_masks, self.batch_size)
        how = self.time_masks, self.band_masks
        return batch | {"source": masked(batch["source"], batch["source_length"], masks, *how)}

    def evaluation(
        self, data: Any, split: str, index: Int[Array, ""], total: int, bucket: int = 0
    ) -> Batch:
        """Returns batch `index` of a split's bucket; metrics ignore its filler rows."""
        rows = jnp.asarray(index) * self.batch_size + jnp.arange(self.batch_size)
        return self.rows(
            data, split, data["order"][split][bucket][rows], self.bounds[split][bucket]
        )

    def evaluation_batches(self, split: str, total: int) -> Sequence[int]:
        """Returns the number of batches in each bucket of the whole split; ignores `total`."""
        return tuple(len(rows) // self.batch_size for rows in self.data["order"][split])

    def examples(self, split: str, total: int) -> int:
        """Returns the number of strings or recordings in a split."""
        return len(self.references[split])

    def example(self, split: str, index: int, total: int) -> Batch:
        """Returns string or recording `index` of a split."""
        frames, tokens = np.max(self.bounds[split], axis=0).tolist()
        make = jax.jit(self.rows, static_argnums=(1, 3))
        return make(self.data, split, np.array([index], np.int32), (frames, tokens))

    def rows(self, data: Any, split: str, rows: Int[Array, " B"], bounds: Bounds) -> Batch:
        """Returns the rows of an evaluation split at the given positions; -1 is an empty row."""
        return self._batch(data, self.plan(split, rows), bounds)

    def plan(self, split: str, rows: Int[Array, " B"]) -> Plan:
        """Returns the recordings in each of the given rows of an evaluation split; see `rows`."""
        if not self.join:
            return self._recordings(split, rows)
        return evaluation_plan(split, self.strings[split], rows, self.pools[split], self.pause)

    def _recordings(self, split: str, rows: Int[Array, " B"]) -> Plan:
        """Returns recordings of a split as strings of one recording, without pauses."""
        number = (rows >= 0).astype(jnp.int32)
        picks = self.pools[split][0][0] + jnp.maximum(rows, 0)
        keys = jnp.broadcast_to(jax.random.key(0), rows.shape)
        return Plan(picks[:, None], number, jnp.zeros((len(rows), 2), jnp.int32), keys)

    def _batch(self, data: Any, plan: Plan, bounds: Bounds) -> dict[str, Array]:
        there = jnp.arange(plan.picks.shape[1]) < plan.number[:, None]
        words = jnp.where(there, data["words"][plan.picks], 0).sum(1)
        return {**joined(data, plan, *bounds), "source_words": words}

    def metrics(self, outputs: SpeechOutputs, batch: Batch) -> dict[str, Sums]:
        """Returns losses (nats per target), accuracy under teacher forcing, and error rates.

        "loss" is the speller's loss, which counts the end token, or without a speller the CTC loss,
        which does not; "objective" is their weighted sum (Kim et al. 2017, equation 9). The CTC
        loss omits strings with more labels than frames; "ctc_too_short" is their fraction.
        "error_rate", also by number of words, is edits per label of greedy decoding. A speller is
        stopped after twice the number of tokens of the bucket's longest transcript.
        """
        targets, weight = batch["targets"], outputs.ctc_weight
        asked = (targets >= 0).astype(jnp.float32)
        labels = jnp.where((targets == EOS) | (targets < 0), PAD, targets)
        number = (labels != PAD).sum(-1)
        sums: dict[str, Sums] = {}
        both = jnp.float32(0.0)
        if outputs.ctc is not None:
            losses, fits = ctc_losses(outputs.ctc, outputs.ctc_length, labels)
            there = number > 0
            count = (number * fits).sum().astype(jnp.float32)
            sums["loss"] = sums["ctc_loss"] = Sums(losses.sum(), count)
            sums["ctc_too_short"] = Sums((there & ~fits).sum() * 1.0, there.sum() * 1.0)
            both += weight * losses.sum()
        if outputs.logits is not None:
            loss = (cross_entropy(outputs.logits, jnp.maximum(targets, 0)) * asked).sum()
            right = (outputs.logits.argmax(-1) == targets) * asked
            sums["loss"] = Sums(loss, asked.sum())
            sums["accuracy"] = Sums(right.sum(), asked.sum())
            both += (1.0 - weight) * loss
        sums["objective"] = Sums(both, asked.sum())
        if outputs.labelling is None:
            return sums
        lengths = (outputs.labelling != PAD).sum(-1)
        edits = jnp.where(number > 0, edit_distance(outputs.labelling, lengths, labels, number), 0)
        index, bins = bin_index(batch["source_words"], self.word_bins), len(self.word_bins)
        rates = edits / jnp.maximum(number, 1)
        count = number.astype(jnp.float32)
        return sums | {
            "error_rate": Sums(edits.sum().astype(jnp.float32), count.sum()),
            "error_rate_by_words": sliced(rates, count, index, bins),
        }

    def sources(self, split: str) -> Batch:
        """Returns the sources to decode, "source" (N, S, F), "source_length" (N,), host arrays."""
        longest = max(frames for frames, _ in self.bounds[split])
        number = len(self.references[split])
        mels = self.data["frames"].shape[-1]
        source = np.zeros((number, longest, mels), np.float32)
        length = np.ones(number, np.int32)
        make = jax.jit(self.rows, static_argnums=(1, 3))
        for bounds, order in zip(self.bounds[split], self.data["order"][split], strict=True):
            order = np.asarray(order)
            order = np.append(order, np.full(-len(order) % ROWS, -1)).astype(np.int32)
            for rows in order.reshape(-1, ROWS):
                batch, there = make(self.data, split, rows, bounds), rows >= 0
                frames = np.asarray(batch["source"])[there]
                source[rows[there], : frames.shape[1]] = frames
                length[rows[there]] = np.asarray(batch["source_length"])[there]
        found: Any = {"source": source, "source_length": length}
        return found

    def score(self, split: str, hypotheses: Sequence[Sequence[int]]) -> Scored:
        """Returns the rates of `recognition_scores.error_rates`, also by number of words.

        Args:
          split: name of the split.
          hypotheses: tokens of each transcript without end tokens, in the order of the split.
        """
        texts = [" ".join(self.tokenizer.decode(list(h)).split()) for h in hypotheses]
        references = list(self.references[split])
        words = np.array([len(r.split()) for r in references])
        index = np.searchsorted([high for _, high in self.word_bins], words)
        by_bin = []
        for b in range(len(self.word_bins)):
            mine = np.flatnonzero(index == b)
            by_bin.append(error_rates([references[i] for i in mine], [texts[i] for i in mine]))
        return Scored(
            metrics=error_rates(references, texts),
            slices={f"{name}_by_words": [rates[name] for rates in by_bin] for name in RATES},
            files={
                f"{split}.hypotheses.txt": "".join(text + "\n" for text in texts),
                f"{split}.references.txt": "".join(text + "\n" for text in references),
            },
        )

    def alignments(self, split: str) -> Batch:
        """Returns rows spread evenly over a split, with "span" (B, T, 2), see `joining.joined`."""
        number = len(self.references[split])
        rows = np.unique(np.linspace(0, number - 1, self.batch_size).astype(np.int32))
        rows = np.append(rows, np.full(self.batch_size - len(rows), -1)).astype(np.int32)
        frames, tokens = np.max(self.bounds[split], axis=0).tolist()
        make = jax.jit(self.rows, static_argnums=(1, 3))
        return make(self.data, split, rows, (frames, tokens))

    def artifacts(self) -> Mapping[str, str]:
        """Returns the files of the tokenizer and of the facts about the corpus."""
        tokenizer = self.tokenizer.to_json()
        known = {**self.corpus, "tokenizer": digest_of(tokenizer)}
        corpus = json.dumps(known, indent=1, ensure_ascii=False) + "\n"
        return {FILE: tokenizer, CORPUS: corpus}


def evaluation_plan(
    split: str,
    strings: np.ndarray,
    rows: Int[Array, " B"],
    pools: Sequence[tuple[int, int]],
    pause: tuple[int, int],
) -> Plan:
    """Returns the strings of an evaluation split at the given positions, always the same.

    Args:
      split: name of the split.
      strings: (N,) number of recordings in each string of the split.
      rows: positions; -1 is an empty string.
      pools, pause: see `draw_plan`.
    """
    number = jnp.where(rows < 0, 0, jnp.asarray(strings, jnp.int32)[rows])
    key = jax.random.key(EVALUATION_SEED[split])
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
    return draw_plan(keys, number, int(strings.max()), pools, pause)


def ctc_losses(
    logits: Float[Array, "B S V"], lengths: Int[Array, " B"], labels: Int[Array, "B T"]
) -> tuple[Float[Array, " B"], Array]:
    """Returns -log p(labels) in nats (Graves et al. 2006, equation 8), and which rows count.

    Rows do not count, and have loss 0, if they have no labels, or too few frames for the labels and
    the blanks required between equal neighbours, so that no path yields the labels.

    Args:
      logits: label logits of each frame; PAD is the blank.
      lengths: number of frames.
      labels: labels, padded with PAD.
    """
    there = labels != PAD
    repeats = (there[:, 1:] & (labels[:, 1:] == labels[:, :-1])).sum(-1)
    fits = there.any(-1) & (lengths >= there.sum(-1) + repeats)
    padding = (jnp.arange(logits.shape[1]) >= lengths[:, None]).astype(jnp.float32)
    losses = optax.ctc_loss(
        logits.astype(jnp.float32), padding, labels, (~there).astype(jnp.float32), blank_id=PAD
    )
    # optax returns a huge finite loss, not infinity, where no path exists, so the where is safe.
    return jnp.where(fits, losses, 0.0), fits
