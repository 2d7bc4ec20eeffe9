"""Language modelling on token shards: predicts the next token in random windows of a corpus.

Windows start anywhere and may reach over the ends of documents, as in nanoGPT. The corpus lies on
the devices, in pieces that are split over them (`pieces`), or is read from disk ahead of need.
Either way the batch of a step is the same.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from research.errors import UserError
from research.options import option
from research.tasks.task import Batch, Sums
from research.tasks.text.language_modeling import LanguageModeling, LanguageModelingOptions
from research.tasks.text.tokenizer import CORPUS, FILE
from research.tasks.tokens.corpus import Corpus, Split, open_corpus
from research.tasks.tokens.pieces import LONGEST_PIECE, Chunk, Pieces, cut


@dataclass(frozen=True, kw_only=True)
class Tokens(LanguageModeling):
    """Language modelling on token shards; see `Task` for the attributes.

    `data` is {"train": (G, N), "validation": (G', N')} `Pieces` of uint16 or uint32 tokens;
    without "train" if streamed. Then training also reads {"windows": (P, K, B, T + 1), "first": ()
    int32}, the windows of K steps and the number of the first of them.

    Attributes:
      corpus: the corpus.
      train: the training split in pieces.
      bytes_per_token: bytes of validation text for each of its tokens; 0: unknown.
    """

    higher_is_better = {**LanguageModeling.higher_is_better, "bits_per_byte": False}
    corpus: Corpus = field(hash=False)
    train: Pieces
    bytes_per_token: float = 0.0

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
            return _shifted(jax.lax.dynamic_index_in_dim(data["windows"], place, keepdims=False))
        return _shifted(_windows(data["train"], self.starts(key, step), self.length))

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
        """The validation split, read now."""
        pieces = self.data["validation"]
        return {"validation": pieces[slice(None), slice(None)]}

    def evaluation(
        self,
        data: Mapping[str, jax.Array],
        split: str,
        index: Int[Array, ""],
        total: int,
        bucket: int = 0,
    ) -> Batch:
        """Returns batch `index` of `total`, windows spread evenly over each piece of the split."""
        pieces, length = data[split], self.length_of(bucket)
        places = pieces.shape[1] - self.longest
        each = self.batch_size // pieces.shape[0]
        starts = np.linspace(0, places - 1, total * each).astype(np.int32).reshape(total, each)
        starts = jnp.tile(jnp.asarray(starts)[index], pieces.shape[0])
        return self.with_eval_length(_shifted(_windows(pieces, starts, length)), bucket)

    def text(self, split: str) -> Split:
        """Returns a split of the corpus."""
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


def _shifted(windows: Int[Array, "B T1"]) -> Batch:
    tokens = windows.astype(jnp.int32)
    return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}


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
        0, "size of the vocabulary where there is no manifest, such as 50257", least=0
    )
    data: str = option(
        "device",
        "where the corpus is: on the devices, in parts, or read from disk ahead of need; the "
        "batches are the same",
        allowed=("device", "streamed"),
    )

    def make(self) -> Tokens:
        """Returns the task. Raises UserError if the shards are missing, damaged or too short."""
        corpus = open_corpus(
            self.path, self.validation_path, self.corpus_dtype, self.corpus_vocab_size
        )
        longest = max((self.length, *self.eval_lengths))
        train = _cut(self, corpus.splits["train"], self.length)
        validation = corpus.splits["validation"]
        data = {"validation": _cut(self, validation, longest)}
        axes: dict[str, tuple[str, ...]] = {"validation": ("batch", "")}
        streamed = self.data == "streamed"
        if streamed:
            axes["windows"] = ("member", "", "batch", "")
        else:
            data["train"], axes["train"] = train, ("batch", "")
            if train.shape[1] > LONGEST_PIECE:
                raise UserError(
                    f"task.batch_size={self.batch_size} cuts the corpus into pieces of "
                    f"{train.shape[1]:,} tokens, more than a device can address; give "
                    "task.data='streamed', or larger batches."
                )
        return Tokens(
            length=self.length,
            batch_size=self.batch_size,
            eval_lengths=self.eval_lengths,
            stream=self.make_stream({"validation": validation.tokens}),
            vocab_size=corpus.vocab_size,
            corpus=corpus,
            train=train,
            bytes_per_token=validation.bytes / validation.tokens,
            data=data,
            data_axes=axes,
            streamed=streamed,
            files=corpus.files,
        )


def _cut(options: TokensOptions, split: Split, longest: int) -> Pieces:
    if (pieces := cut(split, options.batch_size, longest)) is None:
        key, value = "length", options.length
        if longest != options.length:
            key, value = "eval_lengths", longest
        raise UserError(
            f"task.{key}={value} is too long: the {split.name} split of {options.path} has "
            f"{split.tokens:,} tokens, and a window needs {longest + 1:,}."
        )
    return pieces
