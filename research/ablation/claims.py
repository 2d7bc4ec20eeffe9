"""Claims as data: a published statement, its source and figures, and the test that checks it.

A test is a small frozen dataclass that names arms, a place on the axes and a margin. It holds no
measurements; `research.report.judging.verdicts.judge` applies it to the runs.
Claims can be serialized with `dataclasses.asdict` and JSON; `claim_from_json` restores them.

The compared statistic depends on the metric:
  the outcome (metric "") with `Outcome.solved`: the probability that a seed solves the task;
  "steps_to_threshold": the order in which the seeds reach the threshold;
  "budget/NAME": the number itself, which is the same for all seeds;
  anything else, including the outcome given by its name: the mean over seeds. A single mean is
    tested very conservatively (`research.stats.CAUTION`), a difference of two by Welch's test.
  "cost/seconds_per_step": the ratio of two arms' times minus one, round by round, as measured by
    `research.costs` with the arms taking turns; a margin of 0.1 is 10 %;
  "cost/memory_bytes": the number itself.
"timing/NAME" is never compared, because one clock times all seeds of an arm at once.

Common attributes of the tests:
  at: partial axis point, {axis key: value}. The claim must hold at every value of the axes that it
    leaves out; empty: at every point.
  metric: name of the tested metric; "" is the outcome of the experiment. A sliced metric (for
    example "accuracy_by_gap") adds the axis "slice", whose values are the slice labels.
    "budget/NAME" is a budget column, "timing/NAME" a timing, "cost/NAME" a cost that
    `research.costs` measured, "steps_to_threshold" the first evaluated step at which the outcome
    reached `Outcome.solved`, "rise_time" the fraction of training in which the outcome rose from 20
    to 80 % of the way to the threshold (0.6: steady progress, near 0: a jump).
  better: "higher" or "lower"; only needed for a metric whose direction is declared nowhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from research.ablation.costs import MEASURED
from research.errors import UserError, check_name
from research.runs.store import BUDGET, TIMINGS

SLICE = "slice"
"""Axis key for the slice labels of a sliced metric."""
STEPS, RISE = "steps_to_threshold", "rise_time"
"""Metrics derived from the validation curve of the outcome: the first evaluated step at which it
reached `Outcome.solved`, and the fraction of training in which most of its rise happened. Fewer
steps are better; a more abrupt rise is neither better nor worse."""
COLUMNS: Mapping[str, Mapping[str, bool | None]] = {
    "budget": BUDGET,
    "timing": TIMINGS,
    "cost": MEASURED,
}
"""{prefix before the slash of a metric: {name: whether higher is better}}."""


Directions = Mapping[str, bool | None]
"""{metric: whether higher is better}; None if neither direction is better."""
Ranges = Mapping[str, tuple[float | None, float | None]]
"""{metric: lowest and highest possible value}; None where there is none."""


def _kind(name: str) -> Any:
    return field(default=name, init=False)


@dataclass(frozen=True)
class Outcome:
    """The metric by which an experiment compares its arms.

    Attributes:
      metric: name of a scalar metric of the task, for example "accuracy".
      split: evaluation split that is reported. "validation" selects tuned values and the "best"
        checkpoint, so it may be reported only if neither was selected on it.
      at: "best" (parameters with the best validation value) or "final" (the last step).
      higher_is_better: direction of the metric; None takes the direction declared with the metric.
        Required if none is declared, and must not contradict a declared one.
      solved: threshold at which the task counts as solved, or None. With a threshold, claims about
        the outcome concern the probability of solving, and the report adds the steps to solve.
      chance: chance level of the outcome, or None. The difference of two arms is not judged if
        neither of them is better than chance.
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
    """Arm `a` is better than arm `b` by more than `margin`, in units of the compared statistic."""

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

    For an outcome with `Outcome.solved`, or if `share` is given, the claim is instead that more
    than that share of the seeds meet the bound (default: half). The mean says little when each seed
    either succeeds or fails: four successes do not rule out that a fifth seed fails.
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
    """Arms `a` and `b` differ by less than `margin` in the compared statistic, either way."""

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
    """Along the axis `along`, arm `a` is better than `b` at low values and worse at high ones.

    If `value` is given, `a` is better at every axis value below it and worse at every one above it
    (the value itself is not tested). Otherwise, `a` is better at the smallest axis value and worse
    at the largest.
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
    """The compared statistic of `arm` rises, falls or stays flat along an axis.

    "increasing" and "decreasing" require a change from every axis value to the next, and one of
    more than `margin` from the first to the last. "flat" requires that no two axis values differ by
    `margin`. Axis values that are not numbers are taken in the order in which they are given.
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
      source: where it is published, for example "Bahdanau 2015, Fig. 2"; "" for our own claims.
      published: {label: figure}; a figure labelled with an arm's name is shown beside that arm's
        mean. A single text or number is shown as it is.
      test: condition that our runs must meet; None shows the figures without a verdict.
      primary: whether the experiment was designed to test this claim. The primary claims of an
        experiment are corrected for multiple testing together; the others are exploratory and are
        not corrected, and the report says so.
      within_steps: whether the claim compares arms after the same number of steps, converged or
        not. Otherwise an arm is called worse, or unable, only if its validation curve has flattened
        out by the end.
    """

    text: str
    source: str = ""
    published: Mapping[str, Any] | str | float = field(default_factory=dict)
    test: Test | None = None
    primary: bool = True
    within_steps: bool = False

    def arms(self) -> tuple[str, ...]:
        """Returns the arms that the test names."""
        names = (getattr(self.test, key, None) for key in ("arm", "a", "b"))
        return tuple(name for name in names if name is not None)

    def axes(self) -> tuple[str, ...]:
        """Returns the axis keys that the test names, except "slice"."""
        if self.test is None:
            return ()
        along = getattr(self.test, "along", None)
        keys = (*self.test.at, *([along] if along else []))
        return tuple(key for key in keys if key != SLICE)


def higher_is_better(
    metric: str, outcome: Outcome, better: str = "", declared: Directions = MappingProxyType({})
) -> bool | None:
    """Returns whether a higher value of a metric is better; None if its direction is unknown.

    A sliced metric, METRIC_by_SLICE, has the direction of METRIC.

    Args:
      metric: name of the metric, as in a test.
      outcome: outcome of the experiment, with its direction.
      better: "higher" or "lower" overrides the declared direction; "" does not.
      declared: {metric: direction} as the experiment's runs declare them.
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
    # Old files may hold a "scale": trends were once tested by fitting a line.
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
