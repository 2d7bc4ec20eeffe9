"""How often verdicts are wrong, by simulation through the code that reports use.

    python -m benchmarks.verdicts
    python -m benchmarks.verdicts --repeats=200 --out=-
    python -m benchmarks.verdicts --only="one test set"

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
  one test set: accuracies on 800 items that all seeds of both arms share, drawn anew in every
    repetition; the truth is that of all items that could have been drawn. An item is hard in
    general, for an arm, and for a seed (crossed random effects).
  one test set, seeds only: the same without the results of the items, so that intervals are over
    seeds. Its figures say what these results are for.
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
from research.stats import ItemErrors, Results, deviations, item_errors

RESULTS = Path(__file__).parent / "results" / "verdicts.json"
SEEDS = (3, 4, 5, 10, 20)
SOLVED, FAILED, NOISE = 0.99, 0.3, 0.003
Draw = Callable[[np.random.Generator, int], np.ndarray]
"""(generator, n) -> values of n seeds."""
Answers = Callable[[np.random.Generator, int], Mapping[str, np.ndarray]]
"""(generator, n) -> {arm: whether n seeds answer each item, (n, ITEMS)}."""
ITEMS = 800
HARD, OF_ARM, OF_SEED, SHIFT = 1.5, 1.0, 0.4, 0.03
"""Standard deviations of an item's difficulty, of what is particular to an arm and to a seed of it,
and of the general quality of a seed, on a scale on which an item is answered above 0."""
BLIND = ("undeclared", "one test set, seeds only")
"""Outcomes, by how their names begin, about which the report is not told what it needs."""


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


def accuracy(quality: float) -> float:
    """The probability of a right answer by an arm of some quality."""
    spread = math.hypot(HARD, OF_ARM, OF_SEED, SHIFT)
    return 0.5 * (1 + math.erf(quality / spread / math.sqrt(2)))


def one_test_set(**quality: float) -> Answers:
    """Arms of some quality, tested on the same items."""

    def draw(generator: np.random.Generator, n: int) -> dict[str, np.ndarray]:
        hard = generator.normal(0, HARD, ITEMS)
        return {
            arm: mean
            + hard
            + generator.normal(0, OF_ARM, ITEMS)
            + generator.normal(0, OF_SEED, (n, ITEMS))
            + generator.normal(0, SHIFT, (n, 1))
            > 0
            for arm, mean in quality.items()
        }

    return draw


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
      answers: outcomes by item, instead of `arms`.
      keeps_items: whether the report knows the results of the items.
    """

    shape: str
    verdict: str
    test: Test
    arms: Mapping[str, Mapping[int | None, Draw]]
    solved: float | None
    wrong: tuple[str, ...] = (SUPPORTED, REFUTED)
    truth: float = math.nan
    answers: Answers | None = None
    keeps_items: bool = True


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
    yield from _on_one_test_set("one test set", True)
    yield from _on_one_test_set("one test set, seeds only", False)


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


def _on_one_test_set(shape: str, keeps_items: bool) -> Iterator[Cell]:
    truth, better = accuracy(1.0), accuracy(1.3) - accuracy(1.0)
    equal, apart = one_test_set(a=1.0, b=1.0), one_test_set(a=1.3, b=1.0)
    both = (SUPPORTED, REFUTED)
    for name, test, answers, wrong, at in (
        ("direction", Direction("a", "b"), equal, both, 0.0),
        ("direction, margin", Direction("a", "b", better), apart, both, better),
        ("equivalence", Equivalence("a", "b", better), apart, both, better),
        ("threshold", Threshold("a", at_least=truth), equal, both, truth),
        ("power: 5 points apart", Direction("a", "b"), apart, (), math.nan),
    ):
        yield Cell(shape, name, test, {}, None, wrong, at, answers, keeps_items)


def drawn(cell: Cell, generator: np.random.Generator, n: int) -> tuple[dict, ItemErrors]:
    """Returns {(arm, point): values of n seeds} and the errors of their means over test items."""
    if cell.answers is None:
        values = {
            (arm, point_key({} if x is None else {"x": x})): draw(generator, n)
            for arm, by in cell.arms.items()
            for x, draw in by.items()
        }
        return values, ItemErrors()
    answers = {(arm, ()): found * 1.0 for arm, found in cell.answers(generator, n).items()}
    values = {place: found.mean(1) for place, found in answers.items()}
    if not cell.keeps_items:
        return values, ItemErrors()
    ids, every = np.arange(ITEMS), np.ones(ITEMS, bool)
    results = {
        place: Results(ids, np.mean([deviations(a, every) for a in found], axis=0), every)
        for place, found in answers.items()
    }
    return values, item_errors(results)


def judged(cell: Cell, n: int, repeats: int, seed: int) -> dict[str, float]:
    """Returns the shares of verdicts on n seeds, and how often the interval covers the truth."""
    generator = np.random.default_rng([seed, n])
    points = [x for by in cell.arms.values() for x in by] or [None]
    places = [{} if x is None else {"x": x} for x in dict.fromkeys(points)]
    found = dict.fromkeys((SUPPORTED, REFUTED), 0)
    covered = asked = 0
    for _ in range(repeats):
        samples, items = drawn(cell, generator, n)
        values = {place: dict(enumerate(sample)) for place, sample in samples.items()}
        data = Measure("accuracy", values, places, True, solved=cell.solved, items=items)
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


def merged(path: Path, repeats: int, rows: list[dict]) -> list[dict]:
    """Returns the rows of all cells: these, and for the others those of an earlier table."""
    known = json.loads(path.read_text()) if path.exists() else {"repeats": repeats, "rows": []}
    if known["repeats"] != repeats:
        raise SystemExit(f"{path} is of {known['repeats']} repeats; run all cells, or --out=-.")
    # By way of JSON, in which the numbers of seeds are text.
    new = json.loads(json.dumps(rows))
    found = {(r["shape"], r["verdict"]): r for r in [*known["rows"], *new]}
    keys = ((cell.shape, cell.verdict) for cell in cells())
    return [found[key] for key in keys if key in found]


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
    parser.add_argument("--only", default="", help="only outcomes whose names begin like this")
    options = parser.parse_args()
    asked_for = [i for i, cell in enumerate(cells()) if cell.shape.startswith(options.only)]
    number, rows = len(asked_for), []
    with ProcessPoolExecutor() as pool:
        asked = functools.partial(_numbered, repeats=options.repeats)
        for index, found in enumerate(pool.map(asked, asked_for), 1):
            rows.append(found)
            print(f"\r{index} of {number} cells", end="", flush=True)
    print("\n" + table(rows))
    if options.out != "-":
        out = Path(options.out)
        rows = merged(out, options.repeats, rows) if options.only else rows
        out.write_text(json.dumps({"repeats": options.repeats, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
