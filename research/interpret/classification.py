"""Classifies texts, with an attribution of each prediction to the words of the text."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from research.errors import UserError, check_name
from research.interpret import attribution
from research.models.pooling import ATTENTION
from research.tasks.special_tokens import SpecialTokens
from research.tasks.task import UNKNOWN
from research.tasks.text.tokenizer import Tokenizer

LEAVE_ONE_OUT = "leave_one_out"
METHODS = (LEAVE_ONE_OUT, "integrated_gradients", "gradient_times_input", ATTENTION)


class TextClassifier(NamedTuple):
    """A classifier with everything needed to classify texts.

    Attributes:
      model: a classifier.
      params: its parameters.
      tokenizer: tokenizer of the run.
      labels: names of the C classes.
      method: attribution method, a name in `METHODS`.
      special: ids of padding, of the unknown word, and of what a text has around it.
    """

    model: Any
    params: Any
    tokenizer: Tokenizer
    labels: Sequence[str]
    method: str = LEAVE_ONE_OUT
    special: SpecialTokens = SpecialTokens()


class Classified(NamedTuple):
    """The prediction for one text.

    Attributes:
      label: the most probable label.
      probability: probability of the label.
      pieces: the text of each token that the model read.
      attributions: contribution of each piece to the log-odds of the label, in nats, negative if
        it speaks against the label; for attention, weights that sum to one.
      num_truncated: number of pieces beyond the model's maximum length, which were not read.
    """

    label: str
    probability: float
    pieces: list[str]
    attributions: list[float]
    num_truncated: int


def check_method(method: str, model: Any) -> None:
    """Raises UserError for an unknown method, or for attention if the model does not have it."""
    check_name("--by", method, METHODS)
    if method == ATTENTION and model.config.pooling != ATTENTION:
        raise UserError(
            f"--by=attention: a model with model.pooling={model.config.pooling!r} has no attention "
            f"over its words; use {', '.join(m for m in METHODS if m != ATTENTION)}."
        )


def classify(classifier: TextClassifier, text: str) -> Classified:
    """Returns the prediction for a text. Raises UserError for a text without words."""
    longest, special = classifier.model.config.length, classifier.special
    tokens, pieces = classifier.tokenizer.encode(text), classifier.tokenizer.split(text)
    if not len(tokens):
        raise UserError("the text is empty; give at least one word.")
    kept = special.around(tokens.tolist(), longest)
    padded = np.full(min(_room(len(kept)), longest), special.pad, np.int32)
    padded[: len(kept)] = kept
    log_p, found = explain(
        classifier.model,
        classifier.method,
        classifier.params,
        padded,
        np.int32(len(kept)),
        np.int32(special.unknown),
    )
    before, after = (classifier.tokenizer.pieces(ids) for ids in (special.before, special.after))
    label = int(log_p.argmax())
    return Classified(
        label=classifier.labels[label],
        probability=float(np.exp(log_p[label])),
        pieces=[*before, *pieces[: special.room(longest)], *after],
        attributions=[float(a) for a in found[: len(kept)]],
        num_truncated=max(0, len(tokens) - special.room(longest)),
    )


def _room(number: int) -> int:
    """Returns the next power of two, at least 8, so that only few shapes are compiled."""
    return max(8, 1 << (number - 1).bit_length())


def log_odds(logits: Float[Array, " C"], label: Int[Array, ""]) -> Float[Array, ""]:
    """Returns log p(label) / (1 - p(label)): with two classes, the difference of their logits."""
    # From logits, as log p - log(1 - p) is infinite once p rounds to 1.
    others = jnp.where(jnp.arange(len(logits)) == label, -jnp.inf, logits)
    return logits[label] - jax.nn.logsumexp(others)


@functools.partial(jax.jit, static_argnums=(0, 1))
def explain(
    model: Any,
    method: str,
    params: Any,
    tokens: Int[Array, " T"],
    length: Int[Array, ""],
    unknown_token: int | Int[Array, ""] = UNKNOWN,
) -> tuple[Float[Array, " C"], Float[Array, " T"]]:
    """Returns log p of every class, and the attributions of the most probable class.

    Args:
      model: a classifier.
      method: a name in `METHODS`.
      params: parameters of the classifier.
      tokens: right-padded tokens.
      length: number of tokens without padding.
      unknown_token: id of the unknown word.
    """
    variables, lengths = {"params": params}, jnp.asarray(length)[None]

    def batch(tokens: Array) -> dict[str, Array]:
        return {"inputs": tokens[None], "length": lengths}

    logits = model.apply(variables, batch(tokens), method="forward")[0]
    label = logits.argmax()

    def of_tokens(tokens: Array) -> Array:
        return log_odds(model.apply(variables, batch(tokens), method="forward")[0], label)

    def of_embeddings(x: Array) -> Array:
        out = model.apply(variables, x[None], lengths, method="from_embeddings")
        return log_odds(out[0], label)

    def embed(tokens: Array) -> Array:
        return model.apply(variables, tokens[None], method=lambda m, t: m.embed(t))[0]

    def unknown() -> Array:
        return embed(jnp.full_like(tokens, unknown_token))

    ways: dict[str, Callable[[], Array]] = {
        LEAVE_ONE_OUT: lambda: attribution.leave_one_out(of_tokens, tokens, unknown_token),
        "integrated_gradients": lambda: attribution.integrated_gradients(
            of_embeddings, embed(tokens), unknown()
        ),
        "gradient_times_input": lambda: attribution.gradient_times_input(
            of_embeddings, embed(tokens)
        ),
        ATTENTION: lambda: model.apply(variables, batch(tokens), method="weights")[0, 0, 0],
    }
    return jax.nn.log_softmax(logits), ways[method]()
