"""How often verdicts are wrong, by simulation through the code that reports use.

    python -m benchmarks.verdicts
    python -m benchmarks.verdicts --repeats=200 --out=-

Seeds are drawn from outcomes of several shapes, claims whose truth is known are judged on them, and
wrong verdicts are counted. For a verdict that is false, the truth lies on the border of what is
claimed: there the claim is false, and a false "supported" is most probable; a truth just inside the
border is as often refuted as the border itself, which is then a false "refuted". About 8 minutes of
CPU.

Shapes:
  normal, skewed (lognormal), ceiling (beta(8, 1/2)): outcomes without a threshold; arms differ by
    a shift, or one is normal and the other is not.
  bimodal p: solved (.99) with probability p, else .3, each with a little noise; `solved` is .95.
  diverging: as bimodal .8, but that one in five of the seeds diverges.
  undeclared p: as bimodal, but the experiment names no `solved`, so that nothing tells the report
    of a failure that no seed showed. Its figures say what the threshold is for.
"""

import argparse
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from research.ablation.claims import (
    Claim,
    Crossover,
    Direction,
    Equivalence,
    Test,
    Threshold,
    Trend,
)
from research.ablation.measure import Measure, point_key
from research.report.judging.judgements import REFUTED, SUPPORTED
from research.report.judging.verdicts import judge

RESULTS = Path(__file__).parent / "results" / "verdicts.json"
SEEDS = (3, 4, 5, 10, 20)
SOLVED, FAILED, NOISE = 0.99, 0.3, 0.003
Draw = Callable[[np.random.Generator, int], np.ndarray]
"""(generator, n) -> values of n seeds."""


def bimodal(p: float, lost: float = 0.0) -> Draw:
    """Seeds that solve the task with probability p; of the others, a part diverges (value 0)."""

    def draw(generator: np.random.Generator, n: int) -> np.ndarray:
        solved = generator.random(n) < p
        failed = np.where(generator.random(n) < lost, 0.0, FAILED)
        return np.where(solved, SOLVED, failed) + NOISE * generator.standard_normal(n) * (solved)

    return draw


def shifted(draw: Draw, by: float) -> Draw:
    """The same outcome, better by a number."""
    return lambda generator, n: draw(generator, n) + by


LOGNORMAL = math.sqrt((math.e - 1) * math.e)
SHAPES: Mapping[str, Draw] = {
    # All with mean 0 and standard deviation 1.
    "normal": lambda g, n: g.standard_normal(n),
    "skewed": lambda g, n: (np.exp(g.standard_normal(n)) - math.exp(0.5)) / LOGNORMAL,
    "ceiling": lambda g, n: (g.beta(8, 0.5, n) - 8 / 8.5) / math.sqrt(4 / (8.5**2 * 9.5)),
}
MEDIANS = {"normal": 0.0, "skewed": (1 - math.exp(0.5)) / LOGNORMAL, "ceiling": 0.39189}
"""Of the shapes; that of the third by its quantile function."""


@dataclass(frozen=True)
class Cell:
    """One claim on outcomes of one shape.

    Attributes:
      shape, verdict: names of the row.
      test: what is claimed.
      arms: {arm: {axis value: outcome}}; the axis value is None without an axis.
      solved: threshold of the outcome, or None.
      wrong: verdicts that are false at this truth.
      truth: the true value of what the interval is about, NaN where that is not asked.
    """

    shape: str
    verdict: str
    test: Test
    arms: Mapping[str, Mapping[int | None, Draw]]
    solved: float | None
    wrong: tuple[str, ...] = (SUPPORTED, REFUTED)
    truth: float = math.nan


def one(**arms: Draw) -> dict[str, dict[int | None, Draw]]:
    """Arms at a single point."""
    return {name: {None: draw} for name, draw in arms.items()}


def cells() -> Iterator[Cell]:
    """Yields all cells."""
    for shape, draw in SHAPES.items():
        mixed = {"": draw} if shape == "normal" else {"": draw, " against normal": SHAPES["normal"]}
        for name, other in mixed.items():
            yield from _means(shape + name, draw, other)
        border = Threshold("a", at_least=0.0)
        yield Cell(shape, "threshold", border, one(a=draw), None, truth=0.0)
        yield Cell(shape, "power: 9 sd above", Threshold("a", -9.0), one(a=draw), None, ())
        median = Threshold("a", at_least=MEDIANS[shape], share=0.5)
        yield Cell(shape, "threshold, share", median, one(a=draw), None)
    for p in (0.5, 0.8, 0.9):
        yield from _solving(f"bimodal {p}", p, bimodal(p))
        yield from _undeclared(f"undeclared {p}", p)
    yield from _solving("diverging", 0.8, bimodal(0.8, lost=1.0))


def _means(shape: str, draw: Draw, other: Draw) -> Iterator[Cell]:
    three, null = shifted(draw, 3.0), one(a=draw, b=other)
    yield Cell(shape, "direction", Direction("a", "b"), null, None, (SUPPORTED, REFUTED), 0.0)
    margin = one(a=three, b=other)
    yield Cell(shape, "direction, margin", Direction("a", "b", 3.0), margin, None)
    yield Cell(shape, "equivalence", Equivalence("a", "b", 3.0), margin, None)
    trend: dict = {"a": {1: draw, 2: other, 3: shifted(draw, 3.0)}}
    yield Cell(shape, "trend, flat", Trend("a", "x", "flat", 3.0), trend, None)
    level: dict = {"a": {1: draw, 2: other, 3: draw}}
    yield Cell(shape, "trend, increasing", Trend("a", "x", "increasing"), level, None, (SUPPORTED,))
    same: dict = {"a": {1: three, 2: draw}, "b": {1: other, 2: other}}
    yield Cell(shape, "crossover", Crossover("a", "b", "x"), same, None, (SUPPORTED,))
    yield Cell(shape, "power: 3 sd apart", Direction("a", "b"), margin, None, ())


def _solving(shape: str, p: float, draw: Draw) -> Iterator[Cell]:
    less, always = bimodal(p - 0.3), bimodal(1.0)
    border = Threshold("a", at_least=0.95, share=p)
    yield Cell(shape, "threshold", border, one(a=draw), 0.95)
    null, apart = one(a=draw, b=draw), one(a=draw, b=less)
    yield Cell(shape, "direction", Direction("a", "b"), null, 0.95, (SUPPORTED, REFUTED), 0.0)
    yield Cell(shape, "direction, margin", Direction("a", "b", 0.3), apart, 0.95)
    yield Cell(shape, "equivalence", Equivalence("a", "b", 0.3), apart, 0.95)
    pair = one(a=always, b=draw)
    equal = Equivalence("a", "b", max(0.01, 1 - p - 1e-6))
    yield Cell(shape, "equivalence, always", equal, pair, 0.95, (SUPPORTED,))
    level: dict = {"a": {1: draw, 2: draw, 3: draw}}
    yield Cell(shape, "trend, increasing", Trend("a", "x", "increasing"), level, 0.95, (SUPPORTED,))
    same: dict = {"a": {1: always, 2: draw}, "b": {1: draw, 2: draw}}
    yield Cell(shape, "crossover", Crossover("a", "b", "x"), same, 0.95, (SUPPORTED,))
    never = one(a=draw, b=bimodal(0.0))
    yield Cell(shape, "power: against never", Direction("a", "b"), never, 0.95, ())
    most = Threshold("a", at_least=0.95)
    yield Cell(shape, "power: most seeds", most, one(a=draw), 0.95, (REFUTED,) if p > 0.5 else ())


def _undeclared(shape: str, p: float) -> Iterator[Cell]:
    draw, gap = bimodal(p), (SOLVED - FAILED) * (1 - p)
    null = one(a=draw, b=draw)
    yield Cell(shape, "direction", Direction("a", "b"), null, None, (SUPPORTED, REFUTED), 0.0)
    apart = one(a=bimodal(1.0), b=draw)
    yield Cell(shape, "equivalence", Equivalence("a", "b", gap), apart, None, (SUPPORTED,), gap)


def judged(cell: Cell, n: int, repeats: int, seed: int) -> dict[str, float]:
    """Returns the shares of verdicts on n seeds, and how often the interval covers the truth."""
    generator = np.random.default_rng([seed, n])
    points = [x for by in cell.arms.values() for x in by]
    places = [{} if x is None else {"x": x} for x in dict.fromkeys(points)]
    found = dict.fromkeys((SUPPORTED, REFUTED), 0)
    covered = asked = 0
    for _ in range(repeats):
        values = {
            (arm, point_key({} if x is None else {"x": x})): dict(enumerate(draw(generator, n)))
            for arm, by in cell.arms.items()
            for x, draw in by.items()
        }
        data = Measure("accuracy", values, places, True, solved=cell.solved)
        judgement = judge(Claim("", test=cell.test, within_steps=True), lambda *_, data=data: data)
        found[judgement.verdict] = found.get(judgement.verdict, 0) + 1
        check = judgement.checks[0]
        if not math.isnan(cell.truth) and math.isfinite(check.low + check.high):
            asked += 1
            covered += check.low <= cell.truth <= check.high
    shares = {verdict: number / repeats for verdict, number in found.items()}
    return shares | ({"coverage": covered / asked} if asked else {})


def row(cell: Cell, repeats: int) -> dict:
    """Returns a row of the table: the shares at each number of seeds."""
    seed = sum(map(ord, cell.shape + cell.verdict))
    return {
        "shape": cell.shape,
        "verdict": cell.verdict,
        "wrong": list(cell.wrong),
        "seeds": {n: judged(cell, n, repeats, seed) for n in SEEDS},
    }


def _numbered(index: int, repeats: int) -> dict:
    return row(list(cells())[index], repeats)


def table(rows: list[dict]) -> str:
    """Returns the rows as text: wrong verdicts, or power, and coverage at each number of seeds."""
    head = f"{'outcome':24} {'claim':22} {'counted':20} " + "".join(f"{n:>8}" for n in SEEDS)
    lines = [head, "-" * len(head)]
    for found in rows:
        power = not found["wrong"]
        for verdict in found["wrong"] or (SUPPORTED,):
            shares = (found["seeds"][n].get(verdict, 0.0) for n in SEEDS)
            what = verdict if power else f"falsely {verdict}"
            lines.append(
                f"{found['shape']:24} {found['verdict']:22} {what:20} "
                + "".join(f"{share:8.3f}" for share in shares)
            )
        if any("coverage" in cell for cell in found["seeds"].values()):
            shares = (found["seeds"][n].get("coverage", math.nan) for n in SEEDS)
            lines.append(
                f"{found['shape']:24} {found['verdict']:22} {'coverage':20} "
                + "".join(f"{share:8.3f}" for share in shares)
            )
    return "\n".join(lines)


def main() -> None:
    """Simulates all cells, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--out", default=str(RESULTS), help="where to write the table; -: nowhere")
    options = parser.parse_args()
    number = len(list(cells()))
    rows = []
    with ProcessPoolExecutor() as pool:
        asked = functools.partial(_numbered, repeats=options.repeats)
        for index, found in enumerate(pool.map(asked, range(number)), 1):
            rows.append(found)
            print(f"\r{index} of {number} cells", end="", flush=True)
    print("\n" + table(rows))
    if options.out != "-":
        Path(options.out).write_text(
            json.dumps({"repeats": options.repeats, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
