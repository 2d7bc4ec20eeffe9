"""Cost of reading a corpus from disk ahead of need, against a corpus on the device.

    python -m benchmarks.streaming --path=data/tokens [--steps 100] [--rounds 9]

The text config's model and batch on the token shards of a prepared directory. Each round trains as
many steps with `task.data=device` and with `task.data=streamed`, in spans of `train.log_every`
steps as training does; the ratio of a round is streamed over device.
"""

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from configs import text
from research.configuration import apply_deltas
from research.parallel.parallelize import to_global_arrays
from research.training.feeding import feed_steps
from research.training.program import make_members, make_program

RESULTS = Path(__file__).parent / "results"


def trainer(path: str, data: str, steps: int) -> Callable[[], float]:
    """Returns a function that trains some steps and returns the seconds of a step."""
    deltas = {"task.name": "tokens", "task.path": path, "task.data": data}
    config = apply_deltas(text.get_config(), deltas)
    program = make_program(config)
    host = make_members([config])
    members, seeds = to_global_arrays(host, program.members), np.asarray(host.seed)
    state = [program.init(members)]
    every = config.train.log_every
    spans = list(itertools.pairwise([*range(0, steps, every), steps]))

    def train() -> float:
        began = time.perf_counter()
        for (start, stop), given in zip(spans, feed_steps(program, seeds, spans), strict=True):
            state[0], sums = program.train(
                state[0], members, given, np.int32(start), np.int32(stop)
            )
        jax.block_until_ready((state[0], sums))
        return (time.perf_counter() - began) / steps

    train()  # compiles
    return train


def main() -> None:
    """Prints milliseconds a step and the ratio, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, default=RESULTS / "streaming-cpu.json")
    arguments = parser.parse_args()
    ways = ("device", "streamed")
    trainers = {way: trainer(arguments.path, way, arguments.steps) for way in ways}
    rounds = []
    for number in range(arguments.rounds):
        # In either order, so that neither always follows the other.
        order = ways if number % 2 else ways[::-1]
        rounds.append({way: trainers[way]() for way in order})
    ratios = [r["streamed"] / r["device"] for r in rounds]
    found = {way: 1e3 * statistics.median(r[way] for r in rounds) for way in ways}
    print(", ".join(f"{way} {value:.2f} ms a step" for way, value in found.items()))
    ratio = statistics.median(ratios)
    print(f"streamed takes {ratio:.3f} times as long ({min(ratios):.3f} to {max(ratios):.3f})")
    result = {
        "milliseconds": found,
        "ratio": ratio,
        "ratios": ratios,
        "steps": arguments.steps,
        "device": jax.devices()[0].device_kind,
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
    }
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
