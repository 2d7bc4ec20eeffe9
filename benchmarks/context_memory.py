"""Memory of a device when a sequence is split over several, against one device's share of it all.

    python -m benchmarks.context_memory [--length 8192] [--devices 8] [--width 128] [--layers 1,4]

One row to each mixer and depth: what the compiled forward and backward pass of its layers needs
beside arguments and results, on one device and on each of the virtual CPU devices that the sequence
is split over, and the ratio of the second to an equal share of the first. A layer is the mixer and
a feed-forward part of four times the width, each after a norm; layers are scanned. The last row is
attention alone, where keys, values and their gradients on the way weigh most.
"""

import argparse
import json
import os
import platform
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
MIXERS = {"softmax": "blockwise", "retention": "chunkwise", "gated_delta": "chunkwise"}
HEADS = 4


def layers(mixer, depth: int, width: int, place):
    """The loss of ``depth`` layers and the shapes of their parameters."""
    import jax
    import jax.numpy as jnp

    shapes = {name: (depth, *p.shape) for name, p in mixer.parameters().items()}
    shapes |= {"inward": (depth, width, 4 * width), "outward": (depth, 4 * width, width)}

    def unit(x):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5)

    def layer(x, params):
        x = x + mixer(params, unit(x))
        return x + jax.nn.gelu(unit(x) @ params["inward"]) @ params["outward"], None

    def loss(params, x):
        return jax.lax.scan(layer, x, params)[0].sum()

    return loss, {name: place(shape) for name, shape in shapes.items()}


def temporary(function, *arguments) -> int:
    """Bytes of the compiled gradient with respect to all arguments."""
    import jax

    every = tuple(range(len(arguments)))
    compiled = jax.jit(jax.grad(function, every)).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def measure(mixer: str, implementation: str, depth: int, length: int, width: int, mesh) -> int:
    """Bytes of the layers, or of attention alone if there are none; split if there is a mesh."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from research.attention import Mechanism, attend, causal
    from research.attention.spec import make_mixer

    def place(shape, *axes):
        where = mesh and NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)

    if not depth:
        one = place((1, length, HEADS, width // HEADS), None, "context")
        options = {
            "mechanism": Mechanism(mask=causal()),
            "implementation": implementation,
            "block_size": 128,
        }
        return temporary(lambda q, k, v: attend(q, k, v, **options).sum(), one, one, one)
    options = {"width": width, "num_heads": HEADS, "max_length": length, "mixer": mixer}
    options["block_size"] = 128 if mixer == "softmax" else 64
    built = make_mixer(**options, implementation=implementation)
    loss, params = layers(built, depth, width, place)
    return temporary(loss, params, place((1, length, width), None, "context"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", default="1,4")
    parser.add_argument("--json", type=Path, default=RESULTS / "context-memory-cpu.json")
    args = parser.parse_args()
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count="
    os.environ.update(XLA_FLAGS=f"{flags}{args.devices}", JAX_PLATFORMS="cpu")
    import jax
    from jax.sharding import AxisType

    mesh = jax.make_mesh((args.devices,), ("context",), axis_types=(AxisType.Auto,))
    rows = [(m, f, int(n)) for n in args.layers.split(",") for m, f in MIXERS.items()]
    print(f"length {args.length}, width {args.width}, {HEADS} heads, {args.devices} devices")
    print(f"{'mixer':<12} {'layers':>6} {'one device':>12} {'each':>10} {'to a share':>10}")
    found = []
    for mixer, form, depth in [*rows, ("softmax", "blockwise", 0)]:
        whole = measure(mixer, form, depth, args.length, args.width, None)
        with jax.set_mesh(mesh):
            each = measure(mixer, "ring", depth, args.length, args.width, mesh)
        ratio = each / (whole / args.devices)
        print(
            f"{mixer:<12} {depth or 'alone':>6} {whole / 2**20:>8.1f} MiB {each / 2**20:>6.1f} MiB "
            f"{ratio:>9.2f}x",
            flush=True,
        )
        row = {"mixer": mixer, "layers": depth, "one device": whole, "each": each}
        found.append(row | {"to a share": ratio})
    versions = {"python": platform.python_version(), "jax": jax.__version__}
    report = {"versions": versions, "length": args.length, "width": args.width}
    report |= {"heads": HEADS, "devices": args.devices, "rows": found}
    args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
