"""Seconds of speech that become features in one second, of one core.

    taskset -c 0 python -m benchmarks.features [--json=benchmarks/results/features-cpu.json]

One row to each kind of recording, from a file on disk to normalised log-mel features: what
`read_audio`, `log_mel` and `normalize` take of it, and the real-time factor, the recording's
seconds to those of the work. The samples are random: time does not depend on them. Each round runs
every row; the figures are medians of the rounds.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import kaldi_native_fbank
import numpy as np
import scipy
import soundfile

from research.tasks.speech.audio import read_audio
from research.tasks.speech.features import log_mel, normalize

RESULTS = Path(__file__).parent / "results"
ROWS = (
    # name, seconds, rate and channels of the file, its format, rate and bands that are wanted
    ("a digit", 0.5, 8000, 1, "wav", 8000, 40),
    ("telephone", 15.0, 8000, 1, "wav", 8000, 40),
    ("audiobook", 15.0, 16000, 1, "flac", 16000, 80),
    ("music, resampled", 15.0, 44100, 2, "flac", 16000, 80),
)


def timed(path: Path, rate: int, bands: int) -> dict[str, float]:
    """Seconds of each part of the work on one file."""
    began = time.perf_counter()
    samples = read_audio(path, rate)
    read = time.perf_counter()
    features = log_mel(samples, rate, bands)
    computed = time.perf_counter()
    normalize(features)
    ended = time.perf_counter()
    return {"read": read - began, "log_mel": computed - read, "normalize": ended - computed}


def main() -> None:
    """Runs the benchmark and prints milliseconds and real-time factors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, default=RESULTS / "features-cpu.json")
    arguments = parser.parse_args()
    times: dict[str, list[dict[str, float]]] = {row[0]: [] for row in ROWS}
    with tempfile.TemporaryDirectory() as directory:
        paths = {}
        for name, seconds, rate, channels, kind, *_ in ROWS:
            paths[name] = Path(directory) / f"{len(paths)}.{kind}"
            shape = (int(seconds * rate), channels)
            samples = np.random.default_rng(0).normal(size=shape).clip(-3, 3) / 4
            soundfile.write(paths[name], samples, rate)
        for turn in range(arguments.rounds + 1):
            for name, *_, wanted, bands in ROWS:
                taken = timed(paths[name], wanted, bands)
                if turn:  # the first one imports and warms up
                    times[name].append(taken)
    found = []
    print(f"{'recording':<18} {'read':>9} {'log_mel':>9} {'normalize':>9} {'real time':>10}")
    for name, seconds, rate, channels, kind, wanted, bands in ROWS:
        parts = {p: statistics.median(t[p] for t in times[name]) for p in times[name][0]}
        factors = sorted(seconds / sum(t.values()) for t in times[name])
        factor = statistics.median(factors)
        milliseconds = " ".join(f"{1e3 * p:>6.2f} ms" for p in parts.values())
        print(f"{name:<18} {milliseconds} {factor:>9.0f}x")
        row = {"recording": name, "seconds": seconds, "file": [kind, rate, channels]}
        row |= {"rate": wanted, "bands": bands, "ms": {p: 1e3 * t for p, t in parts.items()}}
        found.append(row | {"real_time": factor, "real_time_range": [factors[0], factors[-1]]})
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    versions |= {"scipy": scipy.__version__, "soundfile": soundfile.__version__}
    versions |= {"kaldi_native_fbank": kaldi_native_fbank.__version__}
    report = {"machine": platform.machine(), "cores": len(os.sched_getaffinity(0))}
    report |= {"versions": versions, "rounds": arguments.rounds, "rows": found}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
