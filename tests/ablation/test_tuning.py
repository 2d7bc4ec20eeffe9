"""The choice among tuned values."""

import pytest

from research.ablation.experiment import Outcome
from research.ablation.tuning import choose


def tuning(scores, status="completed"):
    """Cells and results of {rate: values over seeds}; None is a diverged seed."""
    cells, results = [], {}
    for rate, values in scores.items():
        for seed, value in enumerate(values):
            run = f"{rate}-{seed}"
            cells.append(
                {
                    "arm": "a",
                    "point": {"x": [1, 2]},
                    "stage": "tune",
                    "tuned": {"lr": rate},
                    "run": run,
                }
            )
            broken = {"status": "diverged", "best": {"validation": {"accuracy": 0.99}}}
            whole = {"status": status, "best": {"validation": {"accuracy": value}}}
            results[run] = broken if value is None else whole
    return cells, results


@pytest.mark.parametrize(
    ("scores", "higher", "best"),
    [
        ({0.1: [0.5, 0.6], 0.2: [0.7, 0.6], 0.3: [0.1, 0.9]}, True, 0.2),
        ({0.1: [0.5, 0.6], 0.2: [0.7, 0.6], 0.3: [0.1, 0.9]}, False, 0.3),
        ({0.1: [0.5, 0.5], 0.2: [0.5, 0.5]}, True, 0.1),
        ({0.1: [0.2, 0.2], 0.2: [1.0, None]}, True, 0.1),
        ({0.1: [None, None], 0.2: [0.1, None]}, True, 0.2),
        ({0.1: [None, None], 0.2: [None, None]}, True, 0.1),
    ],
)
def test_choice(scores, higher, best):
    cells, results = tuning(scores)
    outcome = Outcome("accuracy", higher_is_better=higher)
    assert choose(outcome, cells, results) == {("a", (("x", (1, 2)),)): {"lr": best}}


def test_choice_waits_for_the_whole_grid():
    cells, results = tuning({0.1: [0.5], 0.2: [0.7]})
    del results["0.1-0"]
    assert choose(Outcome("accuracy", higher_is_better=True), cells, results) == {}


def test_choice_counts_a_failed_run_as_worst():
    cells, results = tuning({0.1: [0.1], 0.2: [0.7]})
    results["0.2-0"]["status"] = "failed"
    assert list(choose(Outcome("accuracy", higher_is_better=True), cells, results).values()) == [
        {"lr": 0.1}
    ]
