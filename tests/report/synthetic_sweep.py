"""Builds sweep directories as a sweep would leave them, with made-up training."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from research.ablation.experiment import Experiment, points, tuning_grid
from research.ablation.measure import point_key
from research.ablation.tuning import choose
from research.runs import store

Simulate = Callable[[str, Mapping, Mapping, int, np.random.Generator], dict]
"""(arm, point, tuned, seed, generator) -> overrides of what `plausible` returns."""

GAPS = ["1-2", "3-4", "5-8", "9-16"]


def plausible(final: float, generator: np.random.Generator, steps: int = 1000) -> dict:
    """Returns result.json and metrics.jsonl rows of a run whose accuracy rises to `final`."""
    middle = generator.uniform(0.25, 0.5) * steps
    rows = []
    for step in range(0, steps + 1, steps // 20):
        rise = 1 / (1 + math.exp(-(step - middle) / (0.06 * steps)))
        accuracy = 0.05 + (final - 0.05) * rise + generator.normal(0, 0.004)
        rows.append(
            {
                "step": step,
                "train/loss": 3.5 * (1 - rise * final) + 0.02,
                "validation/accuracy": min(1.0, max(0.0, accuracy)),
                "learning_rate": 1e-3,
                "seconds": step * 0.01,
            }
        )
    by_gap = [min(1.0, max(0.0, final - 0.06 * i * (1 - final) * 4)) for i in range(len(GAPS))]
    metrics = {"accuracy": final, "loss": 3.5 * (1 - final) + 0.02, "accuracy_by_gap": by_gap}
    splits = {"validation": metrics, "test": metrics}
    return {
        "rows": rows,
        "result": {
            "status": "completed",
            "steps": steps,
            "best_step": steps,
            "best": splits,
            "final": splits,
            "slices": {"accuracy_by_gap": GAPS},
            "budget": {
                "parameters": 126_000,
                "flops_per_token": 760_000.0,
                "state_bytes": 65_536,
                "tokens": 32_000_000,
                "steps": steps,
            },
            "implementation": "dense",
            "timing": {"train_seconds": 41.0, "steps_per_second": 24.0, "compile_seconds": 9.0},
        },
    }


def on_items(run: dict, correct: np.ndarray, ids: np.ndarray) -> dict:
    """Returns the run with this accuracy on each item of its test set, and on all of it."""
    result, count = dict(run["result"]), np.ones(len(ids), np.float32)
    result["best"] = {**result["best"], "test": {"accuracy": float(correct.mean())}}
    items = {"id": ids, "best.accuracy.total": np.float32(correct), "best.accuracy.count": count}
    return {**run, "result": result, "items": items}


def failed(error: str) -> dict:
    """Returns what a run that raised leaves."""
    return {"rows": [], "result": {"status": "failed", "error": error}}


def diverged(run: dict) -> dict:
    """Returns the run with its loss turned NaN half way."""
    rows = run["rows"][: len(run["rows"]) // 2]
    rows = [*rows, {"step": rows[-1]["step"] + 50, "train/loss": None, "validation/accuracy": None}]
    result = {**run["result"], "status": "diverged", "final": {"test": {"accuracy": None}}}
    return {"rows": rows, "result": result}


def build(workdir: Path, experiment: Experiment, simulate: Simulate, finished: float = 1.0) -> Path:
    """Writes a sweep directory; `finished` is the fraction of the cells that have a result.

    `simulate` returns a run as `plausible`, `failed` or `diverged` do.
    """
    cells, made = [], []

    def add(stage, arm, point, tuned, seed):
        generator = np.random.default_rng(len(cells))
        run = f"{len(cells):012x}"
        row = {"arm": arm, "point": point, "stage": stage, "tuned": tuned, "seed": seed, "run": run}
        cells.append(row)
        made.append(simulate(arm, point, tuned, seed, generator))

    for point in points(experiment):
        for arm in experiment.arms:
            chosen = {}
            if experiment.tune:
                for tuned in tuning_grid(experiment):
                    for seed in experiment.tune_seeds:
                        add("tune", arm, point, tuned, seed)
                results = {c["run"]: m["result"] for c, m in zip(cells, made, strict=True)}
                choices = choose(experiment.outcome, cells, results)
                chosen = choices[arm, point_key(point)]
            for seed in experiment.seeds:
                add("report", arm, point, chosen, seed)
    for index, (cell, run) in enumerate(zip(cells, made, strict=True)):
        folder = workdir / cell["run"]
        flat = {**experiment.arms[cell["arm"]], **cell["point"], **cell["tuned"]}
        config = {"seed": cell["seed"], "model": {"width": 64}, **_nested(flat)}
        store.write_json(folder / store.CONFIG, config)
        if index < finished * len(cells):
            store.write_json(folder / store.RESULT, {"seed": cell["seed"], **run["result"]})
            store.write_json(folder / store.ENVIRONMENT, ENVIRONMENT)
            lines = "".join(json.dumps(row) + "\n" for row in run["rows"])
            store.write_text(folder / store.METRICS, lines)
            if "items" in run:
                store.write_arrays(folder / store.ITEMS, run["items"])
    plain = {**experiment.to_json(), "name": "example", "file": "experiments/example.py"}
    store.write_json(workdir / "experiment.json", plain)
    store.write_json(workdir / "cells.json", cells)
    store.write_json(workdir / "environment.json", ENVIRONMENT)
    return workdir


def _nested(flat: Mapping[str, Any]) -> dict:
    nested: dict = {}
    for key, value in flat.items():
        *parents, leaf = key.split(".")
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[leaf] = value
    return nested


ENVIRONMENT = {
    "versions": {"jax": "0.10.2", "flax": "0.12.8"},
    "device": {"platform": "cpu", "kind": "x86", "count": 1, "cpu_cores": 2},
    "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
    "command": ["python", "-m", "research.sweep", "--experiment=experiments/example.py"],
}
