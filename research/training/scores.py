"""Scores that are computed only after training: decoding, alignment and streaming."""

import functools
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from research.decoding.decode import decode_all, static_lengths
from research.decoding.search import Search, read_search
from research.decoding.streaming import stream_scores, streaming
from research.interpret.alignment_measures import alignment_scores
from research.messages import progress_of
from research.models.model import Model
from research.runs.store import write_text
from research.tasks.task import Batch, Sums, Task
from research.training.program import Program

SPEED = "decoded_tokens_per_second"
HIGHER_IS_BETTER: Mapping[str, bool | None] = {
    SPEED: True,
    "stream_loss": False,
    "stream_perplexity_ratio": False,
}
"""{metric: direction} of the metrics of this file that do not depend on the task."""


def score_names(task: Task, split: str) -> Sequence[str]:
    """Returns the names of a split's metrics that exist only after training, except sliced ones.

    Alignment metrics are listed for any model, though a model without attention has none.
    """
    decoded = (*task.scores, SPEED) if split in task.decoded else ()
    streamed = ("stream_loss", "stream_perplexity_ratio") if task.stream else ()
    return (*decoded, *task.aligned, *streamed)


def score_decoded(
    program: Program, config: ConfigDict, params: Any, run: Path
) -> dict[str, dict[str, Any]]:
    """Computes the metrics that exist only after training, as {split: {metric: value}}.

    These are scores of decoded sequences, measures of alignments where true ones are known, and
    losses of streamed text: "stream_loss_by_sinks", its last entry "stream_loss", and
    "stream_perplexity_ratio", the perplexity with the fewest sinks over that with the most. Files
    that the task keeps, such as hypotheses, are written into the run directory.

    Args:
      program: the run's program.
      config: the run's config; `decoding` has the search options.
      params: parameters of one member, host arrays.
      run: the run directory.
    """
    task, model = program.task, program.model
    search = read_search(config) if task.decoded else None
    found: dict[str, dict[str, Any]] = {}
    for split in task.splits:
        found[split] = {}
        if search is not None and split in task.decoded:
            found[split] = _decoded(task, model, params, search, split, run)
        if task.aligned:
            found[split] |= _aligned(model, params, task.alignments(split))
        if task.stream:
            found[split] |= _streamed(task, model, params, split)
    return found


def _streamed(task: Task, model: Any, params: Any, split: str) -> dict[str, Any]:
    """Returns the loss in nats per token on text much longer than the window, by number of sinks.

    Only tokens from position `window` on count: there the cache is full and evicts tokens.
    """
    stream, tokens = task.stream, task.streams(split)
    assert stream is not None
    losses = []
    for sinks in stream.sinks:
        able = streaming(model, stream.window, sinks)
        scores = stream_scores(able, params, tokens)
        losses.append(-float(scores.log_prob[:, stream.window :].mean()))
    return {
        "stream_loss_by_sinks": losses,
        "stream_loss": losses[-1],
        "stream_perplexity_ratio": math.exp(losses[0] - losses[-1]),
    }


def _decoded(
    task: Task, model: Model, params: Any, search: Search, split: str, run: Path
) -> dict[str, Any]:
    sources = {name: np.asarray(leaf) for name, leaf in task.sources(split).items()}
    number = len(sources["source_length"])
    began = time.perf_counter()
    found = decode_all(
        model,
        params,
        sources["source"],
        sources["source_length"],
        search,
        lengths=static_lengths(sources["source"].shape[1]),
        progress=progress_of(number, "sequences"),
    )
    hypotheses = [ranked[0].tokens for ranked in found]
    seconds = time.perf_counter() - began
    scored = task.score(split, hypotheses)
    for name, text in scored.files.items():
        write_text(run / name, text)
    # The time includes compilation, which users of the decoder wait for too.
    tokens = sum(len(h) + 1 for h in hypotheses)
    return {**scored.metrics, **scored.slices, SPEED: tokens / seconds}


def _aligned(model: Model, params: Any, batch: Batch) -> dict[str, float]:
    """Returns alignment measures of the head-averaged weights; {} for models without attention."""
    sums = _alignment_sums(model, params, batch)
    return {name: float(s.total[0] / s.count[0]) for name, s in sums.items()}


@functools.partial(jax.jit, static_argnums=0)  # compile once for all members
def _alignment_sums(model: Model, params: Any, batch: Batch) -> dict[str, Sums]:
    weights = model.apply({"params": params}, batch, method="weights")
    if not weights.shape[1]:
        return {}
    return alignment_scores(weights.mean(1, keepdims=True), batch)
