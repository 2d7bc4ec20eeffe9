"""Convolution of stride 2 in the body of a loop: a sum over the taps against XLA's own.

    python -m benchmarks.convolution_in_loop

Forward and backward of a listener's two convolutions on a batch of 16 with 288 frames of 40 bands,
as one program and as steps of a loop within one, which is how training runs. Each round times all
four; figures are medians of the rounds, milliseconds to a step.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from research.models.speech.listeners import CHANNELS, convolve_by_two

RESULTS = Path(__file__).parent / "results"
FRAMES, BANDS, BATCH, STEPS = 288, 40, 16, 3


def of_xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same convolution by XLA."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=numbers
    )


def descended(convolve: Callable, x: jax.Array, kernels: Any) -> Any:
    """One step of gradient descent on the kernels."""

    def loss(kernels: Any) -> jax.Array:
        y = x
        for kernel in kernels:
            y = jax.nn.relu(convolve(y, kernel))
        return jnp.square(y).mean()

    return jax.tree.map(lambda k, g: k - 1e-3 * g, kernels, jax.grad(loss)(kernels))


def looped(convolve: Callable, x: jax.Array, kernels: Any) -> Any:
    """The same `STEPS` times, in a loop."""
    return jax.lax.fori_loop(0, STEPS, lambda _, k: descended(convolve, x, k), kernels)


def seconds(run: Callable, *arguments: Any) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    return time.perf_counter() - began


def main() -> None:
    """Runs the benchmark and prints milliseconds to a step and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=RESULTS / "convolution-in-loop-cpu.json")
    arguments = parser.parse_args()
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (BATCH, FRAMES, BANDS, 1))
    shapes = ((3, 3, 1, CHANNELS), (3, 3, CHANNELS, CHANNELS))
    kernels = [0.1 * jax.random.normal(k, s) for k, s in zip(keys[1:], shapes, strict=True)]
    ways = {"taps": convolve_by_two, "xla": of_xla}
    runs = {
        (way, place): (jax.jit(make, static_argnums=0), convolve, steps)
        for way, convolve in ways.items()
        for place, make, steps in (("alone", descended, 1), ("in a loop", looped, STEPS))
    }
    times: dict[tuple[str, str], list[float]] = {name: [] for name in runs}
    for _ in range(arguments.rounds + 1):
        for name, (run, convolve, steps) in runs.items():
            times[name].append(1e3 * seconds(run, convolve, x, kernels) / steps)
    # The first round compiles.
    found = {name: statistics.median(rounds[1:]) for name, rounds in times.items()}
    for (way, place), value in found.items():
        print(f"{way:5} {place:10} {value:9.1f} ms")
    ratios = {p: found["xla", p] / found["taps", p] for p in ("alone", "in a loop")}
    for place, ratio in ratios.items():
        print(f"XLA's takes {ratio:.1f} times as long {place}")
    rows = [{"way": w, "place": p, "milliseconds": v} for (w, p), v in found.items()]
    device = {"platform": jax.default_backend(), "machine": platform.processor() or "cpu"}
    result = {"rows": rows, "ratios": ratios, "jax": jax.__version__, "device": device}
    arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
