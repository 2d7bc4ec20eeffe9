"""Causal attention on this device, against other implementations, forward and backward.

    python benchmarks/attention.py [--lengths 512,2048,8192] [--heads 4] [--width 64] [--json PATH]

Each round runs every implementation once, in turn, so that a busy machine slows all of them; times
are medians over the rounds and ratios are medians of the ratios within a round. Memory is what the
compiled program needs beside its arguments and results (JAX only), and the peak of a fresh process
that runs forward and backward, above that of one at length 1 (all of them; Linux only).
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from research.attention import Mechanism, attend, causal  # noqa: E402

PASSES = ("forward", "forward + backward")


def jax_functions(name: str):
    """The two passes of a JAX implementation, compiled, as functions of (q, k, v)."""

    def run(q, k, v):
        if name == "jax.nn":
            return jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return attend(q, k, v, Mechanism(mask=causal()), implementation=name)

    def loss(q, k, v):
        return run(q, k, v).sum()

    return jax.jit(run), jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))


def torch_functions():
    """The two passes of PyTorch's fused attention, on its own layout (B, H, T, D)."""
    import torch

    attention = torch.nn.functional.scaled_dot_product_attention

    def forward(q, k, v):
        with torch.no_grad():
            return attention(q, k, v, is_causal=True)

    def backward(q, k, v):
        q.grad = k.grad = v.grad = None
        attention(q, k, v, is_causal=True).sum().backward()

    return forward, backward


def inputs(name: str, length: int, heads: int, width: int):
    """Random q, k, v in the layout and library of an implementation."""
    random = np.random.default_rng(0)
    arrays = [random.normal(size=(1, length, heads, width)).astype(np.float32) for _ in range(3)]
    if name != "torch":
        return [jnp.asarray(x) for x in arrays]
    import torch

    return [torch.tensor(x).transpose(1, 2).contiguous().requires_grad_() for x in arrays]


def functions(name: str):
    return torch_functions() if name == "torch" else jax_functions(name)


def seconds(function, arguments) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def measure_length(names: list[str], length: int, args: argparse.Namespace) -> list[dict]:
    """One row to each implementation: median times, ratios to blockwise, memory."""
    arguments = {name: inputs(name, length, args.heads, args.width) for name in names}
    rows = {name: {"implementation": name, "length": length} for name in names}
    for index, which in enumerate(PASSES):
        run = {name: functions(name)[index] for name in names}
        for name in names:
            rows[name][f"{which} first call s"] = seconds(run[name], arguments[name])
        rounds = [
            {name: seconds(run[name], arguments[name]) for name in names}
            for _ in range(args.rounds)
        ]
        for name in names:
            rows[name][f"{which} s"] = statistics.median(r[name] for r in rounds)
            ratios = [r[name] / r["blockwise"] for r in rounds]
            rows[name][f"{which} / blockwise"] = statistics.median(ratios)
    for name in names:
        if name != "torch":
            lowered = jax_functions(name)[1].lower(*arguments[name])
            rows[name]["temp bytes"] = lowered.compile().memory_analysis().temp_size_in_bytes
        if args.memory:
            peak, least = (peak_bytes(name, n, args) for n in (length, 1))
            rows[name]["peak bytes"] = peak - least
    return list(rows.values())


def peak_bytes(name: str, length: int, args: argparse.Namespace) -> int:
    """The peak memory of a process that runs forward and backward once and nothing else."""
    command = [sys.executable, __file__, "--one", name, "--lengths", str(length)]
    command += ["--heads", str(args.heads), "--width", str(args.width)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run_one(args: argparse.Namespace) -> None:
    """What ``peak_bytes`` starts: prints the peak memory of this process."""
    length = int(args.lengths)
    arguments = inputs(args.one, length, args.heads, args.width)
    jax.block_until_ready(functions(args.one)[1](*arguments))
    # Not getrusage: its maximum outlives exec, so it would be that of the process which started us.
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) * 1024)


def environment() -> dict:
    """Where the numbers come from."""
    found = {
        "device": str(jax.devices()[0].device_kind),
        "cpus": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }
    if "torch" in sys.modules:
        found["torch"] = sys.modules["torch"].__version__
    return found


def print_table(rows: list[dict]) -> None:
    print(f"{'':24}{'forward':>20}{'forward + backward':>22}{'temporaries':>14}{'process':>12}")
    for row in rows:
        label = f"{row['length']:>7,}  {row['implementation']}"
        cells = [f"{row[f'{p} s'] * 1e3:9.1f} ms {row[f'{p} / blockwise']:6.2f}x" for p in PASSES]
        memory = [
            f"{row[key] / 1e6:9.1f} MB" if key in row else ""
            for key in ("temp bytes", "peak bytes")
        ]
        print(f"{label:24}{cells[0]:>20}{cells[1]:>22}{memory[0]:>14}{memory[1]:>14}", flush=True)


def write_json(path: str, report: dict) -> None:
    target = Path(path)
    with tempfile.NamedTemporaryFile("w", dir=target.parent, delete=False) as file:
        json.dump(report, file, indent=1)
    os.replace(file.name, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="512,2048,8192")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--width", type=int, default=64, help="of a head")
    parser.add_argument("--against", default="dense,jax.nn,torch", help="of dense, jax.nn, torch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--json", default="", help="also write device, versions and numbers here")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return run_one(args)
    names = args.against.split(",")
    if "torch" in names and importlib.util.find_spec("torch") is None:
        names.remove("torch")
        print("PyTorch is not installed; its rows are left out")
    # First, because the others are measured against it.
    names.insert(0, "blockwise")
    print("times are medians; x is the time as a multiple of blockwise's")
    rows = []
    for length in map(int, args.lengths.split(",")):
        new = measure_length(names, length, args)
        print_table(new)
        rows += new
    if args.json:
        shape = {"batch": 1, "heads": args.heads, "width": args.width, "dtype": "float32"}
        write_json(args.json, {"environment": environment(), "shape": shape, "rows": rows})


if __name__ == "__main__":
    main()
