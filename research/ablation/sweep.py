"""Runs an experiment: groups its cells into populations and trains those not finished yet.

<workdir>/experiment.json          the experiment, as data
          cells.json               maps runs to cells; cells-I-of-N.json for shard I of N
          environment.json
          <run id>/                one run, see store.py
          populations/<id>/        checkpoints of runs that are trained as one program
"""

import shutil
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import jax
from ml_collections import ConfigDict

from research.ablation.cells import write_cells
from research.ablation.expansion import Cell, report_cells, resolve, tuning_cells
from research.ablation.experiment import (
    Experiment,
    points,
    seed_list,
    tune_seed_list,
    tuning_grid,
)
from research.ablation.loading import (
    InMemoryExperiment,
    Source,
    check_distinct,
    experiment_name,
    load_experiment,
    representative_cells,
)
from research.ablation.match import with_matched_widths
from research.ablation.measured_metrics import check_metrics
from research.ablation.populations import (
    MostMembers,
    Population,
    Shard,
    cells_of_shard,
    known_cells,
    populations,
)
from research.ablation.registration import register, registration_from_json
from research.ablation.tuning import possible_values
from research.configuration import Deltas, load_config
from research.errors import UserError, while_starting
from research.parallel.layout import parse_layout, resolve_layout
from research.parallel.processes import is_first, on_first
from research.runs.store import (
    CONFIG,
    ENVIRONMENT,
    FAILED,
    METRICS,
    POPULATION,
    RESULT,
    read_json,
    read_result,
    write_json,
)
from research.tasks.registry import GENERATED
from research.training.initial import INITIAL, check_initial
from research.training.loop import train_population
from research.training.preemption import Preempted, StopRequest
from research.training.program import (
    HOST_KEYS,
    cached_task,
    clear_programs,
    make_program,
    static_id,
    task_id,
)
from research.training.records.data_record import check_same_data, check_same_files
from research.training.records.environment import describe_environment
from research.training.schema import run_record
from research.training.validation import check_config

# Maximum number of compiled programs kept in memory; nearby cells with the same shapes reuse them.
MAX_PROGRAMS = 8
EXPERIMENT, POPULATIONS = "experiment.json", "populations"


def prepare(source: Source, workdir: Path, most: MostMembers = 8, layout: str = "") -> Experiment:
    """Returns the experiment after checking every arm, and that no other one uses `workdir`.

    Args:
      source: the experiment file, or an experiment built in Python.
      workdir: directory of the runs.
      most: maximum population size, or a function that returns it.
      layout: replaces keys of `config.parallel` in all runs, see `parse_layout`.

    Raises UserError, before anything is trained or written.
    """
    there = on_first(lambda: read_json(workdir / EXPERIMENT))
    before = registration_from_json(there.get("registration")) if there else None
    name = experiment_name(source)
    experiment = load_experiment(source, before.basis if before else "")
    looks = register(experiment, name, before).looks
    experiment = replace(experiment, looks=looks)
    if layout:
        deltas = parse_layout(layout, load_config(experiment.base).parallel)
        experiment = with_layout(experiment, deltas)
    try:
        experiment = with_matched_widths(experiment)
        if experiment.match:  # the solved width may make two arms the same run
            check_distinct(experiment, representative_cells(experiment))
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    found = populations(_any_cells(experiment), most)
    # Populations with the same static id and size share a program: check each program only once.
    for population in {(static_id(p.configs[0]), len(p.cells)): p for p in found}.values():
        try:
            config = population.configs[0]
            program = check_config(config, len(population.cells))
            check_metrics(experiment, population.cells[0].arm, program, config)
        except UserError as error:
            raise UserError(f"{name}: arm {population.cells[0].arm!r}: {error}") from None
    _check_sources(found, workdir, name)
    check_extension(experiment, name)
    if there is not None and there["name"] != name:
        raise UserError(
            f"{workdir} holds the sweep of the experiment {there['name']!r}, not of "
            f"{name!r}. Choose another --workdir."
        )
    return experiment


def _check_sources(populations: Iterable[Population], workdir: Path, name: str) -> None:
    """Raises UserError if a run that has not begun cannot start from what `train.init_from` names.

    Those that have begun may need it no more.
    """
    asked: dict[tuple, tuple] = {}
    for population in populations:
        for cell in population.cells:
            started = (static_id(cell.config), *(cell.config.train.get(key) for key in HOST_KEYS))
            begun = on_first(lambda run=cell.run: (workdir / run / INITIAL).exists())
            if cell.config.train.init_from and started not in asked and not begun:
                program = make_program(cell.config, len(population.cells))
                asked[started] = f"{name}: arm {cell.arm!r}: ", program, cell.config
    check_initial(list(asked.values()))


def check_extension(experiment: Experiment, path: str) -> None:
    """Raises UserError if tuning could extend a grid by a value that is not allowed in a run."""
    arm, point = next(iter(experiment.arms)), points(experiment)[0]
    for key, values in possible_values(experiment).items():
        for value in (min(values), max(values)):
            tuned = tuning_grid(experiment)[0] | {key: value}
            seed = tune_seed_list(experiment)[0]
            try:
                check_config(resolve(experiment, arm, point, tuned, seed, "tune").config)
            except UserError as error:
                raise UserError(
                    f"{path}: tuning may continue {key} to {value!r}: {error} Say tune_extend=0, "
                    "or a smaller number."
                ) from None


def with_layout(experiment: Experiment, deltas: Deltas) -> Experiment:
    """Returns the experiment with `deltas` (keys of `config.parallel`) applied to all runs.

    Raises UserError for a key that an arm, an axis (also `along`) or tuning sets, which would
    override it.
    """
    arms, along = experiment.arms.values(), experiment.along.values()
    for part in (*arms, *along, experiment.axes, experiment.tune):
        for key in deltas.keys() & part.keys():
            raise UserError(f"--parallel sets {key!r}, and so does the experiment; leave it out.")
    return replace(experiment, common={**experiment.common, **deltas})


def _any_cells(experiment: Experiment) -> Iterator[Cell]:
    """Yields the tuning cells, then the report cells as if the first tuned values were chosen."""
    tuning = tuning_cells(experiment)
    yield from tuning
    for point in points(experiment):
        for arm in experiment.arms:
            yield from report_cells(experiment, arm, point, tuning[0].tuned if tuning else {})


def run_sweep(
    source: Source,
    workdir: Path,
    shard: Shard,
    retry_failed: bool,
    most: MostMembers,
    layout: str = "",
) -> dict[str, int]:
    """Trains the unfinished runs of an experiment.

    Args:
      source: the experiment file, or an experiment built in Python.
      workdir: directory of the runs.
      shard: the part of the sweep to train here.
      retry_failed: whether to train failed runs again.
      most: maximum population size, or a function that returns it.
      layout: as in `prepare`.

    Returns:
      {"trained", "finished before", "failed", "waiting"}: numbers of runs; "waiting" runs depend
      on tuning by another shard.

    Raises:
      UserError: an arm is invalid, or a data file changed since the sweep began.
      Preempted: the process was asked to stop; a checkpoint of the current population is saved.
    """
    with StopRequest() as stop:
        experiment = prepare(source, workdir, most, layout)
        on_first(lambda: _describe(experiment, source, workdir))
        return _run(experiment, workdir, shard, retry_failed, most, stop)


def _run(
    experiment: Experiment,
    workdir: Path,
    shard: Shard,
    retry_failed: bool,
    most: MostMembers,
    stop: StopRequest,
) -> dict[str, int]:
    """Trains the unfinished runs of a validated experiment; see `run_sweep`."""
    if retry_failed:
        known = cells_of_shard(known_cells(experiment, workdir)[0], experiment, shard)
        on_first(lambda: delete_failures(workdir, {cell.run for cell in known}))
    counts = {"trained": 0, "finished before": 0}
    visited: set[str] = set()
    held: set[tuple] = set()
    while True:
        cells, waiting = known_cells(experiment, workdir)
        own = cells_of_shard(cells, experiment, shard)
        on_first(lambda own=own: _list(own, workdir, shard))
        every = populations(cells, most)
        mine = {cell.run for cell in own}
        todo = [p for p in every if p.name not in visited and any(c.run in mine for c in p.cells)]
        if not todo:
            break
        for number, population in enumerate(todo, 1):
            visited.add(population.name)
            on_first(lambda p=population, cells=cells: _check_data(p, cells, workdir))
            done = on_first(lambda p=population: _done(p, workdir))
            if all(done):
                counts["finished before"] += len(done)
                continue
            if stop.agreed():
                raise Preempted("stopped between two runs")
            config = population.configs[0]
            program = (static_id(config), resolve_layout(config, len(done)))
            if len(held | {program}) > MAX_PROGRAMS:
                clear_programs()
                held.clear()
            held.add(program)
            _train(population, workdir, f"[{number}/{len(todo)}] {population.title}", stop)
            counts["trained"] += len(done)
    failed = on_first(lambda: _failures(mine, workdir))
    return counts | {"failed": failed, "waiting": len(waiting) * len(seed_list(experiment))}


def _describe(experiment: Experiment, source: Source, workdir: Path) -> None:
    """Writes experiment.json, with the registration, and environment.json."""
    name = experiment_name(source)
    there = read_json(workdir / EXPERIMENT)
    before = registration_from_json(there.get("registration")) if there else None
    about = experiment.to_json() | {
        "name": name,
        "file": "" if isinstance(source, InMemoryExperiment) else str(source),
        "registration": asdict(register(experiment, name, before)),
    }
    with while_starting(workdir):
        write_json(workdir / EXPERIMENT, about)
        write_json(workdir / ENVIRONMENT, describe_environment())


def _list(cells: Iterable[Cell], workdir: Path, shard: Shard) -> None:
    write_cells(workdir, [cell.to_json() for cell in cells], shard.index, shard.count)


def _done(population: Population, workdir: Path) -> list[bool]:
    return [read_result(workdir / cell.run) is not None for cell in population.cells]


def _check_data(population: Population, cells: Iterable[Cell], workdir: Path) -> None:
    """Raises UserError if a data file changed since another run of the sweep read it.

    Finished runs are checked too, because a sweep must not compare arms on different data.
    """
    config = population.configs[0]
    if config.task.name in GENERATED:
        return
    task = cached_task(task_id(config))
    for run in {cell.run for cell in population.cells}:
        check_same_data(task, workdir / run)
    for run in {cell.run for cell in cells if _reads(cell.config) == _reads(config)}:
        check_same_files(task, workdir / run)


def _reads(config: ConfigDict) -> tuple:
    """Returns the config values that determine which files a task reads."""
    languages = ("source_language", "target_language")
    keys = ("name", "path", "validation_path", "held_out", *languages, "held_out_speaker")
    return tuple(config.task.get(key) for key in keys)


def _failures(runs: Iterable[str], workdir: Path) -> int:
    results = [read_result(workdir / run) for run in runs]
    return sum(r is not None and r["status"] == FAILED for r in results)


def _train(population: Population, workdir: Path, title: str, stop: StopRequest) -> None:
    """Trains one population; an exception during training is recorded as the result of its runs.

    An OSError is raised instead: a full or failing disk says nothing about the arm.
    """
    runs = [workdir / cell.run for cell in population.cells]
    home = workdir / POPULATIONS / population.name
    try:
        train_population(population.configs, runs, home, title, stop=stop)
    except (UserError, Preempted, OSError):
        raise
    except Exception:
        error = traceback.format_exc()
        if is_first():
            print(f"{title} failed: {error.strip().splitlines()[-1]}")
            for cell, run in zip(population.cells, runs, strict=True):
                run.mkdir(parents=True, exist_ok=True)
                write_json(run / CONFIG, run_record(cell.config))
                write_json(run / RESULT, {"status": FAILED, "error": error, "seed": cell.seed})
        if jax.process_count() > 1:
            raise  # the other processes may not have failed, and would wait for this one forever


def delete_failures(workdir: Path, runs: Iterable[str]) -> None:
    """Deletes results, metrics and checkpoints of the failed runs, so that they start again."""
    for path in (workdir / run / RESULT for run in runs):
        result = read_json(path)
        if result and result["status"] == FAILED:
            path.unlink(missing_ok=True)
            (path.parent / METRICS).unlink(missing_ok=True)
            population = read_json(path.parent / POPULATION)
            if population:
                shutil.rmtree(path.parent / population["checkpoints"], ignore_errors=True)
