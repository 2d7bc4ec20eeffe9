"""Runs with every optimizer: resumed as if nothing had happened, members as if alone, in parts."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from research.runs.store import read_result
from research.training.evaluating import evaluate, metric_changes
from research.training.preemption import Preempted
from research.training.program import make_members, make_program, state_specs
from research.training.runs import load_run_config, open_run
from tests import small
from tests.runs import signal_at, train, without_time

SIZES = {"member": 2, "data": 2, "context": 1, "model": 2}
HEAVY = dict.fromkeys(("adafactor", "lion", "muon"), pytest.mark.slow)


def config(name, **deltas):
    free = {"optimizer__schedule": "constant"} if name == "schedule_free" else {}
    return small.recall(
        optimizer__name=name,
        model__num_layers=1,
        optimizer__accumulate=2,
        train__steps=10,
        train__eval_every=5,
        train__checkpoint_every=4,
        **free,
        **deltas,
    )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=HEAVY.get(name, ()))
        for name in ("adafactor", "lion", "muon", "schedule_free")
    ],
)
def test_stopped_members_end_as_if_nothing_had_happened(name, tmp_path, monkeypatch):
    whole = train(config(name, members=2), tmp_path / "whole")
    signal_at(monkeypatch, [7])
    with pytest.raises(Preempted):
        train(config(name, members=2), tmp_path / "stopped")
    for run, undisturbed in zip(
        train(config(name, members=2), tmp_path / "stopped"), whole, strict=True
    ):
        assert without_time(run) == without_time(undisturbed)
    # What is kept is what was evaluated, also where gradients are taken elsewhere.
    assert not metric_changes(
        evaluate(open_run(whole[0], load_run_config(whole[0]))).metrics, read_result(whole[0])
    )


def test_schedule_free_keeps_the_average():
    """Its first average is its first iterate; all later ones are further from where it is."""
    program = make_program(config("schedule_free"))
    members = make_members([config("schedule_free", seed=seed) for seed in (0, 1)])
    state = program.init(members)
    for step in range(1, 4):
        state, _ = program.train(
            state, members, program.task.data, np.int32(step - 1), np.int32(step)
        )
        iterate = state.optimizer[-1].iterate
        gaps = jax.tree.map(lambda x, z: float(abs(x - z).max()), state.params, iterate)
        assert (max(jax.tree.leaves(gaps)) > 1e-5) == (step > 1)


@pytest.mark.parametrize("name", ["adafactor", "muon", "schedule_free"])
@pytest.mark.parametrize("fsdp", [False, True])
def test_moments_lie_where_their_parameters_lie(name, fsdp):
    program = make_program(config(name, model__norm="layernorm"))
    specs = state_specs(program.model, program.state, SIZES, fsdp)
    leaves = jax.tree_util.tree_leaves_with_path
    wanted = {tuple(path): spec for path, spec in leaves(specs.params)}
    shapes = {tuple(path): leaf.shape for path, leaf in leaves(program.state.params)}
    found = dict.fromkeys(wanted, 0)
    for (path, spec), (_, leaf) in zip(
        leaves(specs.optimizer), leaves(program.state.optimizer), strict=True
    ):
        own = next((tuple(path[i:]) for i in range(len(path)) if tuple(path[i:]) in wanted), None)
        if own is None:
            assert leaf.size <= 3, "counts, and the coefficients of Muon"
            continue
        found[own] += 1
        # A factored moment has size 1 where it is a mean; nothing of it can lie in parts there.
        kept = [a == b for a, b in zip(leaf.shape, shapes[own], strict=True)]
        assert spec == PartitionSpec(
            *(axis if k else None for axis, k in zip(wanted[own], kept, strict=True))
        ), (path, spec)
    assert min(found.values()) >= 1
    assert any("model" in spec for spec in wanted.values())
