"""Gradient of a lookup of embeddings: by a product with one-hot vectors against a scatter.

    python -m benchmarks.lookup

16,384 tokens of width 384 in bfloat16, forward and backward, from tables of 64 to 16,384 rows.
Tokens are drawn with the frequencies of Zipf's law. Each round times both; figures are medians of
the rounds, in milliseconds, and medians of the ratios within a round.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from research.models.primitives import one_hot_lookup
from research.training.records.environment import describe_environment

RESULTS = Path(__file__).parent / "results"
TOKENS, WIDTH, ROWS = 16384, 384, (64, 256, 1024, 4096, 16384)
CALLS = 10
"""Of a round, dispatched together."""


def indexed(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """The rows by indexing, whose gradient is a scatter."""
    return table[tokens]


def gradient(rows_of: Callable) -> Callable:
    """Forward and backward."""

    def loss(table: jax.Array, tokens: jax.Array) -> jax.Array:
        return jnp.square(rows_of(table.astype(jnp.bfloat16), tokens)).astype(jnp.float32).sum()

    return jax.jit(jax.grad(loss))


def milliseconds(run: Callable, *arguments: jax.Array) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    jax.block_until_ready([run(*arguments) for _ in range(CALLS)])
    return 1e3 * (time.perf_counter() - began) / CALLS


def measured(rows: int, rounds: int) -> dict[str, float]:
    """One row of the table."""
    often = 1 / np.arange(1, rows + 1)
    drawn = np.random.default_rng(0).choice(rows, TOKENS, p=often / often.sum())
    arguments = jax.random.normal(jax.random.key(0), (rows, WIDTH)), jnp.asarray(drawn)
    runs = {"product": gradient(one_hot_lookup), "scatter": gradient(indexed)}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            times[name].append(milliseconds(run, *arguments))
    # The first round compiles.
    kept = {name: values[1:] for name, values in times.items()}
    ratios = [s / p for s, p in zip(kept["scatter"], kept["product"], strict=True)]
    found = {name: statistics.median(values) for name, values in kept.items()}
    return {"rows": rows, **found, "scatter / product": statistics.median(ratios)}


def main() -> None:
    """Runs the benchmark, prints its table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    name = f"lookup-{jax.default_backend()}.json"
    parser.add_argument("--json", type=Path, default=RESULTS / name)
    arguments = parser.parse_args()
    table = [measured(rows, arguments.rounds) for rows in ROWS]
    for row in table:
        print("  ".join(f"{name} {value:,.4g}" for name, value in row.items()))
    result = {"environment": describe_environment(), "table": table}
    arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
