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


def kill_after(experiment: str, workdir: Path, seconds: float) -> bool:
    """Starts a sweep and kills it; returns whether it was still running then."""
    process = subprocess.Popen(
        command(experiment, workdir),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
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
        path.parent.name: [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in path.read_text().splitlines()
        ]
        for path in workdir.glob("*/metrics.jsonl")
    }


def compare(experiment: str, folder: Path, kills: int, seed: int, say=print) -> dict[str, dict]:
    """Returns the figures, equal in both sweeps. Raises AssertionError where they are not."""
    whole, killed = folder / "whole", folder / "killed"
    sweep(experiment, whole)  # compiles, if nothing has yet
    seconds = sweep(experiment, folder / "timed")
    say(f"left alone: {len(figures(whole))} runs in {seconds:.1f} s")
    assert figures(folder / "timed") == figures(whole), "two sweeps that were left alone differ"
    draw = random.Random(seed)
    for number in range(kills):
        # The first seconds are imports; a moment in them is worth little, but happens.
        moment = draw.uniform(0.3, 1.0) * seconds
        running = kill_after(experiment, killed, moment)
        finished = len(figures(killed))
        what = "killed" if running else "was done"
        say(f"{number + 1}: {what} after {moment:.1f} s, {finished} runs finished")
    say(f"the rest took {sweep(experiment, killed):.1f} s")
    assert figures(killed) == figures(whole)
    assert rows(killed) == rows(whole)
    for name in ("cells.json", "experiment.json"):
        assert (killed / name).read_text() == (whole / name).read_text(), name
    say(f"{len(figures(whole))} results and their metrics are equal to the bit")
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
