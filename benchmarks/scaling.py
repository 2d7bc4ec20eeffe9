"""Time and memory of whole mixers against the length of the sequence, forward and backward.

    python -m benchmarks.scaling [--lengths 1024,2048,4096,8192,16384] [--only softmax,linear]

Softmax attention in its implementations and every mixer of the registry whose work does not grow as
the square of the length, at equal width. Each round of a mixer runs all its lengths once, in turn,
so that a busy machine slows all; times are medians over the rounds, and an exponent is the median
of those of the rounds. Memory is what the compiled program needs beside arguments and results.

Every length has the same number of sequences: enough that the arrays of the shortest do not fit the
inner caches of a CPU either, which otherwise look like a larger exponent of the mixer. Exponents
are those of a power law, by least squares on the logarithms over the longer lengths. What takes too
long or does not fit is left out at the lengths beyond.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.attention import registry
from research.attention.errors import Unsupported
from research.attention.implementations.attend import IMPLEMENTATIONS
from research.attention.implementations.sharding import platform as device_platform
from research.attention.mixers.mixer import init_params
from research.attention.spec import make_mixer
from research.options import OptionError, declarations

RESULTS = Path(__file__).parent / "results"
# Linear in the length only if what it reads does not grow with it.
CONSTANT = {"rank": 256}
LAST = 3  # lengths that the exponents are fitted to


def candidates(heads: int, width: int) -> dict[str, dict[str, Any]]:
    """Options by name: softmax attention by implementation, then all that is linear in T."""
    here = device_platform()
    # Those for split sequences are another one on one device.
    runs_here = [
        n for n, i in IMPLEMENTATIONS.items() if here in i.platforms and not i.shards_sequence
    ]
    found: dict[str, dict[str, Any]] = {
        f"softmax, {name}": {"implementation": name} for name in runs_here
    }
    for name, entry in registry.MIXERS.items():
        if "T S" in entry.time:
            continue
        read = declarations(entry)
        found[name] = {"mixer": name} | {k: v for k, v in CONSTANT.items() if k in read}
    base = {"num_heads": heads, "width": width}
    return {name: {**base, **extra} for name, extra in found.items()}


def step(options: dict[str, Any], length: int, batch: int, dtype: str):
    """One forward and backward pass of a mixer, compiled, with its arguments and its memory."""
    mixer = make_mixer(**options, max_length=length)
    params = init_params(mixer, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (batch, length, options["width"]), dtype)

    def loss(params, x):
        return jnp.sum(jnp.square(mixer(params, x)).astype(jnp.float32))

    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(params, x).compile()
    memory: Any = compiled.memory_analysis()
    return compiled, (params, x), memory.temp_size_in_bytes


def seconds(run, arguments) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    return time.perf_counter() - start


def prepare(options: dict[str, Any], args: argparse.Namespace) -> tuple[dict[int, Any], str]:
    """Compiles each length up to the first that is too much, and says why that is."""
    ready: dict[int, Any] = {}
    for length in args.lengths:
        try:
            run, arguments, memory = step(options, length, args.sequences, args.dtype)
        except (OptionError, Unsupported) as error:
            return ready, str(error)
        # The first run allocates, and must not, if it is too much.
        if memory > args.max_gigabytes * 1e9:
            return ready, f"{memory / 1e9:.1f} GB at {length:,} tokens"
        if (took := seconds(run, arguments)) > args.max_seconds:
            return ready, f"{took:.1f} s a pass at {length:,} tokens"
        ready[length] = (run, arguments, memory)
    return ready, ""


def measure(name: str, options: dict[str, Any], args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row to each length of a mixer."""
    ready, why = prepare(options, args)
    times: dict[int, list[float]] = {length: [] for length in ready}
    for _ in range(args.rounds):
        for length, (run, arguments, _) in ready.items():
            times[length].append(seconds(run, arguments))
    rows = []
    for length, (_, _, memory) in ready.items():
        each, median = times[length], statistics.median(times[length])
        row = {"mixer": name, "length": length, "seconds": median, "temp bytes": memory}
        rows.append(row | {"rounds": each})
        print(f"{name:24}{length:>7,}{median * 1e3:10.1f} ms{memory / 1e6:10.1f} MB", flush=True)
    if why:
        print(f"{name:24}left out from here on: {why}", flush=True)
    return rows


def exponents(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """p of value = c * length**p by mixer, over the last lengths that it ran at.

    "seconds" is the median of those of the rounds, between "lowest" and "highest".
    """
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row["mixer"] for row in rows):
        own = [row for row in rows if row["mixer"] == name][-LAST:]
        if len(own) < 2:
            continue
        lengths = np.log([row["length"] for row in own])
        memory = np.log([max(row["temp bytes"], 1) for row in own])
        times = np.log([row["rounds"] for row in own])  # (lengths, rounds)
        by_round = np.polyfit(lengths, times, 1)[0]
        found[name] = {
            "seconds": float(np.median(by_round)),
            "lowest": float(by_round.min()),
            "highest": float(by_round.max()),
            "temp bytes": float(np.polyfit(lengths, memory, 1)[0]),
        }
    return found


def environment() -> dict[str, Any]:
    """Where the numbers come from."""
    return {
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
    }


def main() -> None:
    """Runs the benchmark, prints rows and exponents, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="1024,2048,4096,8192,16384")
    parser.add_argument("--sequences", type=int, default=4, help="that are mixed at once")
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--width", type=int, default=64, help="of the model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="mixers, or parts of their names, with commas")
    parser.add_argument("--max-seconds", type=float, default=20.0, help="for one pass")
    parser.add_argument("--max-gigabytes", type=float, default=6.0, help="of temporaries")
    parser.add_argument("--json", type=Path, help="default: results/scaling-DEVICE.json")
    args = parser.parse_args()
    args.lengths = sorted(int(length) for length in args.lengths.split(","))
    chosen = [part for part in args.only.split(",") if part]
    found = candidates(args.heads, args.width)
    if chosen:
        found = {name: o for name, o in found.items() if any(part in name for part in chosen)}
    rows = [row for name, options in found.items() for row in measure(name, options, args)]
    fitted = exponents(rows)
    print(f"exponents over the last {LAST} lengths: time (of all rounds), memory")
    for name, p in fitted.items():
        time = f"{p['seconds']:6.2f} ({p['lowest']:.2f} to {p['highest']:.2f})"
        print(f"{name:24}{time}{p['temp bytes']:6.2f}")
    device = jax.devices()[0].device_kind.replace(" ", "-").lower()
    target = args.json or RESULTS / f"scaling-{device}.json"
    shape = {
        "sequences": args.sequences,
        "heads": args.heads,
        "width": args.width,
        "dtype": args.dtype,
    }
    report = {"environment": environment(), "shape": shape, "rounds": args.rounds}
    report |= {"exponents": fitted, "rows": rows}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
