"""Which runs of an experiment are known, and which of them are trained as one program.

Populations depend only on the experiment and on finished tuning runs, never on where a sweep was
interrupted. A sweep killed at any point therefore forms the same populations again, and each
resumes from its own checkpoint.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from research.ablation.expansion import Cell, added_cells, report_cells, tuning_cells
from research.ablation.experiment import Experiment, points
from research.ablation.measure import point_key
from research.ablation.tuning import choose
from research.errors import UserError
from research.parallel.processes import on_first
from research.runs.store import read_result
from research.training.program import static_id

MostMembers = int | Callable[[ConfigDict, int], int]
"""Most runs of a population: a number, or a function of the config of a group and its size."""


@dataclass(frozen=True)
class Population:
    """Cells that are trained together as one program.

    All belong to the same arm and point, so adding an arm or splitting the sweep over machines
    leaves existing populations unchanged.
    """

    cells: tuple[Cell, ...]

    @property
    def configs(self) -> list[ConfigDict]:
        return [cell.config for cell in self.cells]

    @property
    def name(self) -> str:
        """A hash of the members' run ids."""
        text = " ".join(cell.run for cell in self.cells)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def title(self) -> str:
        """Stage, arm and axis point, as shown in the progress line."""
        first = self.cells[0]
        where = "".join(f" {k.split('.')[-1]}={v}" for k, v in first.point.items())
        return f"{first.stage} {first.arm}{where}"


@dataclass(frozen=True)
class Shard:
    """Shard `index` (from 0) of `count`; (arm, point) pairs are assigned round-robin."""

    index: int = 0
    count: int = 1

    def holds(self, number: int) -> bool:
        return number % self.count == self.index


def parse_shard(text: str) -> Shard:
    """Parses "i/n" with i from 1 to n into a shard. Raises UserError for anything else."""
    try:
        index, count = (int(part) for part in text.split("/"))
    except ValueError:
        index, count = 0, 0
    if not 1 <= index <= count:
        raise UserError(f"--shard={text!r} must be i/n with 1 <= i <= n, for example 1/4.")
    return Shard(index - 1, count)


def known_cells(experiment: Experiment, workdir: Path) -> tuple[list[Cell], list[tuple[str, dict]]]:
    """Returns the cells known so far, and the (arm, point) pairs whose tuning is unfinished.

    Tuning cells come first. The report cells of an arm at a point are known once all its tuning
    runs have results and its grid needs no further extension.
    """
    tuning: list[Cell] = []
    results: dict[str, dict] = {}
    more = tuning_cells(experiment)
    while more:
        tuning += more
        runs = [cell.run for cell in more]
        found = on_first(lambda runs=runs: {run: read_result(workdir / run) for run in runs})
        results |= {run: result for run, result in found.items() if result}
        more = added_cells(experiment, tuning, results)
    chosen = choose(experiment.outcome, [cell.to_json() for cell in tuning], results)
    reported, waiting = [], []
    for point in points(experiment):
        for arm in experiment.arms:
            best = chosen.get((arm, point_key(point))) if experiment.tune else {}
            if best is None:
                waiting.append((arm, point))
            else:
                reported += report_cells(experiment, arm, point, best)
    return tuning + reported, waiting


def populations(cells: Iterable[Cell], most: MostMembers) -> list[Population]:
    """Groups cells into populations of at most `most` members; each run is in exactly one.

    Seeds added later and values added by tuning form populations of their own, so that existing
    populations, and their checkpoints, stay unchanged.
    """
    seen: set[str] = set()
    groups: dict[tuple, list[Cell]] = {}
    for cell in cells:
        if cell.run not in seen:
            seen.add(cell.run)
            key = (cell.stage, cell.look, cell.arm, point_key(cell.point), static_id(cell.config))
            groups.setdefault(key, []).append(cell)
    found = []
    for group in groups.values():
        size = most if isinstance(most, int) else most(group[0].config, len(group))
        found += [Population(tuple(group[i : i + size])) for i in range(0, len(group), size)]
    return found


def cells_of_shard(cells: Iterable[Cell], experiment: Experiment, shard: Shard) -> list[Cell]:
    """Returns the cells of a shard; all cells of an arm at a point are in the same shard."""
    pairs = [(arm, point_key(point)) for point in points(experiment) for arm in experiment.arms]
    number = {pair: i for i, pair in enumerate(pairs)}
    return [c for c in cells if shard.holds(number[c.arm, point_key(c.point)])]
