"""Language modelling on a text file: predicts the next character or BPE token.

The first 90 % of the text are for training and the last 10 % for validation, as in nanoGPT's split
of tiny Shakespeare; the end of the validation part may be reserved for a test. A training batch
consists of random windows; an evaluation uses windows spread evenly over its split, always the
same. The corpus is kept on the device.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from research.errors import UserError
from research.options import option
from research.tasks.bins import bin_index, bin_label, power_of_two_bins
from research.tasks.corpora import cache_directory, read_file, text_file
from research.tasks.digests import digests
from research.tasks.options import WithEvalLengths
from research.tasks.task import (
    Batch,
    Stream,
    Sums,
    Task,
    TokenOutputs,
    cross_entropy,
    sliced,
    split_by_eval_length,
)
from research.tasks.text.tokenizer import FILE, Tokenizer, make_tokenizer

TRAINING_FRACTION = 0.9
NO_STREAM: Mapping[str, Sequence[Any]] = {"stream_sinks": ((),)}


@dataclass(frozen=True, kw_only=True)
class LanguageModeling(Task):
    """What language modelling of any corpus has in common; see `Task` for the attributes."""

    higher_is_better = {"loss": False, "loss_longest": False}
    splits: Sequence[str] = ("validation",)
    select: str = "loss"
    next_token: bool = True
    position_bins: list[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "position_bins", power_of_two_bins(1, self.longest))

    @property
    def slices(self) -> Mapping[str, Sequence[str]]:
        labels = {"loss_by_position": [bin_label(*b) for b in self.position_bins]}
        if self.eval_lengths:
            labels["loss_by_length"] = [str(n) for n in self.eval_lengths]
        if self.stream:
            labels["stream_loss_by_sinks"] = [str(n) for n in self.stream.sinks]
        return labels

    def text(self, split: str) -> Any:
        """Returns the tokens of a split, (N,); they are read where they are sliced."""
        raise NotImplementedError

    def streams(self, split: str) -> Int[Array, "B N"]:
        """Returns `batch_size` pieces of text to stream, spread evenly over a split."""
        if self.stream is None:
            raise ValueError("nothing is streamed")
        return jnp.asarray(spread_pieces(self.text(split), self.stream.tokens, self.batch_size))

    def bits(self, total: jax.Array, weights: Float[Array, "B T"], batch: Batch) -> dict[str, Sums]:
        """Returns the loss in bits per unit of text.

        Args:
          total: sum of the loss, in nats.
          weights: weight of each target in it.
          batch: the batch.
        """
        raise NotImplementedError

    def weights(self, batch: Batch) -> Float[Array, "B T"]:
        """Returns the weight of each target in the loss."""
        return jnp.ones(batch["targets"].shape)

    def context_lengths(self, batch: Batch) -> Int[Array, "..."]:
        """Returns how many tokens of context each target has, broadcastable to (B, T)."""
        return 1 + jnp.arange(batch["targets"].shape[1])

    def split_by_set(
        self, loss: Float[Array, "B T"], weights: Float[Array, "B T"], batch: Batch
    ) -> tuple[Float[Array, "B T"], dict[str, Sums]]:
        """Returns the weights of targets in the metrics of their split, and sums of other sets.

        Args:
          loss: losses of all targets.
          weights: weight of each target.
          batch: their batch.
        """
        return weights, {}

    def metrics(self, outputs: TokenOutputs, batch: Batch) -> dict[str, Sums]:
        """Returns loss (nats per token), bits per unit, and loss by position in the context.

        Loss and bits are for the training length; the loss by position uses windows of all lengths.
        """
        loss = cross_entropy(outputs, batch["targets"])
        weights, of_sets = self.split_by_set(loss, self.weights(batch), batch)
        positions = bin_index(self.context_lengths(batch), self.position_bins)
        positions = jnp.broadcast_to(positions, loss.shape)
        by_position = sliced(loss, weights, positions, len(self.position_bins))
        weights, others = split_by_eval_length(self, "loss", loss, weights, batch)
        total = (loss * weights).sum()
        return {
            "loss": Sums(total, weights.sum()),
            **self.bits(total, weights, batch),
            "loss_by_position": by_position,
            **others,
            **of_sets,
        }


def spread_pieces(text: Any, tokens: int, number: int) -> Int[np.ndarray, "B N+1"]:
    """Returns pieces of a text, spread evenly, each of one start token and N tokens to predict.

    Args:
      text: the tokens, more than N; anything with a length and slices.
      tokens: N.
      number: B.
    """
    starts = np.linspace(0, len(text) - tokens - 1, number).astype(np.int64)
    pieces = [text[start : start + tokens + 1] for start in starts.tolist()]
    return np.stack(pieces).astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class LanguageModelingOptions(WithEvalLengths):
    """Options of language modelling of any corpus."""

    stream_sinks: tuple[int, ...] = option(
        (),
        "numbers of sinks (first tokens that a rolling cache keeps); when training has "
        "ended, the text is streamed through the cache once for each; (): no streaming",
        least=0,
    )
    stream_window: int = option(
        0,
        "size of the rolling cache in tokens, including the sinks; 0: length",
        unless=NO_STREAM,
        least=0,
    )
    stream_tokens: int = option(
        1024,
        "number of tokens in each of the batch_size pieces that are streamed",
        unless=NO_STREAM,
        least=1,
    )

    def make_stream(self, tokens: Mapping[str, int]) -> Stream | None:
        """Returns how the text is streamed, None if it is not. Raises UserError for invalid sizes.

        Args:
          tokens: number of tokens of each evaluation split.
        """
        sinks = self.stream_sinks
        if not sinks:
            return None
        window = self.stream_window or self.length
        if list(sinks) != sorted(set(sinks)) or sinks[0] < 0 or sinks[-1] >= window:
            raise UserError(
                f"task.stream_sinks={sinks}: give numbers from 0 to less than the window of "
                f"{window} tokens, each larger than the one before."
            )
        for name, number in tokens.items():
            if not window < self.stream_tokens < number:
                raise UserError(
                    f"task.stream_tokens={self.stream_tokens} must be more than the window of "
                    f"{window} tokens and less than the {number} of the {name} text."
                )
        return Stream(window, sinks, self.stream_tokens)


@dataclass(frozen=True, kw_only=True)
class Text(LanguageModeling):
    """The language modelling task; see `Task` for the attributes.

    `data` is {"train": (N,), "validation": (N',) int32 tokens, "characters": (V,) float32, the
    number of characters of each token}, and "test": (N'',) if there is one.
    """

    higher_is_better = {**LanguageModeling.higher_is_better, "bits_per_character": False}
    tokenizer: Tokenizer

    def batch(
        self,
        data: Mapping[str, jax.Array],
        key: Key[Array, ""],
        step: int | Int[Array, ""] = 0,
        bucket: int = 0,
    ) -> Batch:
        """Returns windows at random positions of the training split."""
        key = jax.random.fold_in(key, step)
        last = data["train"].shape[0] - self.length
        starts = jax.random.randint(key, (self.batch_size,), 0, last)
        return self._windows(data, "train", starts, self.length)

    def evaluation(
        self,
        data: Mapping[str, jax.Array],
        split: str,
        index: Int[Array, ""],
        total: int,
        bucket: int = 0,
    ) -> Batch:
        """Returns batch `index` of `total`, windows spread evenly over the split."""
        length = self.length_of(bucket)
        last = data[split].shape[0] - length - 1
        starts = np.linspace(0, last, total * self.batch_size).astype(np.int32)
        starts = jnp.asarray(starts.reshape(total, self.batch_size))[index]
        return self.with_eval_length(self._windows(data, split, starts, length), bucket)

    def _windows(
        self, data: Mapping[str, jax.Array], split: str, starts: jax.Array, length: int
    ) -> Batch:
        tokens = data[split][starts[:, None] + jnp.arange(length + 1)]
        targets = tokens[:, 1:]
        return {
            "inputs": tokens[:, :-1],
            "targets": targets,
            "characters": data["characters"][targets],
        }

    def bits(self, total: jax.Array, weights: Float[Array, "B T"], batch: Batch) -> dict[str, Sums]:
        characters = (batch["characters"] * weights).sum()
        return {"bits_per_character": Sums(total / jnp.log(2.0), characters)}

    def text(self, split: str) -> Int[np.ndarray, " N"]:
        """Returns the tokens of a split."""
        return np.asarray(self.data[split])

    def artifacts(self) -> Mapping[str, str]:
        """Returns the tokenizer."""
        return {FILE: self.tokenizer.to_json()}


@dataclass(frozen=True, kw_only=True)
class TextOptions(LanguageModelingOptions):
    """Language modelling: the next token of a text."""

    task = Text
    path: str = option("tinyshakespeare", "a known corpus, or a UTF-8 text file")
    tokenizer: str = option(
        "char", "tokens: characters, or byte-level BPE", allowed=("char", "bpe")
    )
    bpe_vocab_size: int = option(
        1024,
        "vocabulary size of the BPE, which is trained on the training split",
        when={"tokenizer": ("bpe",)},
    )
    test_fraction: float = option(
        0.0,
        "fraction of the text, at its end, that is held out as a test split; it is "
        "taken from the validation split",
        least=0,
        below=1 - TRAINING_FRACTION,
    )

    def make(self) -> Text:
        """Returns the task. Raises UserError if the text is missing or too short."""
        file = text_file(self.path)
        text = read_file(file)
        cut = int(len(text) * TRAINING_FRACTION)
        tokenizer = make_tokenizer(
            self.tokenizer,
            [text[:cut]],
            others=[text[cut:]],
            vocab_size=self.bpe_vocab_size,
            cache=cache_directory() / "tokenizers",
        )
        last = len(text) - int(len(text) * self.test_fraction)
        splits = {
            "train": tokenizer.encode(text[:cut]),
            "validation": tokenizer.encode(text[cut:last]),
        }
        if self.test_fraction:
            splits["test"] = tokenizer.encode(text[last:])
        for name, tokens in splits.items():
            for key, length in (
                ("length", self.length),
                *(("eval_lengths", n) for n in self.eval_lengths),
            ):
                if len(tokens) < length + 2:
                    raise UserError(
                        f"task.{key}={length} is too long: the {name} split of {self.path} "
                        f"has {len(tokens)} tokens."
                    )
        evaluated = {name: tokens for name, tokens in splits.items() if name != "train"}
        stream = self.make_stream({name: len(tokens) for name, tokens in evaluated.items()})
        data = {name: jnp.asarray(tokens) for name, tokens in splits.items()}
        data["characters"] = jnp.asarray(tokenizer.characters)
        return Text(
            length=self.length,
            batch_size=self.batch_size,
            eval_lengths=self.eval_lengths,
            stream=stream,
            vocab_size=tokenizer.vocab_size,
            tokenizer=tokenizer,
            splits=tuple(evaluated),
            data=data,
            files=digests([file]),
        )
