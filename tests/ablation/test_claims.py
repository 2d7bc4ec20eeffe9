"""Claims: their way through JSON, what they name, and tests that cannot be."""

import json
from dataclasses import asdict

import pytest

from research.ablation.claims import (
    Claim,
    Crossover,
    Direction,
    Equivalence,
    Threshold,
    Trend,
    claim_from_json,
    higher_is_better,
    restore_test,
)
from research.ablation.experiment import Outcome
from research.errors import UserError

TESTS = [
    Direction("a", "b", 0.1, {"x": 3}, metric="loss", better="lower"),
    Threshold("a", at_least=0.5),
    Threshold("a", at_most=0.5, at={"x": 1}),
    Equivalence("a", "b", 0.02),
    Crossover("a", "b", "x", value=4),
    Trend("a", "x", "flat", 0.1),
]


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.kind)
def test_claims_survive_json(test):
    claim = Claim("text", "source", {"a": 1.5}, test)
    assert claim_from_json(json.loads(json.dumps(asdict(claim)))) == claim


def test_claims_name_their_arms_and_axes():
    assert Claim("t", test=Crossover("a", "b", "x", at={"y": 1, "slice": "1-2"})).arms() == (
        "a",
        "b",
    )
    assert Claim("t", test=Crossover("a", "b", "x", at={"y": 1, "slice": "1-2"})).axes() == (
        "y",
        "x",
    )
    assert Claim("t").arms() == () and Claim("t").axes() == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Threshold("a"), "exactly one"),
        (lambda: Threshold("a", 0.1, 0.2), "exactly one"),
        (lambda: Threshold("a", 0.1, share=1.0), "0 <= share < 1"),
        (lambda: Equivalence("a", "b", 0), "margin > 0"),
        (lambda: Trend("a", "x", "flat"), "margin > 0"),
        (lambda: Trend("a", "x", "upward"), "increasing"),
        (lambda: restore_test({"kind": "directon"}), "Did you mean 'direction'"),
        (lambda: restore_test({"kind": "threshold", "arms": "a"}), "Did you mean 'arm'"),
    ],
)
def test_impossible_tests_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("metric", "better", "direction"),
    [
        ("", "", False),
        ("loss", "", False),
        ("loss_by_gap", "", False),
        ("accuracy", "", None),
        ("accuracy", "higher", True),
        ("budget/parameters", "", False),
        ("timing/steps_per_second", "", True),
    ],
)
def test_direction_of_a_metric(metric, better, direction):
    assert higher_is_better(metric, Outcome("loss", higher_is_better=False), better) is direction
