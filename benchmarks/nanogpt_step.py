"""Time of one training step: ours against the same model in eager PyTorch, in turn on one machine.

    python -m benchmarks.nanogpt_step [--json=benchmarks/results/nanogpt_step.json]

The model is nanoGPT's documented CPU recipe for tiny Shakespeare (configs/text.py with learned
positions): 4 layers, 4 heads, width 128, 64 tokens, batch 12, AdamW with clipping. Both sides draw
their batches, go forward and backward and update, in float32 on all cores. Each round runs both;
the figure is the median of the rounds' ratios. The text is random characters: time does not depend
on it.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from research.configuration import apply_deltas, load_config
from research.training.program import make_members, make_program

BATCH, LENGTH, WIDTH, HEADS, LAYERS, VOCAB = 12, 64, 128, 4, 4, 65


class Block(nn.Module):
    """One pre-norm layer."""

    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, bias=False)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.norm2 = nn.LayerNorm(WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x):
        batch, length, _ = x.shape
        parts = self.qkv(self.norm1(x)).split(WIDTH, dim=2)
        q, k, v = (p.view(batch, length, HEADS, WIDTH // HEADS).transpose(1, 2) for p in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Decoder(nn.Module):
    """The model of configs/text.py."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.position = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens) + self.position.weight
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.embedding.weight.T


def torch_steps(data: np.ndarray, threads: int):
    """Returns run(steps) -> seconds per step."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, text = Decoder(), torch.from_numpy(data.astype(np.int64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)

    def run(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            starts = torch.randint(len(text) - LENGTH, (BATCH,))
            x = torch.stack([text[i : i + LENGTH] for i in starts])
            y = torch.stack([text[i + 1 : i + 1 + LENGTH] for i in starts])
            loss = F.cross_entropy(model(x).view(-1, VOCAB), y.view(-1))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return (time.perf_counter() - began) / steps

    return run


def our_steps(path: Path, deltas: dict):
    """Returns run(steps) -> seconds per step, the program that `research.train` compiles."""
    same = {"task.path": str(path), "model.position": "learned"}
    config = apply_deltas(load_config("configs/text.py"), {**same, **deltas})
    program, members = make_program(config), make_members([config])
    held = [program.init(members)]

    def run(steps: int) -> float:
        began = time.perf_counter()
        bounds = jnp.int32(0), jnp.int32(steps)
        held[0], sums = program.train(held[0], members, program.task.data, *bounds)
        jax.block_until_ready((held[0], sums))
        return (time.perf_counter() - began) / steps

    return run


def main() -> None:
    """Runs the benchmark and prints milliseconds and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=30, help="per side and round")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=JSON", help="config delta of our side"
    )
    arguments = parser.parse_args()
    deltas = {k: json.loads(v) for k, v in (s.split("=", 1) for s in arguments.set)}
    letters = [chr(48 + i) for i in range(VOCAB)]
    data = np.random.default_rng(0).integers(0, VOCAB, 200_000)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "random.txt"
        path.write_text("".join(letters[i] for i in data))
        theirs = torch_steps(data, torch.get_num_threads())
        sides = {"torch": theirs, "ours": our_steps(path, deltas)}
    for run in sides.values():
        run(3)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.rounds):
        for name, run in sides.items():
            times[name].append(run(arguments.steps))
    ratios = [t / o for t, o in zip(times["torch"], times["ours"], strict=True)]
    figures = {
        "torch_ms": 1e3 * statistics.median(times["torch"]),
        "ours_ms": 1e3 * statistics.median(times["ours"]),
        "speedup": statistics.median(ratios),
        "speedup_range": [min(ratios), max(ratios)],
    }
    print(
        f"eager PyTorch {figures['torch_ms']:.1f} ms, ours {figures['ours_ms']:.1f} ms a step: "
        f"{figures['speedup']:.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    if arguments.json:
        figures |= {
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "device": jax.devices()[0].device_kind,
            "versions": {"jax": jax.__version__, "torch": torch.__version__},
            "rounds": arguments.rounds,
            "steps": arguments.steps,
            "deltas": deltas,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
