"""Measures the time and memory of a training step of every arm, with the arms taking turns.

A sweep times each population once, on a machine whose load changes, so its times cannot be
compared. Here all arms of all points are compiled first and then run for a few steps each, round
after round; a load that lasts longer than a round slows all of them alike.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from research.ablation.costs import Cost
from research.ablation.experiment import Experiment, point_name
from research.ablation.loading import representative_cells
from research.training.program import make_members, make_program

LEAST_SECONDS = 0.25
"""A turn runs steps for about this long at least, so that starting them weighs little."""


def measure_costs(
    experiment: Experiment, rounds: int, report_progress: Callable[[str], None] = print
) -> list[Cost]:
    """Compiles a training step of every arm at every point and times them in turn.

    Args:
      experiment: a checked experiment; tuned values are the first of their grid.
      rounds: number of turns that each gets.
      report_progress: receives a line of text about the progress.

    Raises UserError for an invalid config.
    """
    costs: list[Cost] = []
    turns: list[Callable[[], float]] = []
    for cell in representative_cells(experiment):
        report_progress(f"compiling {cell.arm} {point_name(cell.point)}".rstrip())
        steps, memory = _steps_of(cell.config)
        count = max(1, round(LEAST_SECONDS / steps(1)))
        turns.append(functools.partial(steps, count))
        tokens = cell.config.task.batch_size * cell.config.task.length
        costs.append(Cost(cell.arm, cell.point, tokens, memory, ()))
    seconds = []
    for index in range(rounds):
        report_progress(f"round {index + 1} of {rounds}")
        seconds.append([turn() for turn in turns])
    return [
        replace(cost, seconds=own)
        for cost, own in zip(costs, zip(*seconds, strict=True), strict=True)
    ]


def _steps_of(config: Any) -> tuple[Callable[[int], float], int | None]:
    """Returns a function (number of steps) -> seconds per step, and the memory of a step."""
    program: Any = make_program(config)
    members = make_members([config])
    state = program.init(members)
    # Where training begins with shorter sequences, the last steps are those of the full length.
    last = jnp.int32(config.train.steps)
    data = program.training_data(members.seed, config.train.steps, config.train.steps + 1)
    memory, train = None, program.train
    if hasattr(train, "lower"):  # pmap has none
        train = train.lower(state, members, data, last, last + 1).compile()
        if analysis := train.memory_analysis():
            memory = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    kept = [train(state, members, data, last, last + 1)[0]]

    def steps(count: int) -> float:
        began = time.perf_counter()
        kept[0], sums = train(kept[0], members, data, last, last + count)
        jax.block_until_ready((kept[0], sums))
        return (time.perf_counter() - began) / count

    return steps, memory
