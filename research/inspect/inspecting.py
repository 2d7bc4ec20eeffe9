"""Runs a trained model on one sequence and collects weights, measures and probabilities."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.special
from jaxtyping import Float

from research.errors import UserError, check_name
from research.inspect.inputs import Subject, predicts_tokens
from research.inspect.inspection import KINDS, AttentionMap, Audio, Inspection, Tokens
from research.inspect.run_facts import run_facts, run_warnings
from research.interpret import flow
from research.interpret.capture import AttentionRecord, attention_records, record
from research.interpret.classification import LEAVE_ONE_OUT, explain
from research.interpret.head_metrics import MEASURES, key_tokens, measured_rows
from research.models.model import Model
from research.models.pooling import CLASS_TOKEN
from research.tasks.speech.features import SHIFT_SECONDS
from research.tasks.task import Batch, Sums
from research.training.runs import LoadedRun

SITES = ("weights", "visible", "gap", "entry")
SHOWN = {
    "self": ("entropy", "distance", "previous_token", "sink", "duplicate_token", "induction"),
    "cross": ("entropy_of_cross", "confidence_of_cross"),
    "pooling": ("entropy_of_pooling", "confidence_of_pooling"),
}
"""Measures to show for each kind of attention, named in research/interpret/head_metrics.py."""
ATTRIBUTIONS = (LEAVE_ONE_OUT, "gradient_times_input", "integrated_gradients")
AXES = {"listener": "audio", "decoder": "output", "speller": "output"}
"""Axis that the self-attention of a stack runs over; "input" for all other stacks."""
CLOSE = 1e-3
"""Largest relative difference in float32 that rounding can explain."""
ANSWERS = 12
"""Maximum number of answers to list."""


class Selection(NamedTuple):
    """Selection of layers, heads and kinds of attention to show; empty means all.

    Attributes:
      layers, heads: indices from 0.
      kinds: names in `KINDS`.
    """

    layers: Sequence[int] = ()
    heads: Sequence[int] = ()
    kinds: Sequence[str] = ()


EVERYTHING = Selection()


def inspect(
    run: LoadedRun, subject: Subject, chosen: Selection = EVERYTHING, base: str = ""
) -> Inspection:
    """Runs the model on a sequence and returns everything to show.

    Args:
      run: an opened run, with any kind of model and task.
      subject: the sequence to inspect.
      chosen: selection of layers, heads and kinds of attention.
      base: see `run_facts.facts_of`.

    Raises UserError for layers, heads or kinds that the model does not have.
    """
    outputs, recorded, sums = jax.device_get(_look(run.model, run.params, subject.batch))
    found = attention_records(recorded)
    shown = _chosen([part for part in found if "weights" in part.sites], chosen)
    maps = [_map(subject, part, heads, sums[part.name]) for part, heads in shown]
    if chosen == EVERYTHING:
        maps += _rollouts(run, found)
    tokens, predictions, lines = _outcome(run, subject, outputs)
    gap, warning = _gap(run, found)
    facts = ({"difference from the dense form": gap} if gap else {}) | run_facts(run, base)
    return Inspection(
        title=subject.title,
        facts=facts,
        tokens=tokens,
        maps=maps,
        predictions=predictions,
        lines=[*subject.lines, *lines, *warning, *_without_weights(run, found), *run_warnings(run)],
    )


@functools.partial(jax.jit, static_argnums=0)
def _look(model: Model, params: Any, batch: Batch) -> Any:
    """Returns the outputs, the recorded activations, and the sums of the measures of each part."""
    outputs, recorded = record(model, params, batch, SITES)
    return outputs, recorded, {p.name: _sums(p, batch) for p in attention_records(recorded)}


def _chosen(
    found: Sequence[AttentionRecord], chosen: Selection
) -> list[tuple[AttentionRecord, list[int]]]:
    """Returns the selected parts, each with the indices of its selected heads."""
    for kind in chosen.kinds:
        check_name("--kinds", kind, {part.kind for part in found} or KINDS)
    layers = [part.layer for part in found if part.kind != "pooling"]
    for layer in chosen.layers:
        if layer not in layers:
            there = ", ".join(map(str, sorted(set(layers)))) or "none"
            raise UserError(f"--layers={layer} has no weights; layers that have some: {there}.")
    most = max((part.sites["weights"].shape[1] for part in found), default=0)
    for head in chosen.heads:
        if not 0 <= head < most:
            last = f"the last one is {most - 1}" if most else "this model has none"
            raise UserError(f"--heads={head} does not exist: {last}.")
    kept = []
    for part in found:
        mine = chosen.layers and part.kind != "pooling"
        if (mine and part.layer not in chosen.layers) or part.kind not in (chosen.kinds or KINDS):
            continue
        number = part.sites["weights"].shape[1]
        heads = [h for h in chosen.heads or range(number) if h < number]
        if heads:
            kept.append((part, heads))
    return kept


def _map(
    subject: Subject, part: AttentionRecord, heads: list[int], sums: Mapping[str, Sums]
) -> AttentionMap:
    own = AXES.get(part.stack, "input")
    rows, columns = {
        "self": (own, own),
        "cross": ("output", "input" if subject.input else "audio"),
        "pooling": ("query", "input"),
    }[part.kind]
    weights = np.asarray(part.sites["weights"][0], np.float32)
    notes = []
    if "gap" in part.sites:
        difference = float(part.sites["gap"])
        notes.append(f"{difference:.1e} between the run's own implementation and the dense form")
    if part.kind == "self" and own == "output":
        notes.append("a column is the step that wrote its token, which read the token before")
    some = heads if heads != list(range(len(weights))) else []
    if some:
        notes.append(f"heads {', '.join(map(str, some))} of {len(weights)}")
    return AttentionMap(
        name=part.name,
        kind=part.kind,
        rows=rows,
        columns=columns,
        weights=weights[heads],
        measures={n: _mean(sums[n])[heads] for n in map(_called, SHOWN[part.kind]) if n in sums},
        note="; ".join(notes),
        heads=some,
    )


def _sums(part: AttentionRecord, batch: Batch) -> dict[str, Sums]:
    """Returns the measures of a part's heads, by the names to display."""
    if "weights" not in part.sites:
        return {}
    rows, found = measured_rows(part, batch), {}
    tokens = key_tokens(part, batch) if part.kind == "self" else None
    for name in SHOWN[part.kind]:
        measure = MEASURES[name]
        if tokens is not None or not measure.tokens:
            found[_called(name)] = measure.compute(part, rows, tokens)
    return found


def _called(measure: str) -> str:
    return measure.partition("_of_")[0].replace("_", " ")


def _mean(sums: Sums) -> Float[np.ndarray, " H"]:
    """Returns the mean of each head; NaN if no row was counted."""
    total, count = (np.asarray(a) for a in sums)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _rollouts(run: LoadedRun, found: Sequence[AttentionRecord]) -> list[AttentionMap]:
    """Returns the rollout of each stack in which only self-attention mixes positions."""
    maps = []
    for stack in ("", "encoder", "listener"):
        layers = [p.sites.get("weights") for p in found if p.stack == stack and p.kind == "self"]
        weights = [w for w in layers if w is not None]
        convolves = stack == "listener" and run.config.model.get("listener") == "conformer"
        alike = len({w.shape for w in weights}) == 1 and len(weights) == len(layers)
        if not alike or convolves or any((w < 0).any() for w in weights):
            continue
        through = np.asarray(flow.rollout(np.stack(weights)))[-1]
        axis = AXES.get(stack, "input")
        note = "through all layers: Abnar and Zuidema 2020, equation 1"
        name = f"{stack} rollout".strip()
        maps.append(AttentionMap(name, "self", axis, axis, through, {}, note))
    return maps


Outcome = tuple[Tokens, list[tuple[str, float]], list[str]]


def _outcome(run: LoadedRun, subject: Subject, outputs: Any) -> Outcome:
    """Returns the tokens with their values, the predictions, and lines of text about them."""
    if run.config.model.name == "classifier":
        return _classified(run, subject, outputs)
    if run.config.model.name == "decoder":
        return _continued(run, subject, outputs)
    numbers = {}
    if predicts_tokens(run):
        logits = outputs.logits if subject.input == () else outputs
        numbers = _probabilities(logits[0], subject.batch["targets"][0])
    return (
        Tokens(subject.input, subject.output, {}, numbers, _audio(run, subject)),
        [],
        _summed(numbers),
    )


def _continued(run: LoadedRun, subject: Subject, logits: Any) -> Outcome:
    """Returns the outcome of a language model.

    The values of each token are those of its own prediction, made from the tokens before it.
    """
    if "targets" not in subject.batch:
        tokens = subject.batch["inputs"][0]
        found = _probabilities(logits[0, :-1], tokens[1:])
        numbers = {name: np.append(np.nan, values) for name, values in found.items()}
        return Tokens(subject.input, (), numbers), [], _summed(numbers)
    targets = np.asarray(subject.batch["targets"][0])
    asked = np.flatnonzero(targets >= 0)
    found = _probabilities(logits[0], np.maximum(targets, 0))
    numbers = {
        f"{name} of the answer": np.where(targets >= 0, values, np.nan)
        for name, values in found.items()
    }
    said = logits[0].argmax(-1)
    right = int((said[asked] == targets[asked]).sum())
    each = []
    for t in asked[:ANSWERS]:
        p = float(np.exp(found["log-probability"][t]))
        other = "" if said[t] == targets[t] else f", says {said[t]}"
        each.append(f"{subject.input[t]} → {targets[t]} (p = {p:.3f}{other})")
    more = ", ..." if len(asked) > ANSWERS else ""
    lines = [f"{right} of {len(asked)} answers are right: {', '.join(each)}{more}"]
    return Tokens(subject.input, (), numbers), [], lines


def _classified(run: LoadedRun, subject: Subject, logits: Any) -> Outcome:
    batch, model = subject.batch, run.model
    numbers: dict[str, np.ndarray] = {}
    for by in ATTRIBUTIONS:
        found = explain(
            model, by, run.params, batch["inputs"][0], batch["length"][0], run.special.unknown
        )[1]
        numbers[by.replace("_", " ")] = np.asarray(found, np.float32)
    texts = list(subject.input)
    if model.config.pooling == CLASS_TOKEN:
        texts = ["[class]", *texts]
        numbers = {name: np.append(np.nan, values) for name, values in numbers.items()}
    p = scipy.special.softmax(np.asarray(logits[0], np.float64))
    order = np.argsort(-p, kind="stable")
    predictions = [(run.labels[i], float(p[i])) for i in order]
    lines = [f"Attributions are of the log-odds of {run.labels[order[0]]}, in nats."]
    return Tokens(texts, (), numbers), predictions, lines


def _probabilities(logits: Any, tokens: Any) -> dict[str, Float[np.ndarray, " T"]]:
    """Returns log p of each token and the entropy of its prediction, nats.

    Args:
      logits: (T, V).
      tokens: (T,).
    """
    log_p = scipy.special.log_softmax(np.asarray(logits, np.float64), axis=-1)
    own = np.take_along_axis(log_p, np.asarray(tokens)[:, None], axis=-1)[:, 0]
    return {"log-probability": own, "entropy": scipy.special.entr(np.exp(log_p)).sum(-1)}


def _summed(numbers: Mapping[str, np.ndarray]) -> list[str]:
    values = numbers.get("log-probability", np.zeros(0))
    values = values[np.isfinite(values)]
    if not len(values):
        return []
    total, each = values.sum(), values.mean()
    return [f"Log-probability {total:.3f} nats: {each:.3f} a token over {len(values):,} tokens."]


def _audio(run: LoadedRun, subject: Subject) -> Audio | None:
    source = subject.batch["source"]
    if source.ndim != 3:
        return None
    per_state = SHIFT_SECONDS * 2**run.model.config.listener.levels
    return Audio(np.asarray(source[0], np.float32), SHIFT_SECONDS, per_state)


def _gap(run: LoadedRun, found: Sequence[AttentionRecord]) -> tuple[str, list[str]]:
    """Returns the largest difference between implementation and dense form, and any warning."""
    gaps = {part.name: float(part.sites["gap"]) for part in found if "gap" in part.sites}
    if not gaps:
        return "", []
    name = max(gaps, key=lambda one: gaps[one])
    dtype = run.config.model.dtype
    said = f"{gaps[name]:.1e} of the greatest output, in {name} ({dtype})"
    if gaps[name] <= CLOSE or dtype != "float32":
        return said, []
    return said, [
        f"Attention: the weights below do not give what the model computes. In {name} the dense "
        f"form differs by {gaps[name]:.1e} of the greatest output, above {CLOSE:.0e}."
    ]


def _without_weights(run: LoadedRun, found: Sequence[AttentionRecord]) -> list[str]:
    """Returns lines of text that name the layers without attention weights."""
    lines = []
    recurrent = [p.name for p in found if "entry" in p.sites and "weights" not in p.sites]
    if recurrent:
        lines.append(f"Without weights, being no sum over positions: {', '.join(recurrent)}.")
    if not any("weights" in part.sites for part in found):
        lines.append("This model has no attention: there are no weights to show.")
    return lines
