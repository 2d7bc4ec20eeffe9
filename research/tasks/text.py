"""Language modelling on a text file: predict the next character or BPE token.

The first 90 % of the text are for training, the last 10 % for validation, as nanoGPT splits tiny
Shakespeare. A training batch is a set of random windows; validation takes windows spread evenly
over the split, the same at every evaluation. The corpus lives on the device.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from research.errors import UserError
from research.tasks.corpora import cache_directory, read_text
from research.tasks.task import (
    Batch,
    Sums,
    Task,
    bin_index,
    bin_label,
    cross_entropy,
    power_of_two_bins,
    sliced,
)
from research.tasks.tokenizer import FILE, Tokenizer, make_tokenizer

TRAINING_FRACTION = 0.9


@dataclass(frozen=True, kw_only=True)
class Text(Task):
    """The task of this file; the attributes are those of `Task`.

    `data` is {"train": (N,), "validation": (N',) int32 tokens, "characters": (V,) float32}.
    """

    tokenizer: Tokenizer
    splits: Sequence[str] = ("validation",)
    select: tuple[str, bool] = ("loss", False)
    next_token: bool = True
    position_bins: list[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "position_bins", power_of_two_bins(1, self.length))

    @property
    def slices(self) -> Mapping[str, Sequence[str]]:
        return {"loss_by_position": [bin_label(*b) for b in self.position_bins]}

    def batch(
        self,
        data: Mapping[str, jax.Array],
        key: Key[Array, ""],
        step: int | Int[Array, ""] = 0,
        bucket: int = 0,
    ) -> Batch:
        """Returns windows at random places of the training split."""
        key = jax.random.fold_in(key, step)
        last = data["train"].shape[0] - self.length
        starts = jax.random.randint(key, (self.batch_size,), 0, last)
        return self._windows(data, "train", starts)

    def evaluation(
        self,
        data: Mapping[str, jax.Array],
        split: str,
        index: Int[Array, ""],
        total: int,
        bucket: int = 0,
    ) -> Batch:
        """Returns batch `index` of `total`, windows spread evenly over the split."""
        last = data[split].shape[0] - self.length - 1
        starts = np.linspace(0, last, total * self.batch_size).astype(np.int32)
        starts = jnp.asarray(starts.reshape(total, self.batch_size))[index]
        return self._windows(data, split, starts)

    def _windows(self, data: Mapping[str, jax.Array], split: str, starts: jax.Array) -> Batch:
        tokens = data[split][starts[:, None] + jnp.arange(self.length + 1)]
        targets = tokens[:, 1:]
        return {
            "inputs": tokens[:, :-1],
            "targets": targets,
            "characters": data["characters"][targets],
        }

    def metrics(self, outputs: Float[Array, "B T V"], batch: Batch) -> dict[str, Sums]:
        """Returns loss (nats per token), bits per character, loss by position in the context."""
        loss = cross_entropy(outputs, batch["targets"])
        count = jnp.float32(loss.size)
        positions = bin_index(1 + jnp.arange(self.length), self.position_bins)
        positions = jnp.broadcast_to(positions, loss.shape)
        return {
            "loss": Sums(loss.sum(), count),
            "bits_per_character": Sums(loss.sum() / jnp.log(2.0), batch["characters"].sum()),
            "loss_by_position": sliced(
                loss, jnp.ones_like(loss), positions, len(self.position_bins)
            ),
        }

    def artifacts(self) -> Mapping[str, str]:
        """Returns the tokenizer."""
        return {FILE: self.tokenizer.to_json()}


def make_text(config: ConfigDict) -> Text:
    """Returns the task of `config.task`. Raises UserError for a text that is missing or short."""
    text = read_text(config.path)
    cut = int(len(text) * TRAINING_FRACTION)
    whole = text if config.tokenizer == "char" else text[:cut]
    tokenizer = make_tokenizer(
        config.tokenizer, whole, config.bpe_vocab_size, cache_directory() / "tokenizers"
    )
    splits = {
        "train": tokenizer.encode(text[:cut]),
        "validation": tokenizer.encode(text[cut:]),
    }
    for name, tokens in splits.items():
        if len(tokens) < config.length + 2:
            raise UserError(
                f"task.length={config.length} is too long: the {name} split of {config.path} "
                f"has {len(tokens)} tokens."
            )
    data = {name: jnp.asarray(tokens) for name, tokens in splits.items()}
    data["characters"] = jnp.asarray(tokenizer.characters)
    return Text(
        length=config.length,
        batch_size=config.batch_size,
        vocab_size=tokenizer.vocab_size,
        tokenizer=tokenizer,
        data=data,
    )
