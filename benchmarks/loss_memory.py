"""Memory of the loss over a real vocabulary: whole logits against chunks of positions.

    python -m benchmarks.loss_memory [--vocab 50304] [--length 1024] [--batch 8] [--chunks 128,256]

What the compiled gradient of the loss needs beside arguments and results, from final hidden vectors
and the output matrix. It is compiled and not run.
"""

import argparse
import json
import platform
from pathlib import Path

import jax
import jax.numpy as jnp

from research.losses.token_scores import token_scores
from research.tasks.task import cross_entropy

RESULTS = Path(__file__).parent / "results"


def temporary(batch: int, length: int, width: int, vocab: int, chunk: int) -> int:
    """Returns bytes of temporaries of the compiled gradient; chunk 0: whole logits."""

    def loss(x, w, targets):
        def logits_of(x):
            return (x @ w).astype(jnp.float32)

        outputs = token_scores(logits_of, x, targets, chunk) if chunk else logits_of(x)
        return cross_entropy(outputs, targets).sum()

    shapes = (
        jax.ShapeDtypeStruct((batch, length, width), jnp.float32),
        jax.ShapeDtypeStruct((width, vocab), jnp.float32),
        jax.ShapeDtypeStruct((batch, length), jnp.int32),
    )
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def main() -> None:
    """Prints a row per chunk and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, default=50304)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--chunks", default="64,128,256")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    sizes = (args.batch, args.length, args.width, args.vocab)
    whole = temporary(*sizes, 0)
    rows = [{"chunk": 0, "bytes": whole, "of whole": 1.0}]
    print(f"{'chunk':>8} {'temporaries':>14} {'of whole':>9}")
    print(f"{'whole':>8} {whole / 2**20:>10.0f} MiB {1:>9.3f}", flush=True)
    for chunk in map(int, args.chunks.split(",")):
        found = temporary(*sizes, chunk)
        rows.append({"chunk": chunk, "bytes": found, "of whole": found / whole})
        print(f"{chunk:>8} {found / 2**20:>10.0f} MiB {found / whole:>9.3f}", flush=True)
    device = jax.devices()[0]
    result = {
        "device": device.device_kind,
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
        **{key: getattr(args, key) for key in ("batch", "length", "width", "vocab")},
        "rows": rows,
    }
    path = args.json or RESULTS / f"loss-memory-{device.platform}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
