"""Small recurrent models with attention that can be decoded, with every kind of state leaf."""

import functools
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from research.models.model import parameter_shapes

WIDTH = 8


@dataclass(frozen=True)
class ToyConfig:
    """Static description; `heads` = 0 reads a mean of the source instead of attending.

    `ctc_weight` is 0 without CTC, and 1 with nothing else.
    """

    vocab_size: int
    length: int
    heads: int = 2
    ctc_weight: float = 0.0


class Toy(nn.Module):
    """Reads the source by attention from a recurrent state; remembers which tokens it has seen."""

    config: ToyConfig

    def setup(self):
        wide = nn.initializers.normal(1.0)
        self.table = self.param("table", wide, (self.config.vocab_size, WIDTH))
        self.place = self.param("place", wide, (self.config.length, WIDTH))
        self.recur = self.param("recur", wide, (3 * WIDTH, WIDTH))
        self.query = self.param("query", wide, (max(self.config.heads, 1), WIDTH, WIDTH))
        self.head = self.param("head", wide, (2 * WIDTH, self.config.vocab_size))

    def encode(self, source, source_length):
        keys = jnp.tanh(self.table[source] + self.place[: source.shape[1]])
        real = jnp.arange(source.shape[1]) < source_length[:, None]
        return {"keys": jnp.where(real[..., None], keys, 0.0), "valid": real}

    def init_state(self, memory, length):
        size = memory["keys"].shape[0]
        # The batch is the first axis of one leaf, the second of another, and none of the third.
        return {
            "hidden": jnp.zeros((size, WIDTH)),
            "seen": jnp.zeros((length, size), jnp.int32),
            "number": jnp.int32(0),
        }

    def step(self, memory, state, token):
        seen = state["seen"].at[state["number"]].set(token)
        total = jnp.where(seen[..., None] > 0, self.table[seen], 0.0).sum(0)
        inner = jnp.concatenate([self.table[token], state["hidden"], total], -1) @ self.recur
        hidden = jnp.tanh(inner)
        energy = jnp.einsum("bm,hmn,bsn->bhs", hidden, self.query, memory["keys"])
        energy = jnp.where(memory["valid"][:, None], energy, -1e9)
        weights = jax.nn.softmax(energy, -1)
        context = jnp.einsum("bhs,bsm->bm", weights, memory["keys"]) / weights.shape[1]
        if not self.config.heads:
            weights = weights[:, :0]
        # Else one of five tokens would end most sequences at once.
        special = jnp.array([-4.0, -4.0, -2.5])
        logits = (jnp.concatenate([hidden, context], -1) @ self.head).at[:, :3].add(special)
        new = {"hidden": hidden, "seen": seen, "number": state["number"] + 1}
        return logits, new, weights

    def run(self, batch):
        memory = self.encode(batch["source"], batch["source_length"])
        state = self.init_state(memory, batch["inputs"].shape[1])
        found = []
        for t in range(batch["inputs"].shape[1]):
            logits, state, weights = self.step(memory, state, batch["inputs"][:, t])
            found.append((logits, weights))
        logits, weights = zip(*found, strict=True)
        return jnp.stack(logits, 1), jnp.stack(weights, 2)

    def forward(self, batch, deterministic: bool = True):
        return self.run(batch)[0]

    def weights(self, batch):
        return self.run(batch)[1]


class Listening(Toy):
    """Reads frames (B, S, WIDTH), two to a position of the memory, and can have CTC."""

    def encode(self, source, source_length):
        even = jnp.pad(source, ((0, 0), (0, source.shape[1] % 2), (0, 0)))
        keys = jnp.tanh(even.reshape(len(source), -1, 2, WIDTH).mean(2))
        valid = jnp.arange(keys.shape[1]) < ((source_length + 1) // 2)[:, None]
        memory = {"keys": jnp.where(valid[..., None], keys, 0.0), "valid": valid}
        if self.config.ctc_weight:
            logits = 3 * keys @ self.head[:WIDTH]
            memory["ctc"] = jax.nn.log_softmax(logits.at[..., 1:3].set(-1e9))
        return memory

    def ctc(self, memory):
        return memory["ctc"], memory["valid"].sum(-1)


def make_listening(seed: int, **config: Any) -> tuple[Listening, Any]:
    """Returns a model of frames and random parameters."""
    _, params = make_toy(seed, **config)
    return Listening(ToyConfig(**config)), params


def frames(seed: int, number: int, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random frames (number, longest, WIDTH), zeros after the last, and their numbers."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, longest + 1, number).astype(np.int32)
    source = random.normal(0, 1.5, (number, longest, WIDTH)).astype(np.float32)
    there = np.arange(longest) < lengths[:, None]
    return np.where(there[..., None], source, 0.0).astype(np.float32), lengths


def make_toy(seed: int, **config: Any) -> tuple[Toy, Any]:
    """Returns a model and random parameters."""
    model = Toy(ToyConfig(**config))
    return model, jax.device_get(_init(model, seed))


@functools.partial(jax.jit, static_argnums=0)
def _init(model: Toy, seed: int) -> Any:
    tokens = jnp.ones((1, 2), jnp.int32)
    batch = {"source": tokens, "source_length": jnp.array([2]), "inputs": tokens}
    return model.init(jax.random.key(seed), batch, method="forward")["params"]


def drawn(model: Any, scale: float) -> Any:
    """Returns random parameters of a model of the library: NumPy's, and no program to draw them."""
    tokens = np.ones((1, 2), np.int32)
    batch = {"source": tokens, "source_length": np.array([2], np.int32)}
    random = np.random.default_rng(1)

    def draw(path: Any, shape: Any) -> np.ndarray:
        mean = float(path[-1].key == "scale")  # of a norm
        return (mean + scale * random.normal(size=shape.shape)).astype(np.float32)

    shapes = parameter_shapes(model, batch | {"inputs": tokens, "targets": tokens})
    return jax.tree_util.tree_map_with_path(draw, shapes)


def sources(seed: int, number: int, longest: int, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random sources of 1 to `longest` tokens, EOS last."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, longest + 1, number)
    source = np.zeros((number, longest), np.int32)
    for row, n in zip(source, lengths, strict=True):
        row[: n - 1] = random.integers(3, vocab, n - 1)
        row[n - 1] = 2
    return source, lengths.astype(np.int32)
