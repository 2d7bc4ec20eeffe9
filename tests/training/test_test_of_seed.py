"""A test of each seed's own: drawn from the seed, the same at every call, and no other's."""

import jax
import numpy as np
import pytest

from research.runs.store import ITEMS, read_result
from research.tasks.registry import GENERATED, make_task
from research.train import members_of
from research.training.evaluating import evaluate
from research.training.loop import train_population
from research.training.program import make_program
from research.training.runs import load_best_params, load_run_config, open_run
from research.training.schema import run_id
from research.training.step import random_stream
from tests import small
from tests.compiled import compiled

MAKE = {
    "induction": small.induction,
    "recall": small.recall,
    "rule": small.rule,
    "transduction": small.transduction,
}


def lines(batch):
    """The sequences of a batch with what is asked of them, as a set."""
    columns = [np.asarray(batch[k]).reshape(len(batch["inputs"]), -1) for k in sorted(batch)]
    return {b"".join(column[i].tobytes() for column in columns) for i in range(len(columns[0]))}


def test_every_generated_task_can():
    assert set(MAKE) == set(GENERATED)


@pytest.mark.parametrize("name", MAKE)
def test_a_test_is_its_seeds_and_nobody_trains_on_it(name):
    task = make_task(MAKE[name](task__test_of_seed=True).task)
    held_out = compiled(task.evaluation, 1, 3)
    tests = [lines(held_out(np.uint32(seed), "test", 0, 2)) for seed in (0, 1)]
    assert tests[0] == lines(held_out(np.uint32(0), "test", 0, 2))
    common = lines(held_out((), "test", 0, 2))
    chosen = lines(held_out((), "validation", 0, 2))
    assert lines(held_out(np.uint32(1), "validation", 0, 2)) == chosen
    # Tiny sequences may come twice by chance; a stream that is used twice is there as a whole.
    for other in (tests[1], common, chosen):
        assert len(tests[0] & other) < len(tests[0]) / 2
    drawn = compiled(lambda seed: task.batch((), random_stream(seed, 1), 0))
    numbers = {"induction": 0x5EED0022, "recall": 0x5EED0002, "rule": 0x5EED0022}
    for seed in (0, 1, numbers.get(name, 0x5EED0012)):
        trained = lines(drawn(np.uint32(seed)))
        assert all(len(test & trained) < len(test) / 2 for test in tests)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds with a test of their own, trained as one program."""
    home = tmp_path_factory.mktemp("own")
    config = small.recall(members=2, task__test_of_seed=True, train__steps=4, train__eval_every=2)
    configs = members_of(config)
    folders = [home / str(c.seed) for c in configs]
    train_population(configs, folders, home)
    return configs, folders


def test_what_is_reported_is_of_the_seeds_own_test(runs):
    configs, folders = runs
    program = make_program(configs[0], 2)
    metrics = jax.jit(
        lambda params, batch: program.task.metrics(
            program.model.apply({"params": params}, batch, method="forward"), batch
        )
    )
    for config, folder in zip(configs, folders, strict=True):
        params, found = load_best_params(folder)[0], read_result(folder)["best"]
        for split, data in (("test", np.uint32(config.seed)), ("validation", ())):
            batches = config.train.eval_batches
            sums = [
                metrics(params, program.task.evaluation(data, split, i, batches))["loss"]
                for i in range(batches)
            ]
            loss = sum(s.total for s in sums) / sum(s.count for s in sums)
            assert found[split]["loss"] == pytest.approx(float(loss), rel=1e-5)


def test_results_of_items_that_no_other_seed_has_are_not_kept(runs):
    assert not any((folder / ITEMS).exists() for folder in runs[1])


def test_evaluating_again_finds_the_same_test(runs):
    for folder in runs[1]:
        again = evaluate(open_run(folder, load_run_config(folder))).metrics["test"]
        assert again["loss"] == pytest.approx(read_result(folder)["best"]["test"]["loss"], rel=1e-6)


def test_runs_without_one_keep_their_names():
    plain = small.recall()
    assert run_id(plain) == run_id(small.recall(task__test_of_seed=False))
    assert run_id(plain) != run_id(small.recall(task__test_of_seed=True))
    assert "test_of_seed" in plain.task
