"""Language modelling on token shards: predicts the next token in random windows of a corpus.

Windows start anywhere and may reach over the ends of documents, as in nanoGPT; packed documents are
kept apart within their window (Krell et al. 2021, section 3.2). The corpus lies on the devices, in
pieces that are split over them (`pieces`), or is read from disk ahead of need. Either way the batch
of a step is the same.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from research.attention.parts.segments import places_of_ids
from research.errors import UserError
from research.options import option
from research.tasks.task import Batch, Sums, sliced
from research.tasks.text.language_modeling import LanguageModeling, LanguageModelingOptions
from research.tasks.text.tokenizer import CORPUS, FILE
from research.tasks.tokens.corpus import Corpus, open_corpus
from research.tasks.tokens.held_out_sets import files_of, open_held_out
from research.tasks.tokens.pieces import LONGEST_PIECE, Chunk, Pieces, cut
from research.tasks.tokens.splits import Split

PACKED = "packed"


@dataclass(frozen=True, kw_only=True)
class Tokens(LanguageModeling):
    """Language modelling on token shards; see `Task` for the attributes.

    `data` is {"train": (G, N), "validation": (G', N')} `Pieces` of uint16 or uint32 tokens, "test"
    if there is one, and "held_out_NAME" for every set of `held_out`; without "train" if streamed.
    Then training also reads {"windows": (P, K, B, T + 1), "first": () int32}, the windows of K
    steps and the number of the first of them.

    Attributes:
      corpus: the corpus.
      train: the training split in pieces.
      bytes_per_token: bytes of validation text for each of its tokens; 0: unknown.
      held_out: named sets that are evaluated beside the validation split, each in a bucket of its
        own behind those of `eval_lengths`.
      restart_positions: whether batches have "positions"; only where documents are packed.
    """

    higher_is_better = {**LanguageModeling.higher_is_better, "bits_per_byte": False}
    corpus: Corpus = field(hash=False)
    train: Pieces
    bytes_per_token: float = 0.0
    restart_positions: bool = False
    held_out: Mapping[str, Corpus] = field(default_factory=dict, hash=False)

    @property
    def slices(self) -> Mapping[str, Sequence[str]]:
        labels = dict(super().slices)
        if self.held_out:
            labels["loss_by_held_out"] = list(self.held_out)
        if any(self._held_out_bytes):
            labels["bits_per_byte_by_held_out"] = list(self.held_out)
        return labels

    @property
    def _held_out_bytes(self) -> list[float]:
        """Bytes for each token of every held-out set; 0: unknown."""
        return [_bytes_per_token(one.splits["validation"]) for one in self.held_out.values()]

    def batch(
        self,
        data: Mapping[str, jax.Array],
        key: Key[Array, ""],
        step: int | Int[Array, ""] = 0,
        bucket: int = 0,
    ) -> Batch:
        """Returns windows at random positions of the training split, one row from each piece."""
        if self.streamed:
            place = jnp.asarray(step, jnp.int32) - data["first"]
            windows = jax.lax.dynamic_index_in_dim(data["windows"], place, keepdims=False)
            return self._of_windows(windows)
        return self._of_windows(_windows(data["train"], self.starts(key, step), self.length))

    def starts(self, key: Key[Array, ""], step: int | Int[Array, ""]) -> Int[Array, " B"]:
        """Returns where in its piece the window of each row starts."""
        key = jax.random.fold_in(key, step)
        return jax.random.randint(key, (self.batch_size,), 0, self.train.stride)

    def chunk(
        self, seeds: Shaped[np.ndarray, " P"], key: Callable, start: int, stop: int, steps: int
    ) -> Mapping[str, Any]:
        """Returns {"windows", "first"}, see `Tokens`; windows are read when they are indexed."""
        numbers = start + np.arange(steps, dtype=np.int32)
        # On the CPU: the accelerators are training.
        with jax.default_device(_cpu()):
            starts = np.asarray(_draw(self, key, np.asarray(seeds), numbers))
        windows = Chunk(self.train, starts[:, : min(steps, stop - start)], steps)
        return {"windows": windows, "first": np.int32(start)}

    def data_shapes(self) -> Any:
        if not self.streamed:
            return self.data
        shape = (1, self.batch_size, self.length + 1)
        windows = jax.ShapeDtypeStruct(shape, self.train.dtype)
        return {**self.data, "windows": windows, "first": jax.ShapeDtypeStruct((), np.int32)}

    @property
    def evaluation_data(self) -> Any:
        """The evaluation splits, read now."""
        return {name: self.data[name][slice(None), slice(None)] for name in self.splits}

    def evaluation(
        self,
        data: Mapping[str, jax.Array],
        split: str,
        index: Int[Array, ""],
        total: int,
        bucket: int = 0,
    ) -> Batch:
        """Returns batch `index` of `total`, windows spread evenly over each piece of the split.

        Batches of buckets with held-out sets are of these. If there are any, every batch has
        "held_out", (B,) int32, an index into `held_out`, or -1 for the split itself.
        """
        held_out, reach = bucket - 1 - len(self.eval_lengths), self.longest
        if held_out >= 0:
            split, reach, bucket = _data_name(list(self.held_out)[held_out]), self.length, 0
        pieces, length = data[split], self.length_of(bucket)
        each = self.batch_size // pieces.shape[0]
        last = pieces.shape[1] - reach - 1
        starts = np.linspace(0, last, total * each).astype(np.int32).reshape(total, each)
        starts = jnp.tile(jnp.asarray(starts)[index], pieces.shape[0])
        windows = _windows(pieces, starts, length)
        batch = self.with_eval_length(self._of_windows(windows), bucket)
        if not self.held_out:
            return batch
        return {**batch, "held_out": jnp.full(self.batch_size, max(held_out, -1), jnp.int32)}

    def evaluation_batches(self, split: str, total: int) -> Sequence[int]:
        return (*super().evaluation_batches(split, total), *(total for _ in self.held_out))

    def _of_windows(self, windows: Int[Array, "B T1"]) -> Batch:
        """Returns the batch of some windows, with their documents as segments if packed.

        An end token is the last of its document. It predicts nothing: what follows it begins
        another document, of which it knows nothing.
        """
        tokens = windows.astype(jnp.int32)
        batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
        if not self.packed:
            return batch
        ends = batch["inputs"] == self.corpus.end_token
        batch["targets"] = jnp.where(ends, -1, batch["targets"])
        batch["segments"] = jnp.cumsum(ends, axis=1, dtype=jnp.int32) - ends
        if self.restart_positions:
            batch["positions"] = places_of_ids(batch["segments"])
        return batch

    def weights(self, batch: Batch) -> Float[Array, "B T"]:
        """Returns 0 for the targets that packed end tokens do not have, else 1."""
        if not self.packed:
            return super().weights(batch)
        return (batch["targets"] >= 0).astype(jnp.float32)

    def context_lengths(self, batch: Batch) -> Int[Array, "..."]:
        """Returns how many tokens of context each target has, of its own document if packed."""
        if not self.packed:
            return super().context_lengths(batch)
        return 1 + places_of_ids(batch["segments"])

    def split_by_set(
        self, loss: Float[Array, "B T"], weights: Float[Array, "B T"], batch: Batch
    ) -> tuple[Float[Array, "B T"], dict[str, Sums]]:
        """Returns weights and sums as the base class does.

        Targets of held-out sets have no weight in the metrics of the split; their own are
        "loss_by_held_out" and, where bytes are known, "bits_per_byte_by_held_out".
        """
        if "held_out" not in batch:
            return super().split_by_set(loss, weights, batch)
        index = jnp.broadcast_to(batch["held_out"][:, None], loss.shape)
        total, count = sliced(loss, weights, index, len(self.held_out))
        found = {"loss_by_held_out": Sums(total, count)}
        if any(self._held_out_bytes):
            size = count * jnp.array(self._held_out_bytes)
            found["bits_per_byte_by_held_out"] = Sums(total / jnp.log(2.0), size)
        return weights * (index < 0), found

    def text(self, split: str) -> Split:
        """Returns a split of the corpus, or a held-out set."""
        if split in self.held_out:
            return self.held_out[split].splits["validation"]
        return self.corpus.splits[split]

    def bits(self, total: jax.Array, weights: Float[Array, "B T"], batch: Batch) -> dict[str, Sums]:
        """Returns bits per byte, by the numbers of bytes and tokens of the validation split.

        Gao et al. 2020 (The Pile), section 3.1: (tokens / bytes) * loss / ln 2.
        """
        if not self.bytes_per_token:
            return {}
        size = weights.sum() * self.bytes_per_token
        return {"bits_per_byte": Sums(total / jnp.log(2.0), size)}

    def artifacts(self) -> Mapping[str, str]:
        """Returns the size of the vocabulary, and the tokenizer if the corpus has one."""
        known = {CORPUS: json.dumps({"vocab_size": self.vocab_size}, indent=1) + "\n"}
        return known | ({FILE: self.corpus.tokenizer} if self.corpus.tokenizer else {})


def _windows(pieces: Int[Array, "G N"], starts: Int[Array, " B"], length: int) -> Array:
    """Returns (B, T + 1) windows, each of the piece of its row."""
    number = pieces.shape[0]

    def of_piece(piece: Array, starts: Array) -> Array:
        take = jax.lax.dynamic_slice_in_dim
        return jax.vmap(lambda start: take(piece, start, length + 1))(starts)

    return jax.vmap(of_piece)(pieces, starts.reshape(number, -1)).reshape(-1, length + 1)


def _data_name(held_out: str) -> str:
    """Returns the name in `data` of a held-out set."""
    return f"held_out_{held_out}"


def _bytes_per_token(split: Split) -> float:
    return split.bytes / split.tokens


def _cpu() -> jax.Device:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS may leave it out
        return jax.local_devices()[0]


def _draw(task: Tokens, key: Callable, seeds: np.ndarray, steps: np.ndarray) -> jax.Array:
    """Returns (P, K, B) places of the windows of some seeds and steps."""
    # Compiled once for each task and number of steps.
    known = vars(task).setdefault("_draws", {})
    if "draw" not in known:

        def of_seed(seed: jax.Array, steps: jax.Array) -> jax.Array:
            return jax.vmap(lambda step: task.starts(key(seed), step))(steps)

        known["draw"] = jax.jit(jax.vmap(of_seed, in_axes=(0, None)))
    return known["draw"](seeds, steps)


@dataclass(frozen=True, kw_only=True)
class TokensOptions(LanguageModelingOptions):
    """Language modelling on token shards of a prepared corpus, or of nanoGPT, llm.c or OLMo."""

    task = Tokens
    path: str = option(
        "tokens", "directory of research.prepare, or training shards: a file, pattern or directory"
    )
    validation_path: str = option(
        "", "validation shards where there is no manifest; empty: those with val in their names"
    )
    corpus_dtype: str = option(
        "auto",
        "type of the tokens; auto: as manifest or header say, otherwise uint16",
        allowed=("auto", "uint16", "uint32"),
    )
    corpus_vocab_size: int = option(
        0,
        "size of the vocabulary, such as 50257; 0: as the manifest says, which a larger one pads "
        "with tokens that never occur (50304 splits over devices, 50257 does not)",
        least=0,
    )
    data: str = option(
        "device",
        "where the corpus is: on the devices, in parts, or read from disk ahead of need; the "
        "batches are the same",
        allowed=("device", "streamed"),
    )
    test_fraction: float = option(
        0.0,
        "fraction of the validation shards, at their end, that is held out as a test split",
        least=0,
        below=1,
    )
    held_out: tuple[str, ...] = option(
        (),
        "other sets to evaluate, NAME=PATH each: a directory of research.prepare with the same "
        "tokenizer, whose validation shards are read, or shards: a file or pattern",
    )
    documents: str = option(
        "across",
        "across: windows reach from one document into the next; packed: nothing of a document "
        "depends on another, and the first token of a document is not predicted",
        allowed=("across", PACKED),
    )
    end_token: int = option(
        -1,
        "token that ends every document where there is no manifest, such as 50256",
        least=-1,
        when={"documents": (PACKED,)},
    )
    restart_positions: bool = option(
        False,
        "whether the positions that a model adds to its input begin anew in each document",
        when={"documents": (PACKED,)},
    )

    def make(self) -> Tokens:
        """Returns the task. Raises UserError if the shards are missing, damaged or too short."""
        corpus = open_corpus(
            self.path,
            self.validation_path,
            self.corpus_dtype,
            self.corpus_vocab_size,
            self.end_token if self.documents == PACKED else -1,
        )
        held_out = open_held_out(self.held_out, corpus, self.path, self.corpus_dtype)
        return self.make_of(corpus, held_out)

    def make_of(self, corpus: Corpus, held_out: Mapping[str, Corpus] | None = None) -> Tokens:
        """Returns the task of corpora, of which nothing is read yet. Raises UserError."""
        held_out = held_out or {}
        packed = self.documents == PACKED
        if packed and corpus.end_token < 0:
            raise UserError(
                f"task.end_token=-1: nothing in {self.path} says which token ends a document, and "
                "task.documents='packed' needs it; give it, for example 50256 for GPT-2."
            )
        longest = max((self.length, *self.eval_lengths))
        train = _cut(self, corpus.splits["train"], self.length)
        evaluated = {"validation": corpus.splits["validation"]}
        if last := round(self.test_fraction * len(evaluated["validation"])):
            evaluated = {s.name: s for s in evaluated["validation"].divided("test", last)}
        corpus = replace(corpus, splits={"train": corpus.splits["train"], **evaluated})
        data = {name: _cut(self, split, longest) for name, split in evaluated.items()}
        for name, one in held_out.items():
            data[_data_name(name)] = _cut(self, one.splits["validation"], self.length, name)
        for pieces in (train, *data.values()):
            _check_addressable(self, pieces)
        streamed = self.data == "streamed"
        if not streamed:
            data["train"] = train
        axes: dict[str, tuple[str, ...]] = {name: ("batch", "") for name in data}
        if streamed:
            axes["windows"] = ("member", "", "batch", "")
        return Tokens(
            length=self.length,
            batch_size=self.batch_size,
            eval_lengths=self.eval_lengths,
            splits=tuple(evaluated),
            stream=self.make_stream({name: len(split) for name, split in evaluated.items()}),
            vocab_size=corpus.vocab_size,
            corpus=corpus,
            train=train,
            bytes_per_token=_bytes_per_token(evaluated["validation"]),
            held_out=held_out,
            data=data,
            data_axes=axes,
            packed=packed,
            restart_positions=packed and self.restart_positions,
            streamed=streamed,
            files={**corpus.files, **files_of(held_out)},
        )


def _cut(options: TokensOptions, split: Split, longest: int, held_out: str = "") -> Pieces:
    """Returns a split in pieces. Raises UserError if it is shorter than a window."""
    if (pieces := cut(split, options.batch_size, longest)) is None:
        key, value = "length", options.length
        if longest != options.length:
            key, value = "eval_lengths", longest
        what = f"the held-out set {held_out!r}"
        if not held_out:
            what = f"the {split.name} split of {options.path}"
        raise UserError(
            f"task.{key}={value} is too long: {what} has {split.tokens:,} tokens, and a window "
            f"needs {longest + 1:,}."
        )
    return pieces


def _check_addressable(options: TokensOptions, pieces: Pieces) -> None:
    # Places in a piece are drawn, and addressed, as int32.
    if pieces.shape[1] > LONGEST_PIECE:
        raise UserError(
            f"task.batch_size={options.batch_size} cuts the {pieces.split.name} split into pieces "
            f"of {pieces.shape[1]:,} tokens; int32 numbers places up to {LONGEST_PIECE:,}. Give "
            "larger batches."
        )
