"""Claims as data: what a paper says, where, its figures, and the test that checks it.

A test is a small frozen dataclass that names arms, a place on the axes and a margin. It holds no
numbers of ours; `research.report.judging.verdicts.judge` applies it to the measured runs.
Everything here survives `dataclasses.asdict` and JSON, and `claim_from_json` brings it back.

What is compared, of a metric:
  the outcome, where `Outcome.solved` is given: the probability that a seed solves the task;
  "steps_to_threshold": the order in which seeds get there;
  "budget/NAME": the number, which is the same for all seeds;
  anything else, also the outcome when it is named: the mean over seeds. A single mean is tested
    with great caution (`research.stats.CAUTION`), a difference of two by Welch's test.
"timing/NAME" is never compared: one clock times all seeds of an arm at once.

Common attributes of the tests:
  at: partial axis point, {axis key: value}. Axes it leaves out are quantified over: the claim must
    hold at every one of their values. Empty means at every point.
  metric: name of the metric that is tested; "" is the outcome of the experiment. A sliced metric
    (for example "accuracy_by_gap") adds the axis "slice", whose values are the slice labels.
    "budget/NAME" is a budget column, "timing/NAME" a timing, "steps_to_threshold" the first
    evaluated step at which the outcome reached `Outcome.solved`, "rise_time" the part of training
    that the outcome took from 20 to 80 % of its way (0.6 is steady, near 0 a jump).
  better: "higher" or "lower"; needed only for a metric whose direction nothing declares.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from research.errors import UserError, check_name
from research.runs.store import BUDGET, TIMINGS

SLICE = "slice"
"""Axis key of the labels of a sliced metric."""
STEPS, RISE = "steps_to_threshold", "rise_time"
"""Metrics that are read off the curve of the outcome: the first evaluated step at which it reached
`Outcome.solved`, and the part of training in which it went most of its way. Fewer steps are better;
how abruptly an outcome came is neither."""
COLUMNS: Mapping[str, Mapping[str, bool | None]] = {"budget": BUDGET, "timing": TIMINGS}
"""What a metric with a slash may name, and whether higher is better."""


Directions = Mapping[str, bool | None]
"""{metric: whether higher is better}; None where neither is."""


def _kind(name: str) -> Any:
    return field(default=name, init=False)


@dataclass(frozen=True)
class Outcome:
    """What is compared.

    Attributes:
      metric: name of a scalar metric of the task, for example "accuracy".
      split: evaluation split that is reported. "validation" chooses tuned values and the "best"
        checkpoint, and may be reported only where it has chosen nothing.
      at: "best" (parameters with the best validation value) or "final" (the last step).
      higher_is_better: direction of the metric; None: as it is declared where the metric is. Must
        be said where nothing declares it, and may not contradict what does.
      solved: threshold that counts as solving the task, or None. With it claims on the outcome
        are about the probability to solve, and the report adds the steps that seeds took.
      chance: the outcome of guessing, or None. No difference between two arms is judged when
        neither is better than that.
    """

    metric: str
    split: str = "test"
    at: str = "best"
    higher_is_better: bool | None = None
    solved: float | None = None
    chance: float | None = None

    def reached(self, value: float) -> bool:
        """Returns whether a value counts as solved; False without a threshold."""
        if self.solved is None:
            return False
        return value >= self.solved if self.higher_is_better else value <= self.solved


@dataclass(frozen=True)
class Direction:
    """Arm `a` is better than arm `b` by more than `margin`, in units of what is compared."""

    a: str
    b: str
    margin: float = 0.0
    at: Mapping[str, Any] = field(default_factory=dict)
    metric: str = ""
    better: str = ""
    kind: str = _kind("direction")


@dataclass(frozen=True)
class Threshold:
    """The mean of `arm` is at least `at_least`, or at most `at_most` (exactly one of them).

    Of an outcome with `Outcome.solved`, or with a `share`: more than that share of the seeds are (a
    half, if it is not said). The mean of seeds that succeed or fail is little to go by: four that
    succeed do not exclude a fifth that fails.
    """

    arm: str
    at_least: float | None = None
    at_most: float | None = None
    share: float | None = None
    at: Mapping[str, Any] = field(default_factory=dict)
    metric: str = ""
    kind: str = _kind("threshold")

    def __post_init__(self):
        if (self.at_least is None) == (self.at_most is None):
            raise UserError(
                f"Threshold({self.arm!r}) takes exactly one of at_least and at_most, for example "
                "at_least=0.95."
            )
        if self.share is not None and not 0 <= self.share < 1:
            raise UserError(f"Threshold({self.arm!r}) takes 0 <= share < 1, not {self.share!r}.")


@dataclass(frozen=True)
class Equivalence:
    """Arms `a` and `b` differ by less than `margin` in what is compared, in either direction."""

    a: str
    b: str
    margin: float
    at: Mapping[str, Any] = field(default_factory=dict)
    metric: str = ""
    kind: str = _kind("equivalence")

    def __post_init__(self):
        _positive("Equivalence", self.margin)


@dataclass(frozen=True)
class Crossover:
    """Going up the axis `along`, arm `a` is first better than `b` and then worse.

    With `value`, `a` is better at every axis value below it and worse at every one above it (the
    value itself is left out). Without, `a` is better at the smallest axis value and worse at the
    largest.
    """

    a: str
    b: str
    along: str
    value: float | None = None
    at: Mapping[str, Any] = field(default_factory=dict)
    metric: str = ""
    better: str = ""
    kind: str = _kind("crossover")


@dataclass(frozen=True)
class Trend:
    """What is compared of `arm` rises, falls or stays flat along an axis.

    "increasing" and "decreasing" ask for a change from every axis value to the next, and for one of
    more than `margin` from the first to the last. "flat" asks that no two axis values differ by
    `margin`. Axis values that are not numbers count in their order.
    """

    arm: str
    along: str
    direction: str
    margin: float = 0.0
    at: Mapping[str, Any] = field(default_factory=dict)
    metric: str = ""
    kind: str = _kind("trend")

    def __post_init__(self):
        check_name("Trend.direction", self.direction, ("increasing", "decreasing", "flat"))
        if self.direction == "flat":
            _positive("Trend(direction='flat')", self.margin)


def _positive(name: str, margin: float) -> None:
    if not margin > 0:
        raise UserError(f"{name} takes margin > 0, not {margin!r}: no two runs are exactly alike.")


Test = Direction | Threshold | Equivalence | Crossover | Trend

TESTS: dict[str, type[Test]] = {
    "direction": Direction,
    "threshold": Threshold,
    "equivalence": Equivalence,
    "crossover": Crossover,
    "trend": Trend,
}


@dataclass(frozen=True)
class Claim:
    """A published or expected statement.

    Attributes:
      text: the statement, one sentence.
      source: where it is published, for example "Bahdanau 2015, Fig. 2"; "" for our own.
      published: {label: figure}; a label that is an arm's name is shown beside that arm's mean. A
        text or a number is shown as it is.
      test: what must hold on our runs; None shows the figures and passes no verdict.
      primary: whether the claim is one of those the experiment was made for. The primary claims of
        an experiment are corrected together for their number; others are exploratory, are not
        corrected, and the report says so.
      within_steps: whether the claim is of arms after the same steps, finished or not. Otherwise an
        arm is called worse, or unable, only where its validation curve is flat at the end.
    """

    text: str
    source: str = ""
    published: Mapping[str, Any] | str | float = field(default_factory=dict)
    test: Test | None = None
    primary: bool = True
    within_steps: bool = False

    def arms(self) -> tuple[str, ...]:
        """Returns the arms the test names."""
        names = (getattr(self.test, key, None) for key in ("arm", "a", "b"))
        return tuple(name for name in names if name is not None)

    def axes(self) -> tuple[str, ...]:
        """Returns the axis keys the test names, without the slices of a sliced metric."""
        if self.test is None:
            return ()
        along = getattr(self.test, "along", None)
        keys = (*self.test.at, *([along] if along else []))
        return tuple(key for key in keys if key != SLICE)


def higher_is_better(
    metric: str, outcome: Outcome, better: str = "", declared: Directions = MappingProxyType({})
) -> bool | None:
    """Returns the direction of a metric: True, False, or None when nothing tells it.

    A slice, METRIC_by_SLICE, goes the way of METRIC.

    Args:
      metric: as in a test.
      outcome: of the experiment, with its direction.
      better: "higher" or "lower", which decides; "": what is declared does.
      declared: {metric: direction} of the experiment's runs.
    """
    if better:
        check_name("better", better, ("higher", "lower"))
        return better == "higher"
    group, slash, column = metric.partition("/")
    if slash:
        return COLUMNS.get(group, {}).get(column)
    known = {**declared, STEPS: False, RISE: None, "": outcome.higher_is_better}
    known[outcome.metric] = outcome.higher_is_better
    return known[metric] if metric in known else known.get(metric.partition("_by_")[0])


def restore_test(value: Mapping) -> Test:
    """Inverse of `dataclasses.asdict` on a test. Raises UserError for an unknown kind or field."""
    kind = value.get("kind", "")
    check_name("test.kind", kind, TESTS)
    cls = TESTS[kind]
    # Trends had a scale, when they were lines.
    arguments = {key: v for key, v in value.items() if key not in ("kind", "scale")}
    for key in arguments:
        check_name(f"field of test {kind!r}", key, [f.name for f in fields(cls) if f.init])
    return cls(**arguments)


def claim_from_json(value: Mapping) -> Claim:
    """Inverse of `dataclasses.asdict` on a claim."""
    test = value.get("test")
    return Claim(
        text=value["text"],
        source=value.get("source", ""),
        published=value.get("published", {}),
        test=restore_test(test) if test else None,
        primary=value.get("primary", True),
        within_steps=value.get("within_steps", False),
    )
