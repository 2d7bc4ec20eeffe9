"""What runs say of their attention: measures while they train, answers when training ends."""

import numpy as np
import pytest

from research.interpret.analyses import run_analyses
from research.interpret.explanations import METRICS, RATIONALE_METRICS
from research.training.loop import member_for_analysis, train_population
from research.training.program import make_program
from research.training.runs import load_run_config, open_run
from tests import small
from tests.interpret.test_capture import applied
from tests.interpret.test_head_metrics import columns_of
from tests.random_runs import random_params

POOLING = ("entropy_of_pooling", "confidence_of_pooling")


@pytest.fixture(scope="module")
def recall(tmp_path_factory):
    """A population of two that is measured and asked: config, directory, results."""
    configs = [
        small.recall(
            interpret__measures=("induction", "entropy"),
            interpret__final=("head_importance",),
            interpret__examples=8,
            model__feedforward=0,
            train__steps=8,
            seed=seed,
        )
        for seed in (0, 1)
    ]
    home = tmp_path_factory.mktemp("recall")
    return configs[0], home, train_population(configs, [home / "a", home / "b"], home)


@pytest.fixture(scope="module")
def rule(tmp_path_factory):
    """A population of two classifiers that learn: directory, results."""
    configs = [
        small.rule(
            seed=seed,
            model__body="none",
            optimizer__name="adamw",
            optimizer__learning_rate=0.03,
            train__steps=300,
            train__log_every=100,
            train__eval_every=100,
            train__checkpoint_every=300,
            interpret__measures=POOLING,
            interpret__final=("faithfulness",),
            interpret__examples=16,
        )
        for seed in (0, 1)
    ]
    home = tmp_path_factory.mktemp("rule")
    return home, train_population(configs, [home / "a", home / "b"], home)


def test_measures_are_logged_and_in_the_result(recall):
    _, home, results = recall
    for result in results:
        found = result["best"]["validation"]
        assert 0 < found["entropy"] < np.log(16)
        assert len(found["induction_by_head"]) == 4 == len(result["slices"]["induction_by_head"])
        assert found["induction"] == pytest.approx(max(found["induction_by_head"]), rel=0.05)
    assert results[0]["best"] != results[1]["best"]
    rows = (home / "a" / "metrics.jsonl").read_text()
    assert '"validation/induction"' in rows


def test_a_run_answers_and_its_result_has_it(recall):
    config, _, results = recall
    found = results[0]["best"]["test"]
    assert "removable_heads" not in results[0]["best"]["validation"]
    assert 0 <= found["significant_heads"] <= 1 and 0 <= found["removable_heads"] <= 1
    assert results[0]["slices"]["importance_by_head"] == [
        f"layer {layer}.{head}" for layer in range(2) for head in range(2)
    ]
    assert len(found["quality_by_heads_gone"]) == 5
    # With none gone, quality is that of the model on these examples.
    program = make_program(config, 2)
    asked = member_for_analysis(program, config, random_params(program, 0.0), 0)
    nothing = run_analyses(("head_importance",), asked)
    assert nothing.metrics["significant_heads"] == 0
    assert nothing.metrics["removable_heads"] == 1


def test_pooling_is_measured_and_examples_that_fill_a_batch_do_not_count(rule):
    home, results = rule
    run = open_run(home / "a", load_run_config(home / "a"))
    length = run.config.task.length
    found = results[0]["best"]["validation"]
    (entropy,) = found["entropy_of_pooling_by_head"]
    assert 0 < entropy < np.log(length)
    assert entropy == pytest.approx(found["entropy_of_pooling"])
    assert 1 / length < found["confidence_of_pooling"] < 1

    batch = {
        "inputs": np.arange(12).reshape(2, 6) % 5,
        "length": np.array([6, 4]),
        "label": np.array([1, -1]),
    }
    sums, _ = columns_of(run.model, run.params, batch, POOLING)
    weights = np.asarray(applied(run.model, run.params, batch, "weights"))[0].ravel()
    own = -(weights * np.log(weights)).sum()
    np.testing.assert_allclose(sums["entropy_of_pooling"].total, own, rtol=1e-5)
    np.testing.assert_allclose(sums["confidence_of_pooling"].total, weights.max(), rtol=1e-5)


def test_a_run_learns_the_keyword_and_explanations_find_it(rule):
    _, results = rule
    first, second = (result["best"]["test"] for result in results)
    assert {*METRICS, *RATIONALE_METRICS} <= set(first)
    assert "gradient_tau" not in results[0]["best"]["validation"]
    for found in (first, second):
        assert found["accuracy"] == 1
        for way in ("leave_one_out", "gradient", "integrated_gradients"):
            assert found[f"truth_{way}"] > 0.9 > found["truth_random"], way
        assert found["comprehensiveness_gradient"] > found["comprehensiveness_random"] + 0.1
    # How far two attentions are from each other is the same seen from either.
    assert first["seed_divergence"] == pytest.approx(second["seed_divergence"], rel=1e-4)
    assert first["seed_divergence"] > 0
    assert results[0]["slices"]["gradient_tau_by_class"] == ["first", "second"]
