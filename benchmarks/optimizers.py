"""Validation loss of the text config with every optimizer, each at a few learning rates.

    python -m benchmarks.optimizers [--steps 300] [--only lion,muon]

The statement to be checked: each of them reaches the loss of AdamW within 0.1 nats. All rates of an
optimizer are members of one population. Steps are a fraction of the config's 2,000, so the losses
are those of a short training, at which optimizers are further apart than at its end.
"""

import argparse
import json
import platform
from pathlib import Path

import jax
import numpy as np

from configs import text
from research.configuration import apply_deltas
from research.parallel.parallelize import to_global_arrays
from research.training.program import make_members, make_program
from research.training.schema import resolve

RESULTS = Path(__file__).parent / "results" / "optimizers-cpu.json"
RATES = {
    "adamw": (1e-3, 3e-3, 1e-2),
    "lion": (3e-4, 1e-3, 3e-3),
    "adafactor": (1e-2, 3e-2, 1e-1),
    "muon": (1e-3, 3e-3, 1e-2),
    "schedule_free": (3e-3, 1e-2, 3e-2),
}
OWN = {"schedule_free": {"optimizer.schedule": "constant"}}
WITHIN = 0.1


def losses(name: str, steps: int) -> dict[str, float]:
    """Returns {learning rate: validation loss at the last step}."""
    short = {"train.steps": steps, "optimizer.warmup_steps": max(1, steps // 10)}
    shared = {"optimizer.name": name, "train.eval_batches": 20} | short | OWN.get(name, {})
    configs = [
        resolve(apply_deltas(text.get_config(), shared | {"optimizer.learning_rate": rate}))
        for rate in RATES[name]
    ]
    program = make_program(configs[0], len(configs))
    members = to_global_arrays(make_members(configs), program.members)
    state = program.init(members)
    state, _ = program.train(state, members, program.data, np.int32(0), np.int32(steps))
    loss = program.evaluate["validation"](state.params, program.data).sums["loss"]
    each = np.asarray(loss.total / loss.count)
    return {f"{rate:g}": float(value) for rate, value in zip(RATES[name], each, strict=True)}


def main() -> None:
    """Prints a row per optimizer and writes the losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only", default=",".join(RATES), help="AdamW always comes first")
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows, names = {}, dict.fromkeys(("adamw", *args.only.split(",")))
    for name in names:
        found = losses(name, args.steps)
        best = min(found.values())
        rows[name] = {"losses": found, "best": best}
        rows[name]["above adamw"] = best - rows["adamw"]["best"]
        rows[name]["within"] = rows[name]["above adamw"] <= WITHIN
        each = "  ".join(f"{rate}: {loss:.3f}" for rate, loss in found.items())
        print(f"{name:14}{best:7.3f}{rows[name]['above adamw']:+8.3f}   {each}", flush=True)
        versions = {"python": platform.python_version(), "jax": jax.__version__}
        device = jax.devices()[0].device_kind
        result = {"device": device, "versions": versions, "steps": args.steps, "within": WITHIN}
        args.json.write_text(json.dumps(result | {"optimizers": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
