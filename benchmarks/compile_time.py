"""Compile time of a training step with 12 layers against one with 2, for every mixer.

    python -m benchmarks.compile_time [--only softmax,gru] [--rounds 3]

Layers are a scan, so depth should cost nothing. Each round compiles both, one after the other, with
the compilation cache off; the ratio is the median of the ratios within a round.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from configs import base
from research.attention.registry import MIXERS
from research.configuration import apply_deltas
from research.models.registry import make_model

RESULTS = Path(__file__).parent / "results"
DEPTHS = (2, 12)


def seconds_to_compile(mixer: str, layers: int) -> float:
    """Time of XLA's part: from the lowered program to the compiled one."""
    mask = "causal" if MIXERS[mixer].causal else "full"
    model = {"mixer": mixer, "mask": mask, "position": "none", "num_layers": layers}
    config = apply_deltas(
        base.get_config(), {f"model.{key}": value for key, value in model.items()}
    )
    decoder = make_model(config.model, vocab_size=64, length=64)
    tokens = jnp.zeros((8, 64), jnp.int32)
    params = jax.eval_shape(decoder.init, jax.random.key(0), tokens)["params"]

    def loss(params, tokens):
        return jnp.square(decoder.apply({"params": params}, tokens)[0]).sum()

    lowered = jax.jit(jax.value_and_grad(loss)).lower(params, tokens)
    start = time.perf_counter()
    lowered.compile()
    return time.perf_counter() - start


def main() -> None:
    """Prints a row per mixer and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(MIXERS))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    rows = {}
    print(f"{'mixer':22}{'2 layers':>10}{'12 layers':>11}{'ratio':>8}")
    for mixer in args.only.split(","):
        found = [[seconds_to_compile(mixer, n) for n in DEPTHS] for _ in range(args.rounds)]
        few, many = (statistics.median(column) for column in zip(*found, strict=True))
        ratio = statistics.median(b / a for a, b in found)
        rows[mixer] = {"seconds_2": few, "seconds_12": many, "ratio": ratio}
        print(f"{mixer:22}{few:9.2f}s{many:10.2f}s{ratio:8.2f}", flush=True)
    device = jax.devices()[0]
    result = {
        "device": {"platform": device.platform, "kind": device.device_kind},
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
        "rounds": args.rounds,
        "compile": rows,
    }
    path = RESULTS / f"compile-time-{device.platform}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
