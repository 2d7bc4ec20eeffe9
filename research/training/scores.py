"""What a trained model decodes, how it reads the source, and what long texts cost it."""

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
from research.decoding.search import Search, search_of
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
"""Direction of what is measured here whatever the task scores."""


def score_names(task: Task, split: str) -> Sequence[str]:
    """Returns the metrics of a split that are known only when training has ended, no sliced ones.

    Those of alignments are not those of a model without attention.
    """
    decoded = (*task.scores, SPEED) if split in task.decoded else ()
    streamed = ("stream_loss", "stream_perplexity_ratio") if task.stream else ()
    return (*decoded, *task.aligned, *streamed)


def score_decoded(
    program: Program, config: ConfigDict, params: Any, run: Path
) -> dict[str, dict[str, Any]]:
    """Returns {split: {metric: value}} of what is known only when training has ended.

    That is what the task wants decoded, known alignments and streams: "stream_loss_by_sinks" and,
    of its last entry, "stream_loss"; "stream_perplexity_ratio" is the perplexity with the fewest
    sinks over that with the most.

    What the task keeps of it, such as the hypotheses, is written into the run.

    Args:
      program: of the run.
      config: its config, of which `decoding` says how to search.
      params: of one member, host arrays.
      run: its directory.
    """
    task, model = program.task, program.model
    search = search_of(config)
    found: dict[str, dict[str, Any]] = {}
    for split in task.splits:
        found[split] = _decoded(task, model, params, search, split, run)
        if task.aligned:
            found[split] |= _aligned(model, params, task.alignments(split))
        if task.stream:
            found[split] |= _streamed(task, model, params, split)
    return found


def _streamed(task: Task, model: Any, params: Any, split: str) -> dict[str, Any]:
    """Nats per token of a text far longer than the window, by the tokens that are kept in sight.

    Tokens count from where the cache is full, and would be without its first ones.
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
    if split not in task.decoded:
        return {}
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
    # Compiling counts too: that is what whoever decodes a test set waits for.
    tokens = sum(len(h) + 1 for h in hypotheses)
    return {**scored.metrics, **scored.slices, SPEED: tokens / seconds}


def _aligned(model: Model, params: Any, batch: Batch) -> dict[str, float]:
    """Measures of the weights averaged over all heads; nothing for models that have none."""
    sums = _alignment_sums(model, params, batch)
    return {name: float(s.total[0] / s.count[0]) for name, s in sums.items()}


@functools.partial(jax.jit, static_argnums=0)  # compiled once for all members
def _alignment_sums(model: Model, params: Any, batch: Batch) -> dict[str, Sums]:
    weights = model.apply({"params": params}, batch, method="weights")
    if not weights.shape[1]:
        return {}
    return alignment_scores(weights.mean(1, keepdims=True), batch)
