"""Forecasts memory, time and cost of a run, or of all runs of an experiment, on a target."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from research.ablation.expansion import Cell, report_cells, tuning_cells
from research.ablation.experiment import Experiment, points, tuning_grid
from research.ablation.populations import MostMembers, populations
from research.cloud.collectives import Collective, parse_collectives
from research.cloud.data import describe_data, planned_data
from research.cloud.estimate import Estimate, estimate, step_seconds
from research.cloud.prices import Price
from research.cloud.step import OutOfMemory, compile_step
from research.configuration import apply_deltas
from research.errors import UserError
from research.parallel.layout import Layout, resolve_layout
from research.parallel.topology import Target, target_devices
from research.tasks.task import Task
from research.training.program import static_id


class Compiled(NamedTuple):
    """Memory on one device as the compiler reports it, in bytes, and properties of the program.

    Attributes:
      arguments: bytes kept between steps.
      temporaries: additional bytes during a step.
      kernels: number of calls of Pallas kernels in the program.
      collectives: collectives per step; empty for a program that does not fit into memory.
    """

    arguments: float
    temporaries: float
    kernels: int = 0
    collectives: Sequence[Collective] = ()


class Forecast(NamedTuple):
    """Forecast for training one population on a target.

    Attributes:
      target, layout: the devices, and the sizes of the mesh axes.
      members: population size.
      estimate: memory, FLOPs and parameters, estimated without compiling.
      compiled: report of the compiler; None if the program was not compiled.
      seconds: seconds per step; None for devices with unknown peak performance.
      steps, tokens: training steps, and tokens per step over all members.
      price: price of the chips; None if unknown.
      corpus: one line on the size of the corpus and what a device holds of it; "" without one.
    """

    target: Target
    layout: Layout
    members: int
    estimate: Estimate
    compiled: Compiled | None
    seconds: float | None
    steps: int
    tokens: int
    price: Price | None
    corpus: str = ""

    @property
    def needed(self) -> float:
        """Bytes needed on one device, from the compiler if available, else estimated."""
        if self.compiled is None:
            return self.estimate.memory.total
        return self.compiled.arguments + self.compiled.temporaries

    @property
    def fits(self) -> bool:
        """Whether the program fits into the memory of a device."""
        return self.needed <= self.target.memory

    @property
    def hours(self) -> float | None:
        """Hours of training, without evaluation, compilation and startup; None if unknown."""
        return None if self.seconds is None else self.steps * self.seconds / 3600

    @property
    def utilization(self) -> float | None:
        """Model FLOPs utilization, a fraction of the peak (Chowdhery 2022, appendix B)."""
        chip = self.target.chip
        if self.seconds is None or chip is None:
            return None
        return self.estimate.model_flops / self.seconds / (self.target.chips * chip.flops)

    def cost(self, spot: bool = False) -> float | None:
        """Returns the cost in US dollars; None without a price."""
        rate = None if self.price is None else (self.price.spot if spot else self.price.on_demand)
        if rate is None or self.hours is None:
            return None
        return self.hours * self.target.chips * rate


def forecast(
    config: ConfigDict,
    target: Target,
    prices: Mapping[str, Price],
    compiling: bool,
    members: int = 1,
    tokens: int = 0,
) -> Forecast:
    """Returns the forecast for training a population of `members` runs of a config on a target.

    Args:
      config: the whole config; parallel.how='pmap' is planned as the same layout under 'jit'.
      target: the devices to train on.
      prices: {generation: price}.
      compiling: whether to compile the training program for the target, which takes a minute or two
        and needs libtpu for a TPU slice; otherwise memory is estimated from shapes.
      members: population size P.
      tokens: stated size of the corpus; 0: read from its files.

    Raises UserError for a config or layout that is invalid on the target.
    """
    config = apply_deltas(config, {"parallel.how": "jit"})
    data = planned_data(config, tokens)
    task = data.task
    layout = resolve_layout(config, members, target.devices)
    # Looked up before anything is traced, because this fails early without libtpu.
    devices = target_devices(target) if compiling or target.slice is None else ()
    found = estimate(config, task, layout, members, target.platform)
    compiled = None
    if compiling:
        compiled = _compile(config, task, layout, members, devices, found)
    return Forecast(
        target=target,
        layout=layout,
        members=members,
        estimate=found,
        compiled=compiled,
        seconds=step_seconds(target, layout.devices, found.flops),
        steps=config.train.steps,
        tokens=members * config.task.batch_size * config.task.length,
        price=prices.get(target.slice.generation) if target.slice else None,
        corpus=describe_data(config, data, layout),
    )


def _compile(
    config: ConfigDict,
    task: Task,
    layout: Layout,
    members: int,
    devices: Sequence[Any],
    estimated: Estimate,
) -> Compiled:
    """Compiles the training program and returns the compiler's report."""
    try:
        program = compile_step(config, task, layout, members, devices)
    except OutOfMemory as error:
        memory = estimated.memory
        return Compiled(memory.total - memory.temporaries, error.bytes)
    analysis, text = program.memory_analysis(), program.as_text()
    return Compiled(
        analysis.argument_size_in_bytes,
        analysis.temp_size_in_bytes,
        text.count("tpu_custom_call"),
        parse_collectives(text),
    )


class Row(NamedTuple):
    """All runs of one arm at one point of the axes, on one target.

    Attributes:
      arm, point: the arm and the axis point.
      runs: number of tuning and report runs.
      forecasts: one per population; populations are trained one after the other.
    """

    arm: str
    point: Mapping[str, object]
    runs: int
    forecasts: list[Forecast]

    @property
    def fits(self) -> bool:
        """Whether all populations fit."""
        return all(f.fits for f in self.forecasts)

    @property
    def hours(self) -> float | None:
        """Hours of training for all populations; None if unknown."""
        return _sum(f.hours for f in self.forecasts)

    def cost(self, spot: bool = False) -> float | None:
        """Returns the cost in US dollars; None without a price."""
        return _sum(f.cost(spot) for f in self.forecasts)


def _sum(values: Iterable[float | None]) -> float | None:
    """Returns the sum; None if one of the values is None."""
    values = list(values)
    return None if any(v is None for v in values) else sum(v for v in values if v is not None)


def forecast_experiment(
    experiment: Experiment,
    target: Target,
    prices: Mapping[str, Price],
    compiling: bool,
    most: MostMembers,
    tokens: int = 0,
) -> list[Row]:
    """Returns one row per arm and point, with forecasts for all runs that a sweep would train.

    The tuned values are not known yet, but any of them costs the same.

    Args:
      experiment: the experiment, with its matched widths solved.
      target: the devices to train on, one population after the other.
      prices: {generation: price}.
      compiling: see `forecast`.
      most: maximum population size, or a function that returns it.
      tokens: see `forecast`.

    Raises UserError that names the invalid arm.
    """
    known: dict[tuple[str, int], Forecast] = {}
    chosen = tuning_grid(experiment)[0]
    tuning = tuning_cells(experiment)
    rows = []
    for point in points(experiment):
        for arm in experiment.arms:
            cells = [c for c in tuning if c.arm == arm and c.point == point]
            cells += report_cells(experiment, arm, point, chosen)
            found = []
            # A report cell may have the config of a tuning cell, but never its seed.
            for population in populations(cells, most):
                config, members = population.configs[0], len(population.cells)
                key = (static_id(config), members)
                if key not in known:
                    known[key] = _of_cell(
                        population.cells[0], target, prices, compiling, members, tokens
                    )
                found.append(known[key])
            rows.append(Row(arm, point, len(cells), found))
    return rows


def _of_cell(cell: Cell, *arguments: Any) -> Forecast:
    try:
        return forecast(cell.config, *arguments)
    except UserError as error:
        raise UserError(f"arm {cell.arm!r}: {error}") from None


def total_cost(rows: Iterable[Row | Forecast]) -> float | None:
    """Returns the total on-demand cost in US dollars; None without a price."""
    return _sum(row.cost() for row in rows)


def check_budget(cost: float | None, budget: float | None, what: str) -> None:
    """Raises UserError if the cost exceeds the budget or is unknown."""
    if budget is None:
        return
    if cost is None:
        raise UserError(
            f"--budget={budget:g}: there is no price for {what}; add a row to a table of prices "
            "and give it as --prices=FILE."
        )
    if cost > budget:
        raise UserError(f"--budget={budget:g}: {what} costs about ${cost:,.2f} on demand.")


def check_fits(forecasts: Iterable[Forecast]) -> None:
    """Raises UserError if one of the forecasts does not fit into memory."""
    for f in forecasts:
        if not f.fits:
            over = (f.needed - f.target.memory) / 1e9
            raise UserError(f"--topology={f.target.name}: does not fit: {over:.1f} GB over.")
