"""Adds measures of attention heads to the metrics of a run, for training logs and sweep outcomes.

`config.interpret.measures` names them. Each adds "NAME", a single number, and "NAME_by_head", one
number per head. "NAME" is the maximum over heads if the measure asks whether any head does
something (induction), and the mean over heads if it describes heads in general (entropy). The
maximum is taken in each batch, so it lies slightly above the largest per-head mean.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from research.errors import UserError
from research.interpret.capture import AttentionRecord, attention_records, record
from research.interpret.heads import head_measures
from research.models.model import Model, parameter_shapes
from research.tasks.task import Batch, Sums, Task

Rows = Bool[Array, "B T"]
Tokens = Int[Array, "B T"] | None
Compute = Callable[[AttentionRecord, Rows, Tokens], Sums]


class Measure(NamedTuple):
    """A measure of attention heads.

    Attributes:
      kind: the kind of attention it measures: "self", "cross" or "pooling".
      compute: (part, rows to include, tokens) -> sums (H,).
      max_over_heads: whether to report the maximum over heads; otherwise the mean.
      tokens: whether `compute` needs the tokens at each position.
    """

    kind: str
    compute: Compute
    max_over_heads: bool = False
    tokens: bool = False


def _of_weights(measure: Callable[..., Sums]) -> Compute:
    return lambda part, rows, _: measure(part.sites["weights"], rows=rows)


def _of_visible(measure: Callable[..., Sums]) -> Compute:
    return lambda part, rows, _: measure(part.sites["weights"], part.sites["visible"], rows)


def _of_tokens(measure: Callable[..., Sums]) -> Compute:
    return lambda part, rows, tokens: measure(part.sites["weights"], tokens, rows)


SPREAD = {
    "entropy": _of_weights(head_measures.entropy),
    "confidence": _of_weights(head_measures.confidence),
}
MEASURES: dict[str, Measure] = {
    **{name: Measure("self", compute) for name, compute in SPREAD.items()},
    "normalized_entropy": Measure("self", _of_visible(head_measures.normalized_entropy)),
    "distance": Measure("self", _of_weights(head_measures.distance)),
    "diagonality": Measure("self", _of_visible(head_measures.diagonality), max_over_heads=True),
    "previous_token": Measure(
        "self", _of_weights(head_measures.previous_token), max_over_heads=True
    ),
    "sink": Measure("self", _of_weights(head_measures.sink), max_over_heads=True),
    "duplicate_token": Measure(
        "self", _of_tokens(head_measures.duplicate_token), max_over_heads=True, tokens=True
    ),
    "induction": Measure(
        "self", _of_tokens(head_measures.induction), max_over_heads=True, tokens=True
    ),
    **{f"{name}_of_cross": Measure("cross", compute) for name, compute in SPREAD.items()},
    **{f"{name}_of_pooling": Measure("pooling", compute) for name, compute in SPREAD.items()},
}
"""Measures by the names accepted in `config.interpret.measures`."""

SITES = ("weights", "visible")


def with_head_measures(
    task: Task, model: Model, measures: Sequence[str] = ()
) -> Callable[[PyTree, Batch], tuple[Any, dict[str, Sums]]]:
    """Returns a function (params, batch) -> (outputs, sums of the task's metrics and the measures).

    `params` are the parameters of one member, outputs those of the model.
    """

    def metrics(params: PyTree, batch: Batch) -> tuple[Any, dict[str, Sums]]:
        if not measures:
            outputs = model.apply({"params": params}, batch, method="forward")
            return outputs, task.metrics(outputs, batch)
        outputs, recorded = record(model, params, batch, SITES)
        found = head_measure_sums(attention_records(recorded), batch, measures)
        return outputs, task.metrics(outputs, batch) | found

    return metrics


def head_measure_sums(
    found: Sequence[AttentionRecord], batch: Batch, measures: Sequence[str]
) -> dict[str, Sums]:
    """Returns the measures of activations recorded on a batch.

    Args:
      found: parts with `SITES`.
      batch: the batch that they were recorded on.
      measures: names in `MEASURES`.

    Raises UserError for a measure of a kind of attention that the model does not have.
    """
    sums: dict[str, Sums] = {}
    for name in measures:
        measure = MEASURES[name]
        mine = records_of_kind(found, name)
        stands = [key_tokens(p, batch) if measure.tokens else None for p in mine]
        each = [
            measure.compute(p, measured_rows(p, batch), tokens)
            for p, tokens in zip(mine, stands, strict=True)
        ]
        total, count = (jnp.concatenate([getattr(s, k) for s in each]) for k in Sums._fields)
        ratio = total / jnp.maximum(count, 1)
        there = (count > 0).any()
        one = ratio.max() if measure.max_over_heads else total.sum() / jnp.maximum(count.sum(), 1)
        sums[name] = Sums(jnp.where(there, one, 0), there.astype(jnp.float32))
        sums[f"{name}_by_head"] = Sums(total, count)
    return sums


def records_of_kind(found: Sequence[AttentionRecord], name: str) -> list[AttentionRecord]:
    """Returns the parts that a measure applies to. Raises UserError if there is none."""
    kind = MEASURES[name].kind
    mine = [p for p in found if p.kind == kind and "weights" in p.sites]
    if not mine:
        raise UserError(
            f"interpret.measures: {name!r} is of {kind}-attention, and this model has none."
        )
    return mine


def measure_labels(model: Model, batch: PyTree, measures: Sequence[str]) -> dict[str, list[str]]:
    """Returns the names of the heads in each "NAME_by_head": "layer 1.0" is head 0 of layer 1.

    Args:
      model: the model to measure.
      batch: shapes of a batch.
      measures: names of measures.

    Raises UserError for a measure of a kind of attention that the model does not have, or one that
    needs tokens where the input is sound.
    """
    if not measures:
        return {}
    named = record_shapes(model, batch)
    heads = {}
    for name in measures:
        mine = records_of_kind(named, name)
        if MEASURES[name].tokens and any(key_tokens(p, batch) is None for p in mine):
            raise UserError(
                f"interpret.measures: {name!r} needs tokens, and speech features have none."
            )
        heads[f"{name}_by_head"] = [
            f"{p.name}.{head}" for p in mine for head in range(p.sites["weights"].shape[1])
        ]
    return heads


def record_shapes(
    model: Model, batch: PyTree, sites: Sequence[str] = SITES
) -> list[AttentionRecord]:
    """Returns the parts that recording `sites` would return, with shapes in place of arrays."""
    found: list[AttentionRecord] = []

    def look(params: PyTree, batch: Batch) -> None:
        for part in attention_records(record(model, params, batch, sites)[1]):
            shapes: Any = {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in part.sites.items()}
            found.append(part._replace(sites=shapes))

    jax.eval_shape(look, parameter_shapes(model, batch), batch)
    return found


def measured_rows(part: AttentionRecord, batch: Batch) -> Rows:
    """Returns a mask of the queries of a part to measure, (B, T), False at padding.

    A query of self-attention is padding if it may not attend to itself; queries of a decoder with a
    source are padding if they have no target. Examples without a label only fill up a batch.
    """
    rows, length = part.sites["weights"].shape[0], part.sites["weights"].shape[2]
    asked = jnp.ones((rows, length), bool)
    if part.kind == "self" and "visible" in part.sites:
        own = jnp.diagonal(part.sites["visible"], axis1=-2, axis2=-1)
        asked = asked & own
    if "label" in batch:
        asked = asked & (batch["label"] >= 0)[:, None]
    if "eval_length" in batch:  # measure heads only at the training length
        asked = asked & (batch["eval_length"] < 0)[:, None]
    reads_target = part.kind == "cross" or part.name.startswith(("decoder", "speller"))
    if reads_target and "targets" in batch:
        asked = asked & (batch["targets"] >= 0)
    return asked


def key_tokens(part: AttentionRecord, batch: Batch) -> Tokens:
    """Returns the tokens at the positions of self-attention; None if the input is sound.

    A class token in front of the sequence is represented by -1.
    """
    source = part.name.startswith(("encoder", "listener"))
    tokens = batch["source" if source else "inputs"]
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        return None
    extra = part.sites["weights"].shape[2] - tokens.shape[1]
    return jnp.pad(tokens, ((0, 0), (extra, 0)), constant_values=-1) if extra else tokens
