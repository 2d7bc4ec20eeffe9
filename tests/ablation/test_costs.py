"""The cost of a training step, measured with the arms taking turns."""

import pytest

from research.ablation import costs, timing
from research.ablation.experiment import Experiment, Outcome
from tests import small


@pytest.fixture(scope="module")
def measured():
    experiment = Experiment(
        question="?",
        base=small.BASE,
        common={"model.width": 8, "model.num_layers": 1, "model.feedforward": 0},
        arms={"softmax": {"model.implementation": "dense"}, "linear": {"model.mixer": "linear"}},
        axes={"task.length": (16, 256)},
        along={
            "task.length=16": {"task.batch_size": 16},
            "task.length=256": {"task.batch_size": 1},
        },
        outcome=Outcome("accuracy"),
        seeds=(0,),
    )
    said = []
    return timing.measure_costs(experiment, 2, said.append), said


def test_every_arm_gets_as_many_turns_at_every_point(measured):
    found, said = measured
    assert [(c.arm, c.point["task.length"]) for c in found] == [
        ("softmax", 16),
        ("linear", 16),
        ("softmax", 256),
        ("linear", 256),
    ]
    assert all(len(c.seconds) == 2 and min(c.seconds) > 0 for c in found)
    assert {c.tokens for c in found} == {256}
    assert said[-2:] == ["round 1 of 2", "round 2 of 2"]


def test_memory_of_dense_attention_grows_with_the_square_of_the_length(measured):
    (short, _, long, linear), _ = measured
    # Float32 scores of one head, kept for the gradient: 256 x 256 for one sequence, and 16 x 16
    # for each of 16.
    assert long.memory_bytes - short.memory_bytes > 0.9 * 4 * (256**2 - 16 * 16**2)
    assert linear.memory_bytes < long.memory_bytes


def test_costs_are_read_as_they_were_written(measured, tmp_path):
    assert costs.read_costs(tmp_path) == costs.Costs()
    found = costs.Costs({"device": "cpu"}, measured[0])
    costs.write_costs(found, tmp_path)
    assert costs.read_costs(tmp_path) == found
