"""Training classifiers end to end: buckets in one program, what is kept and what is reported."""

import json

import jax
import numpy as np
import pytest

from research.errors import UserError
from research.parallel.layout import resolve_layout
from research.runs.store import read_result
from research.train import members_of
from research.training.budget import count_parameters, measure_budget
from research.training.loop import train_population
from research.training.preemption import Preempted
from research.training.program import make_program
from research.training.records.metrics import mean_metrics
from research.training.runs import load_best_params
from research.training.validation import check_config
from tests import small
from tests.runs import best_of, signal_at, without_time

LEARNS = {
    "optimizer__name": "adamw",
    "optimizer__learning_rate": 3e-2,
    "train__steps": 60,
    "model__body": "none",
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return small.labelled(tmp_path_factory.mktemp("texts"))


def train(config, home):
    configs = members_of(config)
    runs = [home / str(c.seed) for c in configs]
    train_population(configs, runs, home)
    return runs


@pytest.fixture(scope="module")
def config(path):
    return small.sentiment(path, members=2, task__word_dropout=0.1, **LEARNS)


@pytest.fixture(scope="module")
def classified(config, tmp_path_factory):
    """Runs of both members that nothing disturbed."""
    return train(config, tmp_path_factory.mktemp("classified"))


def test_a_run_learns_and_reports(config, classified):
    program = make_program(config, 2)
    for run in classified:
        result = read_result(run)
        test = result["best"]["test"]
        assert test["accuracy"] > 0.9, "a word decides"
        assert test["accuracy_by_class"] == pytest.approx([0.95, 0.95], abs=0.12)
        assert result["slices"]["accuracy_by_class"] == ["bad", "good"]
        assert len(test["accuracy_by_length"]) == len(result["slices"]["accuracy_by_length"])
        budget = result["budget"]
        assert budget["state_bytes"] is None and budget["flops_per_token"] > 0
        assert budget["tokens"] == round(60 * program.task.tokens)
        assert json.loads((run / "corpus.json").read_text())["labels"] == ["bad", "good"]
    params, _ = load_best_params(classified[0])
    assert count_parameters(config) == sum(p.size for p in jax.tree.leaves(params))


@pytest.mark.parametrize(("split", "texts"), [("validation", 46), ("test", 42)])
def test_evaluation_in_buckets_is_that_of_one_text_after_the_other(
    config, classified, split, texts
):
    program = make_program(config, 2)
    task = program.task
    params = [load_best_params(run)[0] for run in classified]
    stacked = jax.tree.map(lambda *a: np.stack(a), *params)
    found = program.evaluate[split](stacked, program.data).sums
    assert len(task.evaluation_batches(split, 1)) > 1
    run = jax.jit(lambda p, b: program.model.apply({"params": p}, b, method="forward"))
    right = losses = count = 0
    for bucket in task.data[split]:
        for tokens, length, label in zip(
            *(np.asarray(bucket[k]) for k in ("inputs", "length", "label")), strict=True
        ):
            if label < 0:
                continue
            row = np.zeros((1, task.length), np.int32)
            row[0, :length] = tokens[:length]
            logits = np.asarray(run(params[1], {"inputs": row, "length": length[None]})[0])
            losses += np.log(np.exp(logits).sum()) - logits[label]
            right, count = right + (logits.argmax() == label), count + 1
    mine = mean_metrics(found, 1)
    assert count == texts == found["loss"].count[1]
    assert mine["accuracy"] == pytest.approx(right / texts)
    assert mine["loss"] == pytest.approx(losses / texts, rel=1e-4)


def test_a_stopped_run_ends_as_if_nothing_had_happened(config, classified, tmp_path, monkeypatch):
    signal_at(monkeypatch, [30])
    with pytest.raises(Preempted, match="saved at step 30"):
        train(config, tmp_path)
    for run, undisturbed in zip(train(config, tmp_path), classified, strict=True):
        assert without_time(run) == without_time(undisturbed)
        jax.tree.map(np.testing.assert_array_equal, best_of(run)[0], best_of(undisturbed)[0])


@pytest.mark.parametrize(
    ("kind", "solved"), [("keyword", True), ("pair", False)], ids=["keyword", "pair"]
)
def test_a_sum_of_words_finds_one_keyword_and_never_a_pair(kind, solved, tmp_path):
    config = small.rule(task__kind=kind, task__batch_size=32, model__pooling="mean", **LEARNS)
    (run,) = train(config, tmp_path)
    accuracy = read_result(run)["best"]["test"]["accuracy"]
    assert accuracy > 0.95 if solved else accuracy < 0.8


def test_flops_of_a_transformer_are_counted():
    deltas = {"model__body": "transformer", "model__pooling": "class_token"}
    config = small.rule(model__feedforward=16, **deltas)
    wide = small.rule(model__feedforward=32, **deltas)
    more = [measure_budget(c)["flops_per_token"] * 4 * 5 for c in (config, wide)]
    # Two matrices of 8 x 16 more, 9 positions of 4 sequences: forward, and twice that backward.
    assert more[1] - more[0] == pytest.approx(3 * 2 * 2 * 8 * 16 * 4 * 9)


@pytest.mark.parametrize(
    ("deltas", "message"),
    [
        ({"parallel__context": 2}, "parallel.context=2 splits .*'decoder' only"),
        ({"parallel__model": 2}, "splits the heads of transformers only"),
    ],
)
def test_layouts_that_do_not_suit_are_refused(deltas, message):
    with pytest.raises(UserError, match=message):
        resolve_layout(small.rule(**deltas), 1, 8)
    heads = small.rule(model__body="transformer", model__feedforward=16, model__num_heads=2)
    with heads.unlocked():
        heads.parallel.model = 2
    assert resolve_layout(heads, 1, 8).model == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (small.rule(model__name="decoder", model__body="transformer"), "classifier can"),
        (small.recall(model__name="classifier"), "cannot learn the task 'recall'"),
    ],
)
def test_tasks_and_models_that_do_not_go_together_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        check_config(config)
