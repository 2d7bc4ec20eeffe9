"""Reads a sweep directory into a `Study`; the sweep may be finished or still running."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from research.ablation.cells import read_cells
from research.ablation.costs import read_costs
from research.ablation.experiment import (
    Experiment,
    experiment_from_json,
    points,
    seed_list,
    tune_seed_list,
    tuning_grid,
)
from research.ablation.measure import point_key
from research.ablation.registration import registration_from_json
from research.errors import UserError
from research.report.judging.items import read_items
from research.report.judging.study import WAITING, Run, Study
from research.runs import store


def load_study(workdir: str | Path) -> Study:
    """Reads a sweep directory. Raises UserError if it is not one, or if a file is damaged."""
    workdir = Path(workdir)
    plain = _read(workdir / "experiment.json")
    if plain is None:
        what = "there is no such directory" if not workdir.is_dir() else "it has no experiment.json"
        raise UserError(
            f"--workdir={str(workdir)!r} is not a sweep directory: {what}. `python -m "
            "research.sweep --experiment=experiments/NAME.py --workdir=DIR` makes one."
        )
    try:
        experiment = experiment_from_json(plain)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{workdir / 'experiment.json'} is no experiment: {error!r}.") from None
    runs: dict[str, tuple] = {}
    cells = read_cells(workdir)
    for cell in cells:
        # Two cells may share a run, which is then read only once.
        run = cell["run"]
        if run not in runs or (cell["stage"] == "report" and not runs[run][1]):
            runs[run] = _read_run(workdir / run, cell["stage"] == "report")
    read = {cell["run"] + cell["stage"]: runs[cell["run"]] for cell in cells}
    environment = _read(workdir / "environment.json") or {}
    study = make_study(plain, cells, read, environment, workdir, experiment)
    return replace(study, items=read_items(study), costs=read_costs(workdir))


def make_study(
    plain: Mapping[str, Any],
    cells: Sequence[Mapping],
    read: Mapping[str, tuple],
    environment: Mapping[str, Any],
    workdir: Path,
    experiment: Experiment,
) -> Study:
    """Returns the study of a sweep.

    Args:
      plain: parsed experiment.json.
      cells: rows of cells.json; cells that are not part of the experiment are left out.
      read: {run id + stage: (result, curve, config, environment)}.
      environment: environment of the sweep.
      workdir: directory of the sweep or of its results.json.
      experiment: the experiment restored from `plain`.
    """
    shown = _ordered(cells, experiment)
    grid = len(tuning_grid(experiment)) * len(tune_seed_list(experiment))
    reported = len(seed_list(experiment))
    pairs = [(arm, point_key(point)) for point in points(experiment) for arm in experiment.arms]
    known = Counter((cell["arm"], point_key(cell["point"]), cell["stage"]) for cell in shown)
    return Study(
        name=str(plain.get("name") or workdir.name),
        file=str(plain.get("file") or ""),
        workdir=workdir,
        experiment=experiment,
        runs=[_run(cell, *read[cell["run"] + cell["stage"]]) for cell in shown],
        # Tuning may have extended grids, and more seeds may exist than the experiment asks for.
        planned=sum(
            max(grid, known[arm, point, "tune"]) + max(reported, known[arm, point, "report"])
            for arm, point in pairs
        ),
        environment=environment,
        plain=plain,
        registration=registration_from_json(plain.get("registration")),
    )


def _ordered(cells: Sequence[Mapping], experiment: Experiment) -> list[Mapping]:
    """Returns the known cells of the experiment, tuning cells first, then report cells."""
    pairs = [(arm, point_key(point)) for point in points(experiment) for arm in experiment.arms]
    place = {pair: i for i, pair in enumerate(pairs)}
    known = [(place.get((c["arm"], point_key(c["point"]))), c) for c in cells]
    found = [(c["stage"] != "tune", at, c) for at, c in known if at is not None]
    return [c for _, _, c in sorted(found, key=lambda row: row[:2])]


def _read(path: Path) -> Any:
    try:
        return store.read_json(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}.") from None


def _read_run(path: Path, with_curve: bool) -> tuple:
    result = _read(path / store.RESULT)
    curve = store.read_metrics(path) if with_curve else []
    return result, curve, _read(path / store.CONFIG), _read(path / store.ENVIRONMENT)


def _run(cell: Mapping, result: Any, curve: list, config: Any, environment: Any) -> Run:
    return Run(
        run=cell["run"],
        arm=cell["arm"],
        point=cell["point"],
        stage=cell["stage"],
        tuned=cell["tuned"],
        seed=cell["seed"],
        status=result["status"] if result else WAITING,
        result=result or {},
        curve=curve,
        config=config or {},
        environment=environment or {},
    )
