"""--max_members: a number, or as many runs as an estimate says fit into the memory of a device."""

import dataclasses
import math

import pytest

from research.ablation.expansion import report_cells
from research.ablation.experiment import Experiment, Outcome
from research.ablation.populations import populations
from research.cloud.data import planned_data
from research.cloud.estimate import estimate
from research.cloud.members import DEFAULT, FILLED, as_many_as_fit, parse_most
from research.errors import UserError
from research.parallel.layout import ONE_DEVICE
from research.parallel.topology import Target, parse_target
from tests import small


@dataclasses.dataclass(frozen=True)
class Holding(Target):
    """One local device with this much memory."""

    bytes: float = math.inf

    @property
    def memory(self) -> float:
        return self.bytes


def needed(config, members):
    """Returns the bytes that a population takes by the estimate."""
    task = planned_data(config).task
    return estimate(config, task, ONE_DEVICE, members, "cpu").memory.total


def fitting(config, runs, memory):
    most = as_many_as_fit(Holding("small", None, 1, memory))
    assert callable(most)
    return most(config, runs)


def test_as_many_as_fit():
    config = small.recall(model__num_layers=1)
    memory = needed(config, 3) / FILLED
    assert fitting(config, 5, memory * 1.01) == 3
    assert fitting(config, 5, memory * 0.99) == 2
    assert fitting(config, 2, memory) == 2
    # One that does not fit is left to the plan, which says so, or to the device.
    assert fitting(config, 2, 1.0) == 1


def test_populations_have_as_many_members():
    experiment = Experiment(
        question="?",
        base=small.BASE,
        common=small.RECALL,
        arms={"one layer": {"model.num_layers": 1}, "two layers": {}},
        seeds=tuple(range(7)),
        outcome=Outcome("accuracy"),
    )
    cells = [c for arm in experiment.arms for c in report_cells(experiment, arm, {}, {})]
    fits = {1: 3, 2: 2}
    found = populations(cells, lambda config, runs: fits[config.model.num_layers])
    assert [len(p.cells) for p in found] == [3, 3, 1, 2, 2, 2, 1]


def test_the_memory_of_a_cpu_is_not_known():
    assert parse_most("auto", parse_target("local")) == DEFAULT
    assert callable(parse_most("auto", parse_target("v5e:1x1")))
    assert parse_most("12", parse_target("local")) == 12


@pytest.mark.parametrize("text", ["0", "-1", "all", "1.5", ""])
def test_what_is_no_number_of_members(text):
    with pytest.raises(UserError, match="must be at least 1, or 'auto'"):
        parse_most(text, parse_target("local"))


def test_a_model_without_a_plan_needs_a_number():
    most = as_many_as_fit(Holding("small", None, 1, 1e9))
    with pytest.raises(UserError, match="--max_members=auto: model.name="):
        most(small.transduction(), 3)
