"""Kills a sweep at random moments, again and again, and compares it with one that was left alone.

python -m tests.kill_sweep --experiment=experiments/attention_type.py --kills=10

The figures of every result.json must be equal to the bit; what a clock says may differ.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.commands import ROOT
from tests.runs import rows_without_time


def command(experiment: str, workdir: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "research.sweep", f"--experiment={experiment}"),
        *(f"--workdir={workdir}", *more),
    ]


def sweep(experiment: str, workdir: Path) -> float:
    """Runs a sweep to its end; returns the seconds it took."""
    began = time.perf_counter()
    done = subprocess.run(command(experiment, workdir), cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the sweep ended with exit code {done.returncode}:\n{done.stderr}")
    return time.perf_counter() - began


def kill_when(experiment: str, workdir: Path, finished: int, delay: float) -> bool:
    """Starts a sweep, kills it `delay` seconds after `finished` results; returns if it ran then."""
    process = subprocess.Popen(
        command(experiment, workdir),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while process.poll() is None and len(figures(workdir)) < finished:
            time.sleep(0.01)
        process.wait(delay)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    finally:
        if process.poll() is None:
            process.kill()
    return False


def figures(workdir: Path) -> dict[str, dict]:
    """Returns {run: result without timing}."""
    results = {p.parent.name: json.loads(p.read_text()) for p in workdir.glob("*/result.json")}
    return {
        run: {k: v for k, v in result.items() if k != "timing"} for run, result in results.items()
    }


def rows(workdir: Path) -> dict[str, list[dict]]:
    """Returns {run: rows of metrics.jsonl without their clock}."""
    return {
        path.parent.name: rows_without_time(path.parent) for path in workdir.glob("*/metrics.jsonl")
    }


def described(workdir: Path) -> dict:
    """Returns experiment.json without the times of the first run."""
    plain = json.loads((workdir / "experiment.json").read_text())
    plain["registration"] |= {"begun": "", "claims": sorted(plain["registration"]["claims"])}
    return plain


def compare(experiment: str, folder: Path, kills: int, seed: int, say=print) -> dict[str, dict]:
    """Returns the figures, equal in both sweeps. Raises AssertionError where they are not."""
    whole, killed = folder / "whole", folder / "killed"
    say(f"left alone: {sweep(experiment, whole):.1f} s")
    draw, runs = random.Random(seed), len(figures(whole))
    # By what is finished and not by the clock, so that a slow or a fast machine is killed as often.
    for number, finished in enumerate(sorted(draw.randrange(runs - 1) for _ in range(kills)), 1):
        running = kill_when(experiment, killed, finished, draw.uniform(0.0, 0.5))
        what = "killed" if running else "was done"
        say(f"{number}: {what} with {len(figures(killed))} of {runs} runs finished")
    say(f"the rest took {sweep(experiment, killed):.1f} s")
    assert figures(killed) == figures(whole)
    assert rows(killed) == rows(whole)
    assert (killed / "cells.json").read_text() == (whole / "cells.json").read_text()
    assert described(killed) == described(whole)
    say(f"{runs} results and their metrics are equal to the bit")
    return figures(whole)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            compare(options.experiment, Path(folder), options.kills, options.seed)
        except AssertionError as error:
            sys.exit(f"NOT equal: {error}")


if __name__ == "__main__":
    main()
