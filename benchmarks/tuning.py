"""How often two arms that are the same are told apart when each is tuned by itself, by simulation.

    python -m benchmarks.tuning
    python -m benchmarks.tuning --repeats=500 --out=-

Both arms have the same outcomes at every rate, so that tuned to the end they are equal. But each
takes the rate that a few tuning seeds say is best, and two arms may take different ones. Verdicts
leave room for what other tuning seeds would have chosen (`CHOICE_DEVIATIONS`); this counts how
often there is one of a difference that is not there, with that room and without, through the code
that sweeps and reports use. About 5 minutes of CPU.

Outcomes, with the best rate in the middle of the grid (inside), or a place above it (outside):
  gap g: the mean falls by g standard deviations from a rate to the next, away from the best one.
  solved p, q: the best rate solves the task with probability p, those beside it with q, no others.
"""

import argparse
import dataclasses
import json
import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.verdicts import FAILED, NOISE, SOLVED
from research.ablation.claims import Claim, Direction, Outcome
from research.ablation.measure import Measure, point_key
from research.ablation.tuning import best, keys_at_edge, next_grid_value, tuning_score
from research.report.judging.judgements import REFUTED, SUPPORTED
from research.report.judging.verdicts import judge
from research.stats import choice_deviation, mean

RESULTS = Path(__file__).parent / "results" / "tuning.json"
GRID = (1e-3, 1e-2, 1e-1)
OUTCOME = Outcome("accuracy", higher_is_better=True)
TUNE_SEEDS, SEEDS = (1, 3, 5), (3, 5, 10, 20)
EXTENSION = 3
Draw = Callable[[np.random.Generator, int, float], np.ndarray]
"""(generator, n, rate) -> outcomes of n seeds."""


@dataclasses.dataclass(frozen=True)
class Landscape:
    """Outcomes by rate; `solved` is the threshold of the experiment, or None."""

    name: str
    draw: Draw
    solved: float | None = None


def steps_away(rate: float, peak: float) -> int:
    """Returns how many places of the grid a rate is away from the best one."""
    return abs(round(np.log10(rate / peak)))


def sloping(gap: float, peak: float) -> Draw:
    """Normal outcomes whose mean falls by `gap` a place."""
    return lambda g, n, rate: g.standard_normal(n) - gap * steps_away(rate, peak)


def solving(p: float, q: float, peak: float) -> Draw:
    """Seeds that solve the task with probability p at the peak and q beside it, or do not."""

    def draw(g: np.random.Generator, n: int, rate: float) -> np.ndarray:
        away = steps_away(rate, peak)
        solved = g.random(n) < ((p, q)[away] if away < 2 else 0.0)
        return np.where(solved, SOLVED, FAILED) + NOISE * g.standard_normal(n)

    return draw


def landscapes() -> list[Landscape]:
    """Returns all of them, with the best rate inside of the grid and outside of it."""
    found = []
    for where, peak in (("inside", 1e-2), ("outside", 1e0)):
        for gap in (0.0, 0.25, 0.5, 1.0, 2.0):
            found.append(Landscape(f"gap {gap:g}, {where}", sloping(gap, peak)))
        for p, q in ((0.9, 0.2), (0.9, 0.6), (1.0, 0.5)):
            found.append(Landscape(f"solved {p:g}, {q:g}, {where}", solving(p, q, peak), 0.95))
    return found


def tuned(landscape: Landscape, generator: np.random.Generator, seeds: int) -> tuple[float, float]:
    """Returns the rate that an arm takes, from a grid that is continued as a sweep's is.

    And the standard deviation that the choice adds to what is compared, as reports find it.
    """
    rates, scores, values = list(GRID), [], []
    while True:
        for rate in rates[len(scores) :]:
            values.append(landscape.draw(generator, seeds, rate).tolist())
            results = [
                {"status": "completed", "best": {"validation": {"accuracy": v}}} for v in values[-1]
            ]
            scores.append(({"rate": rate}, tuning_score(OUTCOME, results)))
        chosen = best(scores)["rate"]
        side = [r for r in rates if (r > max(GRID) if chosen == max(rates) else r < min(GRID))]
        if not keys_at_edge(scores) or len(side) == EXTENSION:
            compared = [
                mean(v if landscape.solved is None else [float(x >= landscape.solved) for x in v])
                for v in values
            ]
            deviation = choice_deviation(values, compared)
            return chosen, 0.0 if math.isnan(deviation) else deviation
        rates.append(next_grid_value(rates, chosen == max(rates)))


def errors(landscape: Landscape, tune_seeds: int, repeats: int, seed: int) -> dict:
    """Returns the shares of false verdicts at each number of reported seeds."""
    generator = np.random.default_rng([seed, tune_seeds])
    claim = Claim("", test=Direction("a", "b"), within_steps=True)
    wrong = {room: dict.fromkeys(SEEDS, 0) for room in (True, False)}
    apart = 0
    for _ in range(repeats):
        found = [tuned(landscape, generator, tune_seeds) for _ in "ab"]
        rates = [rate for rate, _ in found]
        choice = {(arm, point_key({})): sd for arm, (_, sd) in zip("ab", found, strict=True)}
        apart += rates[0] != rates[1]
        seeds = [landscape.draw(generator, max(SEEDS), rate).tolist() for rate in rates]
        for n in SEEDS:
            values = {
                (arm, point_key({})): dict(enumerate(sample[:n]))
                for arm, sample in zip("ab", seeds, strict=True)
            }
            for room, by in wrong.items():
                data = Measure(
                    *("accuracy", values, [{}], True),
                    solved=landscape.solved,
                    choice=choice if room else {},
                )
                by[n] += judge(claim, lambda *_, d=data: d).verdict in (SUPPORTED, REFUTED)
    share, without = ({n: k / repeats for n, k in by.items()} for by in wrong.values())
    return {
        "rates differ": apart / repeats,
        "false verdicts": share,
        "without room for the choice": without,
    }


def row(index: int, repeats: int) -> dict:
    """Returns a row of the table."""
    landscape = landscapes()[index]
    found = {n: errors(landscape, n, repeats, seed=index) for n in TUNE_SEEDS}
    return {"outcome": landscape.name, "tuning seeds": found}


def table(rows: list[dict]) -> str:
    """Returns the shares of false verdicts as text."""
    head = f"{'outcome':28} {'tuning seeds':>13} {'rates differ':>13}"
    lines = [
        f"{'':56}{'false verdicts at n seeds':32}without room for the choice",
        head + 2 * "".join(f"{n:>8}" for n in SEEDS),
    ]
    for found in rows:
        for number, cell in found["tuning seeds"].items():
            lines.append(
                f"{found['outcome']:28} {number:>13} {cell['rates differ']:13.2f}"
                + "".join(f"{cell['false verdicts'][n]:8.3f}" for n in SEEDS)
                + "".join(f"{cell['without room for the choice'][n]:8.3f}" for n in SEEDS)
            )
    return "\n".join(lines)


def main() -> None:
    """Simulates all outcomes, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--out", default=str(RESULTS), help="where to write the table; -: nowhere")
    options = parser.parse_args()
    number = len(landscapes())
    with ProcessPoolExecutor() as pool:
        rows = list(pool.map(row, range(number), [options.repeats] * number))
    print(table(rows))
    if options.out != "-":
        content = {"repeats": options.repeats, "rows": rows}
        Path(options.out).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
