"""What a trained classifier says of a text, and which of its words made it say so."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from research.errors import UserError, check_name
from research.interpret import attribution
from research.models.classifier import ATTENTION
from research.tasks.task import PAD, UNKNOWN
from research.tasks.text.tokenizer import OpenTokenizer

LEAVE_ONE_OUT = "leave_one_out"
METHODS = (LEAVE_ONE_OUT, "integrated_gradients", "gradient_times_input", ATTENTION)


class TextClassifier(NamedTuple):
    """What it takes to classify.

    Attributes:
      model: a classifier.
      params: its parameters.
      tokenizer: of the run.
      labels: what the C classes are called.
      by: a name in `METHODS`, how words get their attributions.
    """

    model: Any
    params: Any
    tokenizer: OpenTokenizer
    labels: Sequence[str]
    by: str = LEAVE_ONE_OUT


class Classified(NamedTuple):
    """What became of one text.

    Attributes:
      label: the most probable one.
      probability: of the label.
      pieces: parts of the text that were read.
      attributions: how much each piece spoke for the label, in nats of its log-odds, negative
        against it; for attention, weights that sum to one.
      cut: how many pieces were beyond the longest text and are not among these.
    """

    label: str
    probability: float
    pieces: list[str]
    attributions: list[float]
    cut: int


def check_method(by: str, model: Any) -> None:
    """Raises UserError for a method that does not exist, or attention of a model without it."""
    check_name("--by", by, METHODS)
    if by == ATTENTION and model.config.pooling != ATTENTION:
        raise UserError(
            f"--by=attention: a model with model.pooling={model.config.pooling!r} has no attention "
            f"over its words; use {', '.join(m for m in METHODS if m != ATTENTION)}."
        )


def classify(classifier: TextClassifier, text: str) -> Classified:
    """Returns what the classifier says of a text. Raises UserError for one without a word."""
    longest = classifier.model.config.length
    tokens, pieces = classifier.tokenizer.encode(text), classifier.tokenizer.split(text)
    if not len(tokens):
        raise UserError("the text is empty; give at least one word.")
    kept = tokens[:longest]
    padded = np.full(min(_room(len(kept)), longest), PAD, np.int32)
    padded[: len(kept)] = kept
    log_p, found = explain(
        classifier.model, classifier.by, classifier.params, padded, np.int32(len(kept))
    )
    label = int(log_p.argmax())
    return Classified(
        label=classifier.labels[label],
        probability=float(np.exp(log_p[label])),
        pieces=pieces[: len(kept)],
        attributions=[float(a) for a in found[: len(kept)]],
        cut=len(tokens) - len(kept),
    )


def _room(number: int) -> int:
    """Returns the next power of two from 8 on: few shapes are compiled then."""
    return max(8, 1 << (number - 1).bit_length())


def log_odds(logits: Float[Array, " C"], label: Int[Array, ""]) -> Float[Array, ""]:
    """Returns log p(label) / (1 - p(label)): with two classes, the difference of their logits."""
    others = jnp.where(jnp.arange(len(logits)) == label, -jnp.inf, logits)
    return logits[label] - jax.nn.logsumexp(others)


@functools.partial(jax.jit, static_argnums=(0, 1))
def explain(
    model: Any, by: str, params: Any, tokens: Int[Array, " T"], length: Int[Array, ""]
) -> tuple[Float[Array, " C"], Float[Array, " T"]]:
    """Returns log p of every class, and attributions of the most probable one.

    Args:
      model: a classifier.
      by: a name in `METHODS`.
      params: its parameters.
      tokens: right-padded.
      length: how many of them there are.
    """
    variables, lengths = {"params": params}, jnp.asarray(length)[None]

    def batch(tokens: Array) -> dict[str, Array]:
        return {"inputs": tokens[None], "length": lengths}

    logits = model.apply(variables, batch(tokens), method="of_batch")[0]
    label = logits.argmax()

    def of_tokens(tokens: Array) -> Array:
        return log_odds(model.apply(variables, batch(tokens), method="of_batch")[0], label)

    def of_embeddings(x: Array) -> Array:
        out = model.apply(variables, x[None], lengths, method="from_embeddings")
        return log_odds(out[0], label)

    def embed(tokens: Array) -> Array:
        return model.apply(variables, tokens[None], method=lambda m, t: m.embed(t))[0]

    def unknown() -> Array:
        return embed(jnp.full_like(tokens, UNKNOWN))

    ways: dict[str, Callable[[], Array]] = {
        LEAVE_ONE_OUT: lambda: attribution.leave_one_out(of_tokens, tokens, UNKNOWN),
        "integrated_gradients": lambda: attribution.integrated_gradients(
            of_embeddings, embed(tokens), unknown()
        ),
        "gradient_times_input": lambda: attribution.gradient_times_input(
            of_embeddings, embed(tokens)
        ),
        ATTENTION: lambda: model.apply(variables, batch(tokens), method="weights")[0, 0, 0],
    }
    return jax.nn.log_softmax(logits), ways[by]()
