"""The inspect page of a model of 12 layers x 12 heads over 1,024 tokens: its size, and how soon.

    python benchmarks/inspect_page.py [--layers 12] [--heads 12] [--tokens 1024] [--rounds 5] \
        [--json PATH]

Each round writes the page of random causal weights and opens it in a Chromium without a window and
with a fresh profile: seconds until the load event, and until the first head is drawn and keys are
answered. Needs chromium and chromedriver.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from research.errors import UserError  # noqa: E402
from research.inspect.page import render  # noqa: E402
from tests import browser as chromium  # noqa: E402
from tests.inspections import self_attention  # noqa: E402

NEXT = """
const [done] = arguments;
const from = performance.now();
choose(MAPS.length - 1, 0).then(() => done(performance.now() - from));
"""


def measure(path: Path) -> dict:
    """Returns the seconds of one opening."""
    with chromium.browser() as window:
        begun = time.perf_counter()
        window.open(path)
        loaded = time.perf_counter() - begun
        ready = "return performance.getEntriesByName('ready')[0]?.startTime"
        interactive = window.until(ready) / 1e3
        other = window.call("POST", "/execute/async", {"script": NEXT, "args": []}) / 1e3
        errors = window.console()
        version = window.run("return navigator.userAgent").split("Chrome/")[-1].split(" ")[0]
    if errors:
        raise UserError(f"the page reports: {errors[0]}")
    return {"load": loaded, "interactive": interactive, "other head": other, "chromium": version}


def main() -> None:
    """Prints the table; writes it as JSON where asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not chromium.AVAILABLE:
        sys.exit("needs chromium and chromedriver.")
    tokens = [f" w{i % 97}" for i in range(arguments.tokens)]
    shown = self_attention(arguments.layers, arguments.heads, tokens, ("score",))
    begun = time.perf_counter()
    page = render(shown)
    rendered = time.perf_counter() - begun
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inspect.html"
        path.write_text(page, encoding="utf-8")
        size = path.stat().st_size / 1e6
        rounds = []
        for i in range(arguments.rounds):
            rounds.append(measure(path))
            print(f"round {i + 1} of {arguments.rounds}", file=sys.stderr)
    shape = f"{arguments.layers} x {arguments.heads} heads, {arguments.tokens} tokens"
    print(f"{shape}: {size:.1f} MB, written in {rendered:.2f} s")
    found = {"shape": shape, "megabytes": size, "render": rendered}
    for name in ("load", "interactive", "other head"):
        times = sorted(one[name] for one in rounds)
        found[name] = {"median": statistics.median(times), "range": [times[0], times[-1]]}
        print(f"{name:<12} {found[name]['median']:.2f} s ({times[0]:.2f} to {times[-1]:.2f})")
    if arguments.json:
        versions = {"python": platform.python_version(), "chromium": rounds[0]["chromium"]}
        machine = {"machine": platform.machine(), "cores": len(os.sched_getaffinity(0))}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        report = machine | {"versions": versions, "rounds": arguments.rounds} | found
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
