"""Forecasts a sweep without training: its runs, their budget, and how long they would take."""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from research.ablation.expansion import Cell, report_cells, tuning_cells
from research.ablation.experiment import Experiment
from research.ablation.populations import (
    MostMembers,
    Shard,
    cells_of_shard,
    known_cells,
    populations,
)
from research.runs.store import FAILED, read_result
from research.training.budget import measure_budget
from research.training.program import static_id


def forecast(experiment: Experiment, workdir: Path, shard: Shard, most: MostMembers) -> list[dict]:
    """Returns one row for each run of a sweep.

    Keys of a row: run ("after tuning" if the tuned values are not known yet), stage, arm, deltas,
    parameters, flops_per_token, state_bytes, members (population size of its program), status
    ("done", "failed", "to do") and seconds. The seconds are predicted for this run's share of its
    program, and None until a step has been timed in `workdir`; shapes that have not run yet are
    predicted from their FLOPs.
    """
    cells, waiting = known_cells(experiment, workdir)
    # The tuned values are not known yet, but any of them stands in: none changes the budget.
    guess = next(iter(tuning_cells(experiment)), None)
    later = [
        cell
        for arm, point in waiting
        for cell in report_cells(experiment, arm, point, guess.tuned if guess else {})
    ]
    open_ids = {id(cell) for cell in later}
    mine = {id(cell) for cell in cells_of_shard(cells + later, experiment, shard)}
    rates = measured_rates(cells, workdir)
    rows = []
    for population in populations(cells, most) + populations(later, most):
        for cell in population.cells:
            if id(cell) not in mine:
                continue
            result = None if id(cell) in open_ids else read_result(workdir / cell.run)
            budget = measure_budget(cell.config)
            rows.append(
                {
                    "run": "after tuning" if id(cell) in open_ids else cell.run,
                    "stage": cell.stage,
                    "arm": cell.arm,
                    "deltas": {
                        **cell.point,
                        **({} if id(cell) in open_ids else cell.tuned),
                        "seed": cell.seed,
                    },
                    **{k: budget[k] for k in ("parameters", "flops_per_token", "state_bytes")},
                    "members": len(population.cells),
                    "status": _status(result),
                    "seconds": predict(cell.config, budget, rates),
                }
            )
    return rows


def _status(result: dict | None) -> str:
    if result is None:
        return "to do"
    return "failed" if result["status"] == FAILED else "done"


def measured_rates(cells: Sequence[Cell], workdir: Path) -> dict[str, tuple[float, float]]:
    """Returns {static id: (seconds, FLOPs) per step of one member} of finished runs."""
    rates = {}
    for cell in cells:
        result = read_result(workdir / cell.run)
        if result and result["status"] != FAILED and result["timing"]["steps_per_second"]:
            budget = result["budget"]
            flops = budget["flops_per_token"] * budget["tokens"] / budget["steps"]
            seconds = 1 / result["timing"]["steps_per_second"] / result["timing"]["members"]
            rates[static_id(cell.config)] = (seconds, flops)
    return rates


def predict(
    config: ConfigDict, budget: dict[str, float], rates: dict[str, tuple[float, float]]
) -> float | None:
    """Returns the predicted seconds of one run, or None when nothing has been measured."""
    if not rates:
        return None
    if static_id(config) in rates:
        return rates[static_id(config)][0] * budget["steps"]
    seconds, flops = (sum(column) for column in zip(*rates.values(), strict=True))
    return seconds / flops * budget["flops_per_token"] * budget["tokens"]
