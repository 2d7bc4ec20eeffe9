"""Collects facts about a run: its seed, checkpoint, device, versions, command and config."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from research.configuration import flatten, load_config
from research.runs.store import COMPLETED, ENVIRONMENT, read_json, read_result
from research.training.runs import LoadedRun

OURS = ("jax", "flax", "numpy")
"""Packages whose versions to show; environment.json has more."""
UNSHOWN = ("seed", "members", "parallel")
"""Config keys that do not affect the results of a run, or that have a line of their own."""


def run_facts(run: LoadedRun, base: str) -> dict[str, str]:
    """Returns the facts of a run, by name, long ones last.

    Args:
      run: an opened run.
      base: config file to compare the run's config with; "" or a missing file: no comparison.
    """
    environment = read_json(run.path / ENVIRONMENT) or {}
    facts = {
        "seed": str(run.config.seed),
        "checkpoint": f"best on validation, step {run.best['step']:,}",
        "parameters": f"{sum(leaf.size for leaf in jax.tree.leaves(run.params)):,}",
        "device": _devices(environment),
        "implementation": _implementation(run),
        "git commit": _commit(environment),
        "versions": _versions(environment),
        "run": str(run.path),
        "command": _command(environment),
        "differs from base": ", ".join(_changed(run.config, base)),
    }
    return {name: fact for name, fact in facts.items() if fact}


def run_warnings(run: LoadedRun) -> list[str]:
    """Returns warnings if the run's parameters are not those of a finished run."""
    lines, result = [], read_result(run.path)
    if result is None:
        lines.append("This run has not finished: its best parameters so far are shown.")
    elif result.get("status") != COMPLETED:
        lines.append(f"This run {result.get('status')}: its best parameters before are shown.")
    if not run.best["step"]:
        lines.append("It was not evaluated yet: these are the parameters that it started from.")
    return lines


def _command(environment: dict[str, Any]) -> str:
    words: Sequence[str] = environment.get("command", ())
    return shlex.join(word for word in words if not word.startswith("--workdir="))


def _changed(config: ConfigDict, base: str) -> list[str]:
    if not base or not Path(base.partition(":")[0]).is_file():
        return []
    before, after = flatten(load_config(base)), flatten(config)
    changed = {key: value for key, value in after.items() if before.get(key) != value}
    return [f"{k}={v}" for k, v in changed.items() if not k.startswith(UNSHOWN)]


def _commit(environment: dict[str, Any]) -> str:
    git = environment.get("git") or {}
    return git.get("commit", "")[:12] + (" with changes" if git.get("dirty") else "")


def _versions(environment: dict[str, Any]) -> str:
    there = environment.get("versions", {})
    return ", ".join(f"{name} {there[name]}" for name in ("python", *OURS) if name in there)


def _devices(environment: dict[str, Any]) -> str:
    """Returns the device that the run was trained on and, if different, the current device."""
    trained, here = environment.get("device", {}), jax.devices()[0].device_kind
    kind = trained.get("kind", "")
    if not kind:
        return f"looked at on {here}"
    return kind if kind == here else f"{kind}; looked at on {here}"


def _implementation(run: LoadedRun) -> str:
    here, result = run.model.implementation, read_result(run.path) or {}
    trained = result.get("implementation", here)
    return here if here == trained else f"{here}; trained with {trained}"
