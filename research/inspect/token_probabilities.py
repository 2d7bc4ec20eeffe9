"""Prints per-token log probabilities of generated or given text."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from research.decoding.streaming import stream_scores, streaming
from research.errors import UserError
from research.messages import tell
from research.training.runs import load_run_config, open_run

COLUMNS = ("sample", "token", "log_prob", "entropy", "rank")
"""Columns of --logprobs: sample number from 1, token as JSON text, nats, nats, and the number of
more probable tokens. log_prob and entropy are the model's, before temperature, top_k and top_p."""


def open_streaming(workdir: Path, window: int, sinks: int) -> tuple[Any, Any]:
    """Opens a run; returns it and its model, with a rolling cache if `window` is above 0.

    Args:
      workdir: directory of the run.
      window: size of the rolling cache in tokens; 0: no rolling cache.
      sinks: how many of these are the first tokens of the text.

    Raises UserError for a directory that holds no run of a text task, and for a model that cannot
    stream.
    """
    config = load_run_config(workdir, ("text", "tokens"))
    if sinks and not window:
        raise UserError(f"--sinks={sinks} are of a rolling cache; give its size with --window.")
    run = open_run(workdir, config)
    if run.tokenizer is None:
        raise UserError(f"{workdir} has no tokenizer: its corpus came without one.")
    return run, streaming(run.model, window, sinks) if window else run.model


def show_scores(tokenizer: Any, model: Any, params: Any, options: Any) -> None:
    """Prints one line per token of --score except the first, and the mean in nats to stderr."""
    tokens = tokenizer.encode_start(options.score)
    if len(tokens) < 2:
        raise UserError("--score takes at least two tokens: the first one is only read.")
    if len(tokens) - 1 > model.config.length and not options.window:
        raise UserError(
            f"--score has {len(tokens):,} tokens, the model has room for "
            f"{model.config.length + 1:,}; a rolling cache takes them all: "
            f"--window={model.config.length} --sinks=4."
        )
    tokens = np.asarray(tokens, np.int32)[None]
    scores = stream_scores(model, params, jnp.asarray(tokens))
    written = tokens[:, 1:], *(np.asarray(a) for a in scores)
    print_lines(tokenizer, [written], options.logprobs or "tsv")
    nats = -float(np.mean(scores.log_prob))
    tell(f"{nats:.4f} nats per token, perplexity {np.exp(nats):.3f}")


def show_lines(tokenizer: Any, chunks: Iterable[Any], form: str) -> None:
    """Prints one line per generated token, as they are generated."""
    print_lines(tokenizer, ((chunk.tokens, *chunk.scores) for chunk in chunks), form)


def print_lines(tokenizer: Any, chunks: Iterable[tuple], form: str) -> None:
    """Prints lines of `COLUMNS` from chunks (tokens, log_prob, entropy, rank), each (B, n)."""
    if form == "tsv":
        print("\t".join(COLUMNS))
    for chunk in chunks:
        for sample, row in enumerate(zip(*chunk, strict=True), 1):
            for token, log_prob, entropy, rank in zip(*row, strict=True):
                text = tokenizer.decode([int(token)])
                values = (sample, text, float(log_prob), float(entropy), int(rank))
                if form == "json":
                    print(json.dumps(dict(zip(COLUMNS, values, strict=True))))
                else:
                    # JSON escapes tabs and line breaks, which would break columns and lines.
                    print(
                        f"{sample}\t{json.dumps(text)}\t{log_prob:.6f}\t{entropy:.6f}\t{int(rank)}"
                    )
        sys.stdout.flush()
