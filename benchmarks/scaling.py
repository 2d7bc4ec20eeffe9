"""Time and memory of whole mixers against the length of the sequence, forward and backward.

    python -m benchmarks.scaling [--lengths 1024,2048,4096,8192,16384] [--only softmax,linear]

Softmax attention in its implementations and every mixer of the registry whose work does not grow as
the square of the length, at equal width. Each round runs all of them once, in turn, so that a busy
machine slows all; times are medians over the rounds. Memory is what the compiled program needs
beside its arguments and results.

Every length has the same number of tokens: the shorter, the more sequences, and figures are those
of one sequence. Otherwise short sequences would fit the caches of a CPU and long ones would not,
which looks like a larger exponent of the mixer. Mixers that take one token after the other have
one sequence at all lengths: several would share a step. Exponents are those of a power law, by
least squares on the logarithms over the longer lengths. What takes too long or does not fit is left
out at the lengths beyond. Implementations that fill the memory slow what runs after them: leave
them out (--only) to compare what does not.
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
from research.attention.errors import MechanismError, Unsupported
from research.attention.implementations.attend import IMPLEMENTATIONS
from research.attention.implementations.platforms import platform as device_platform
from research.attention.mixers.mixer import init_params
from research.attention.options import Options, make_mixer

RESULTS = Path(__file__).parent / "results"
# Linear in the length only if what it reads does not grow with it.
CONSTANT = {"rank": 256}
LAST = 3  # lengths that the exponents are fitted to


def candidates(heads: int, width: int) -> dict[str, dict[str, Any]]:
    """Options by name: softmax attention by implementation, then all that is linear in T."""
    runs_here = [n for n, i in IMPLEMENTATIONS.items() if device_platform() in i.platforms]
    found: dict[str, dict[str, Any]] = {
        f"softmax, {name}": {"implementation": name} for name in runs_here
    }
    for name, entry in registry.MIXERS.items():
        if "T S" in entry.time:
            continue
        found[name] = {"mixer": name} if entry.causal else {"mixer": name, "mask": "full"}
        found[name] |= {key: value for key, value in CONSTANT.items() if key in entry.parts}
    base = {"num_heads": heads, "width": width}
    return {name: {**base, **extra} for name, extra in found.items()}


def sequences(options: dict[str, Any], length: int, tokens: int) -> int:
    """How many sequences of this length are taken at once."""
    entry = registry.MIXERS[options.get("mixer", "softmax")]
    return 1 if "sequential" in entry.time else max(1, tokens // length)


def step(options: dict[str, Any], length: int, batch: int, dtype: str):
    """One forward and backward pass of a mixer, compiled, with its arguments and its memory."""
    mixer = make_mixer(Options(**options, max_length=length))
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


def prepare(found: dict[str, Any], length: int, args: argparse.Namespace) -> tuple[dict, list[str]]:
    """Compiles what fits and is fast enough, and says what is not."""
    ready, dropped = {}, []
    for name, options in found.items():
        batch = sequences(options, length, args.tokens)
        try:
            run, arguments, memory = step(options, length, batch, args.dtype)
        except (MechanismError, Unsupported) as error:
            why = str(error)
        else:
            # The first run allocates, and must not, if it is too much.
            fits = memory <= args.max_gigabytes * 1e9
            took = seconds(run, arguments) if fits else 0.0
            if fits and took <= args.max_seconds:
                ready[name] = (run, arguments, memory)
                continue
            why = f"{took:.1f} s a pass" if fits else f"{memory / 1e9:.1f} GB"
        dropped.append(name)
        print(f"{length:>7,}  {name:24}left out from here on: {why}", flush=True)
    return ready, dropped


def measure(found: dict[str, Any], args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row to each mixer and length."""
    rows, found = [], dict(found)
    for length in args.lengths:
        ready, dropped = prepare(found, length, args)
        for name in dropped:
            del found[name]
        times: dict[str, list[float]] = {name: [] for name in ready}
        for _ in range(args.rounds):
            for name, (run, arguments, _) in ready.items():
                times[name].append(seconds(run, arguments))
        for name, (_, _, memory) in ready.items():
            batch = sequences(found[name], length, args.tokens)
            each = [t / batch for t in times[name]]
            median, memory = statistics.median(each), memory / batch
            row = {"mixer": name, "length": length, "sequences": batch, "seconds": median}
            row |= {"temp bytes": memory, "fastest": min(each), "slowest": max(each)}
            rows.append(row)
            print(
                f"{length:>7,}  {name:24}{median * 1e3:10.1f} ms{memory / 1e6:10.1f} MB", flush=True
            )
    return rows


def exponents(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """p of value = c * length**p, by mixer and measure, over the last lengths that it ran at."""
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row["mixer"] for row in rows):
        own = [row for row in rows if row["mixer"] == name][-LAST:]
        if len(own) < 2:
            continue
        lengths = np.log([row["length"] for row in own])
        found[name] = {
            key: float(np.polyfit(lengths, np.log([max(row[key], 1e-9) for row in own]), 1)[0])
            for key in ("seconds", "temp bytes")
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
    parser.add_argument("--tokens", type=int, default=16384, help="of all sequences together")
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
    rows = measure(found, args)
    fitted = exponents(rows)
    print(f"exponents over the last {LAST} lengths: time, memory")
    for name, values in fitted.items():
        print(f"{name:24}{values['seconds']:6.2f}{values['temp bytes']:6.2f}")
    device = jax.devices()[0].device_kind.replace(" ", "-").lower()
    target = args.json or RESULTS / f"scaling-{device}.json"
    shape = {"tokens": args.tokens, "heads": args.heads, "width": args.width, "dtype": args.dtype}
    report = {"environment": environment(), "shape": shape, "rounds": args.rounds}
    report |= {"exponents": fitted, "rows": rows}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
