"""Arms matched in parameters through the width of their feed-forward layers."""

import dataclasses

import pytest

from research.ablation.expansion import resolve
from research.ablation.experiment import Experiment, Outcome
from research.ablation.match import with_matched_widths
from research.errors import UserError
from research.training.budget import count_parameters
from tests import small

ARMS = {
    "softmax": {},
    "multi-query": {"model.num_kv_heads": 1},
    "convolution": {"model.mixer": "gated_convolution", "model.position": "none"},
    "lstm": {"model.mixer": "lstm", "model.position": "none"},
}


def experiment(**changes):
    common = small.RECALL | {"model.width": 16, "model.feedforward": 64}
    plain = Experiment(
        question="?",
        base=small.BASE,
        common=common,
        arms=ARMS,
        axes={"task.length": (16, 32)},
        outcome=Outcome("accuracy", higher_is_better=True),
        seeds=(0,),
        match="parameters",
    )
    return dataclasses.replace(plain, **changes)


def test_every_arm_has_the_parameters_of_the_first_at_every_point():
    found = with_matched_widths(experiment())
    for length in (16, 32):
        point = {"task.length": length}
        cells = {arm: resolve(found, arm, point, {}, 0, "report") for arm in ARMS}
        sizes = {arm: count_parameters(cell.config) for arm, cell in cells.items()}
        widths = {arm: cell.config.model.feedforward for arm, cell in cells.items()}
        assert widths["softmax"] == 64
        # One channel of two feed-forward layers is 64 numbers: none is off by more than half.
        for arm, size in sizes.items():
            assert abs(size - sizes["softmax"]) <= 32, (arm, size)
        # k and v of one head instead of two save 2 x 2 x 16 x 8 numbers.
        assert widths["multi-query"] == 64 + 8
        assert widths["lstm"] < 64
    # The filter of the convolution is as long as the sequence.
    assert len(set(found.feedforward["convolution"].values())) == 2


def test_without_match_nothing_changes():
    plain = experiment(match="")
    assert with_matched_widths(plain) is plain


def test_a_deeper_arm_is_matched_too():
    arms = {"two layers": {}, "four": {"model.num_layers": 4}}
    found = with_matched_widths(
        experiment(arms=arms, common={**experiment().common, "model.feedforward": 256})
    )
    sizes = [
        count_parameters(resolve(found, arm, {"task.length": 16}, {}, 0, "report").config)
        for arm in arms
    ]
    assert abs(sizes[0] - sizes[1]) <= 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"match": "flops"}, "match='flops' is unknown. Allowed: parameters"),
        ({"common": small.RECALL | {"model.feedforward": 0}}, "the arm 'softmax' sets to 0"),
        (
            {"common": small.RECALL | {"model.width": 16, "model.feedforward": 2}},
            "arm 'lstm': it has",
        ),
    ],
)
def test_what_cannot_be_matched_is_named(changes, message):
    with pytest.raises(UserError) as error:
        with_matched_widths(experiment(**changes))
    assert message in str(error.value)
