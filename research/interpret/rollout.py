"""Compares raw attention, attention rollout and attention flow with word importance, by layer.

Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers", Tables 1 and 2: each of the
three, as seen from the vector that is classified, is correlated with the change of the output when
a word is blanked out, and with gradients.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from research.errors import UserError
from research.interpret import attribution, flow
from research.interpret.capture import attention_records, record, stacked
from research.interpret.classification import log_odds
from research.interpret.erasure import batched_logits, leave_one_out_tokens
from research.interpret.explanations import mean, precision, total_variation
from research.interpret.trained import Findings, Trained, batches
from research.messages import progress_of
from research.models.classifier import TRANSFORMER, Classifier
from research.models.model import Model, parameter_shapes
from research.models.pooling import LAST, OF_FIRST_STATE
from research.tasks.task import FRACTION, Batch, Range

METHODS = ("raw", "rollout", "flow")
METRICS: Mapping[str, bool | None] = {
    **{f"{way}_correlation": True for way in METHODS},
    **{f"{way}_gradient_correlation": True for way in METHODS},
    "rollout_beyond_raw": True,
    "flow_beyond_raw": True,
}
"""{metric: whether higher is better}."""
RATIONALE_METRICS: Mapping[str, bool | None] = {
    **{f"truth_{way}": True for way in METHODS},
    "truth_blank_out": True,
}
RANGES: Mapping[str, Range] = {
    **dict.fromkeys(METRICS, (-1.0, 1.0)),
    **dict.fromkeys(("rollout_beyond_raw", "flow_beyond_raw"), (-2.0, 2.0)),
    **dict.fromkeys(RATIONALE_METRICS, FRACTION),
}
"""{metric: lowest and highest possible value}."""
FLOW_EXAMPLES = 32
"""Examples to compute flow for: each needs one maximum flow per word, layer and pooled row."""


class WordScores(NamedTuple):
    """Attention and importance scores of one example of n words; float arrays without padding.

    Attributes:
      by_method: {way: (L, n)} attention to each word, up to each layer.
      blank_out: (n,) change of the output when the word is blanked out, total variation.
      gradient: (n,) norm of the gradient.
      relevant: (n,) whether the word decides the label; None if the task does not mark them.
    """

    by_method: dict[str, np.ndarray]
    blank_out: np.ndarray
    gradient: np.ndarray
    relevant: np.ndarray | None


def check_layers(model: Model, batch: Batch) -> None:
    """Raises UserError unless the model is a transformer classifier with weights in every layer.

    Args:
      model: the model to analyse.
      batch: shapes of a batch.
    """
    if not isinstance(model, Classifier) or model.config.body != TRANSFORMER:
        has = model.config.body if isinstance(model, Classifier) else "none"
        raise UserError(
            "interpret.final='rollout' follows attention through the layers of a classifier; "
            f"model.body={has!r} must be 'transformer'."
        )

    def weights(params: PyTree, batch: Batch) -> list[Array]:
        found = attention_records(record(model, params, batch, ("weights",))[1])
        return [part.sites["weights"] for part in found if part.kind == "self"]

    found = jax.eval_shape(weights, parameter_shapes(model, batch), batch)
    square = [leaf for leaf in found if leaf.shape[-1] == leaf.shape[-2]]
    if len(square) < model.config.layers.num_layers:
        raise UserError(
            "interpret.final='rollout' needs weights between all tokens in every layer, which "
            "the mixer does not have; use one such as model.mixer='softmax'."
        )


def rollout_agreement(trained: Trained) -> Findings:
    """Returns how well raw weights, rollout and flow agree with the importance of words.

    Metrics, means over examples of at least two words: "X_correlation", Spearman's correlation of
    X (raw weights, rollout or flow in the last layer) with blank-out; "X_gradient_correlation",
    with the gradient; "X_beyond_raw", "X_correlation" minus that of raw weights on the same
    examples; "truth_X", precision at k, k being the number of words that decide the label, where
    the task marks them. Flow is computed only for the first `FLOW_EXAMPLES` examples. Slices: all
    of these by layer, except "X_beyond_raw".
    """
    examples = _examples(trained)
    metrics: dict[str, float] = {}
    slices: dict[str, list[float]] = {}
    against: dict[str, dict[str, list[list[float]]]] = {}
    for way in METHODS:
        have = [e for e in examples if way in e.by_method]
        against[way] = {
            f"{way}_correlation": [_spearman(e.by_method[way], e.blank_out) for e in have],
            f"{way}_gradient_correlation": [_spearman(e.by_method[way], e.gradient) for e in have],
        }
        if have[0].relevant is not None:
            against[way][f"truth_{way}"] = [_precision(e.by_method[way], e) for e in have]
        for name, found in against[way].items():
            by_layer = [mean(np.array(column)) for column in zip(*found, strict=True)]
            metrics[name], slices[f"{name}_by_layer"] = by_layer[-1], by_layer
    last = {way: np.array(against[way][f"{way}_correlation"])[:, -1] for way in METHODS}
    for way in METHODS[1:]:
        metrics[f"{way}_beyond_raw"] = mean(last[way] - last["raw"][: len(last[way])])
    if examples[0].relevant is not None:
        metrics["truth_blank_out"] = mean(
            np.array([_precision(e.blank_out[None], e)[0] for e in examples])
        )
    layers = [str(layer + 1) for layer in range(len(examples[0].by_method["raw"]))]
    return Findings(metrics, slices, {name: layers for name in slices})


def _spearman(rows: Float[np.ndarray, "L n"], scores: Float[np.ndarray, " n"]) -> list[float]:
    """Returns Spearman's correlation of each row with the scores; NaN if either is constant."""
    # Imported here because scipy.stats is as slow to import as jax, and few commands need it.
    from scipy.stats import spearmanr

    if np.ptp(scores) == 0:
        return [float("nan")] * len(rows)
    return [
        float(spearmanr(row, scores).statistic) if np.ptp(row) else float("nan") for row in rows
    ]


def _precision(rows: Float[np.ndarray, "L n"], example: WordScores) -> list[float]:
    relevant = np.broadcast_to(np.asarray(example.relevant), rows.shape)
    return precision(rows, relevant, np.ones(rows.shape, bool)).tolist()


def _examples(trained: Trained) -> list[WordScores]:
    """Returns the scores of all labelled examples of two or more words."""
    chosen = list(batches(trained.task, trained.split, trained.examples))
    report = progress_of(sum(len(batch["label"]) for batch in chosen), "examples read")
    found: list[WordScores] = []
    done = 0
    for batch in chosen:
        read = {
            k: np.asarray(v)
            for k, v in record_examples(trained.model, trained.params, batch).items()
        }
        counts = np.asarray((batch["label"] >= 0) & (batch["length"] >= 2))
        for row, counted in enumerate(counts):
            if counted:
                found.append(_of_row(read, batch, row, len(found) < FLOW_EXAMPLES))
            report(done := done + 1)
    return found


def _of_row(read: dict[str, np.ndarray], batch: Batch, row: int, with_flow: bool) -> WordScores:
    words = int(batch["length"][row])
    # Skip the class token, if there is one in front of the words.
    front = read["raw"].shape[-1] - batch["inputs"].shape[1]
    whole = slice(front, front + words)
    by_method = {way: read[way][:, row, whole] for way in ("raw", "rollout")}
    if with_flow:
        inputs = range(front, front + words)
        by_method["flow"] = _flow(read["weights"][:, row], read["reader"][row], inputs)
    return WordScores(
        by_method,
        total_variation(read["blanked"][row, :words], read["logits"][row]),
        read["gradient"][row, :words],
        np.asarray(batch["relevant"])[row, :words] if "relevant" in batch else None,
    )


def _flow(
    weights: Float[np.ndarray, "L H R R"], reader: Float[np.ndarray, " R"], inputs: range
) -> Float[np.ndarray, "L n"]:
    """Returns the flow up to each layer, weighted over output rows by their share in pooling."""
    rows = np.flatnonzero(reader).tolist()
    return np.stack(
        [
            reader[rows] @ flow.flow(weights[: layer + 1], outputs=rows, inputs=inputs)
            for layer in range(len(weights))
        ]
    )


@functools.partial(jax.jit, static_argnums=0)  # compiled once for all members
def record_examples(model: Any, params: PyTree, batch: Batch) -> dict[str, Array]:
    """Returns the attention, logits and gradients of the examples of a batch, arrays by name.

    "weights" (L, B, H, R, R), where R counts the words and the class token in front, if any;
    "reader" (B, R), the share of each row of the last layer in the pooled vector; "raw" and
    "rollout" (L, B, R), attention from these rows; "logits" (B, C); "blanked" (B, T, C), logits
    with each word replaced by the unknown token; "gradient" (B, T), norm of the gradient.
    """
    recorded = record(model, params, batch, ("weights",))[1]
    weights = jnp.nan_to_num(stacked(recorded, "weights").astype(jnp.float32))
    reader = _reader(model, params, batch, weights.shape[-1])

    def one(tokens: Int[Array, " T"], length: Int[Array, ""]) -> tuple[Array, Array, Array]:
        blanked = leave_one_out_tokens(tokens, jnp.arange(len(tokens)) < length)
        # The example and its blanked versions in one call, so that the model is compiled once.
        versions = jnp.concatenate([tokens[None], blanked])
        logits = batched_logits(model, params, versions, jnp.full(len(versions), length))
        label = logits[0].argmax()

        def odds(x: Float[Array, "T M"]) -> Float[Array, ""]:
            given = x[None], length[None]
            out = model.apply({"params": params}, *given, method="from_embeddings")
            return log_odds(out[0], label)

        x = model.apply({"params": params}, tokens[None], method=lambda m, t: m.embed(t))[0]
        return logits[0], logits[1:], attribution.gradient(odds, x)

    logits, blanked, gradient = jax.vmap(one)(batch["inputs"], batch["length"])
    return {
        "weights": weights,
        "reader": reader,
        "raw": jnp.einsum("br,lbrs->lbs", reader, weights.mean(2)),
        "rollout": jnp.einsum("br,lbrs->lbs", reader, flow.rollout(weights)),
        "logits": logits,
        "blanked": blanked,
        "gradient": gradient,
    }


def _reader(model: Any, params: PyTree, batch: Batch, positions: int) -> Float[Array, "B R"]:
    """Returns the share of each row of the last layer in the vector that is classified."""
    pooling, length = model.config.pooling, batch["length"]
    if pooling in OF_FIRST_STATE:
        return jnp.broadcast_to(jax.nn.one_hot(0, positions), (len(length), positions))
    if pooling == LAST:
        return jax.nn.one_hot(length - 1, positions)
    return model.apply({"params": params}, batch, method="weights")[:, 0, 0]
