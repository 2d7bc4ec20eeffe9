"""Computes the rows of the report's tables once for all output formats."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from research import stats
from research.ablation.costs import Cost as StepCost
from research.ablation.experiment import points, seed_list
from research.ablation.measure import Measure, point_key
from research.configuration import flatten
from research.report.formatting import count
from research.report.judging.measuring import measure, rise_time, steps_to_threshold
from research.report.judging.quantities import ONE_SEED, difference
from research.report.judging.quantity import Quantity
from research.report.judging.study import WAITING, Run, Study, has_diverged
from research.runs import store
from research.stats import ALPHA, Summary
from research.tasks.text.translation_scores import signature_tokenizer

EQUAL = "all seeds equal"
"""Note on seeds without any spread, from which the spread of other seeds cannot be inferred."""


@dataclass(frozen=True)
class Row:
    """One arm at one point of the main table.

    Attributes:
      outcome: mean and extremes over seeds.
      seeds: {status: number of seeds}; "diverged" also counts a NaN outcome.
      reference: whether this is the reference arm.
      difference: difference from the reference arm, of means or, with a threshold, of the
        probability of solving; None for the reference arm and if it cannot be estimated.
      low, high: ends of its interval, simultaneous over the arms at this point (Bonferroni).
      p: its two-sided p-value, Holm-adjusted over the arms at this point.
      solved: (number of seeds that solved the task, low, high); None without a threshold.
      when_solved: mean outcome of the seeds that solved the task; NaN if there are none.
      steps: median first step at the threshold; infinity if half of the seeds never reach it.
      never: number of seeds that never reached the threshold.
      rise: median rise time of the outcome as a fraction of training; NaN if there is none.
      notes: notes that a reader must see.
      obstacle: why the difference cannot be judged; "" if it can.
    """

    arm: str
    point: Mapping[str, Any]
    outcome: Summary
    seeds: Mapping[str, int]
    reference: bool
    difference: float | None
    low: float
    high: float
    p: float
    solved: tuple[int, float, float] | None
    when_solved: float
    steps: float
    never: int
    rise: float
    notes: Sequence[str]
    obstacle: str = ""


def main_table(study: Study) -> list[Row]:
    """Returns one row per point and arm, in the order of the experiment."""
    data = measure(study)
    reference, *others = study.experiment.arms
    rows = []
    for point in points(study.experiment):
        compared = {a: difference(data, a, reference, point) for a in others}
        adjusted = stats.holm([q.p_different for q in compared.values()])
        p = dict(zip(others, adjusted, strict=True))
        level = ALPHA / max(1, len(others))
        for arm in study.experiment.arms:
            rows.append(_row(study, data, arm, point, compared.get(arm), p.get(arm), level))
    return rows


def _row(
    study: Study,
    data: Measure,
    arm: str,
    point: Mapping[str, Any],
    compared: Quantity | None,
    p: float | None,
    level: float,
) -> Row:
    outcome = study.experiment.outcome
    key = point_key(point)
    runs = [run for run in study.reported if run.key == (arm, key)]
    sample = data.sample(arm, point)
    seeds = seed_counts(runs, study)
    solved, when_solved = None, math.nan
    if outcome.solved is not None and sample:
        good = [v for v in sample.values() if outcome.reached(v)]
        solved = (len(good), *stats.clopper_pearson(len(good), len(sample)))
        when_solved = stats.mean(good)
    finished = [r for r in runs if r.curve and r.status in (store.COMPLETED, store.DIVERGED)]
    first = [steps_to_threshold(r, outcome) for r in finished] if outcome.solved is not None else []
    ever = [math.inf if step is None else float(step) for step in first]
    told = compared is not None and compared.estimate is not None
    low, high = compared.interval(level) if compared else (math.nan, math.nan)
    return Row(
        arm=arm,
        point=point,
        outcome=stats.summary(sample.values()),
        seeds=seeds,
        reference=compared is None,
        difference=compared.estimate.estimate if told and compared.estimate else None,
        low=low,
        high=high,
        p=math.nan if p is None else p,
        solved=solved,
        when_solved=when_solved,
        steps=stats.median(ever),
        never=sum(math.isinf(step) for step in ever),
        rise=stats.median(r for run in runs if (r := rise_time(run, outcome)) is not None),
        notes=_notes(seeds, sample),
        obstacle=compared.obstacle if compared else "",
    )


def seed_counts(runs: Iterable[Run], study: Study) -> dict[str, int]:
    """Returns {status: number of seeds} of one group; seeds without a cell count as waiting."""
    counts = dict.fromkeys((store.COMPLETED, store.DIVERGED, store.FAILED, WAITING), 0)
    runs = list(runs)
    for run in runs:
        status = store.DIVERGED if has_diverged(run, study.experiment.outcome) else run.status
        counts[status] = counts.get(status, 0) + 1
    counts[WAITING] += max(0, len(seed_list(study.experiment)) - len(runs))
    return counts


def _notes(seeds: Mapping[str, int], sample: Mapping) -> list[str]:
    notes = []
    if len(sample) == 1:
        notes.append(ONE_SEED)
    if seeds[store.DIVERGED]:
        notes.append(f"{count(seeds[store.DIVERGED], 'seed')} diverged, counted as worst")
    if seeds[store.FAILED]:
        notes.append(f"{count(seeds[store.FAILED], 'seed')} failed")
    if seeds[WAITING]:
        notes.append(f"{count(seeds[WAITING], 'seed')} not finished")
    if len(sample) > 1 and stats.deviation(sample.values()) == 0:
        notes.append(EQUAL)
    return notes


@dataclass(frozen=True)
class Cost:
    """One cost of an arm at a point: its value, and its ratio to that of the reference arm."""

    value: float | None
    ratio: float
    flagged: bool


@dataclass(frozen=True)
class BudgetRow:
    """Costs of one arm at one point.

    Attributes:
      costs: {column: cost} for `store.BUDGET`; a cost is flagged if it differs from that of the
        reference arm by more than the tolerance and is not declared as ablated.
      seconds: median training seconds over seeds; never flagged, since it depends on the machine.
      step: measured cost of a training step; None if it was not measured.
      implementations: names of the implementations that its runs used.
    """

    arm: str
    point: Mapping[str, Any]
    costs: Mapping[str, Cost]
    seconds: float
    step: StepCost | None
    implementations: Sequence[str]


def budget_table(study: Study) -> list[BudgetRow]:
    """Returns one row per point and arm, or one per arm if the costs are equal at all points."""
    rows = []
    measured = {(cost.arm, point_key(cost.point)): cost for cost in study.costs.rows}
    for point in points(study.experiment):
        reference: Mapping[str, float | None] = {}
        for index, arm in enumerate(study.experiment.arms):
            runs = [r for r in study.reported if r.key == (arm, point_key(point))]
            spent = {
                c: _agreed([(r.result.get("budget") or {}).get(c) for r in runs])
                for c in store.BUDGET
            }
            reference = spent if index == 0 else reference
            seconds = [(r.result.get("timing") or {}).get("train_seconds") for r in runs]
            names = [
                str(r.result["implementation"]) for r in runs if r.result.get("implementation")
            ]
            rows.append(
                BudgetRow(
                    arm=arm,
                    point=point,
                    costs={c: _cost(study, c, spent[c], reference[c]) for c in store.BUDGET},
                    seconds=stats.median(s for s in seconds if s is not None),
                    step=measured.get((arm, point_key(point))),
                    implementations=sorted(set(names)),
                )
            )
    return _merged(rows)


def _merged(rows: Sequence[BudgetRow]) -> list[BudgetRow]:
    by_arm: dict[str, list[BudgetRow]] = {}
    for row in rows:
        by_arm.setdefault(row.arm, []).append(row)
    differ = any(row.costs != group[0].costs for group in by_arm.values() for row in group)
    if differ or any(row.step for row in rows):
        return list(rows)
    return [
        replace(
            group[0],
            point={},
            seconds=stats.median(r.seconds for r in group if not math.isnan(r.seconds)),
            implementations=sorted({name for r in group for name in r.implementations}),
        )
        for group in by_arm.values()
    ]


def _agreed(values: Iterable[float | None]) -> float | None:
    """Returns the median over seeds; they only differ if a run stopped early."""
    known = [float(v) for v in values if v is not None]
    return stats.median(known) if known else None


def _cost(study: Study, column: str, value: float | None, reference: float | None) -> Cost:
    if value is None or reference is None:
        return Cost(value, math.nan, False)
    ratio = value / reference if reference else (1.0 if value == 0 else math.inf)
    differs = abs(ratio - 1) > study.experiment.tolerance
    return Cost(value, ratio, differs and column not in study.experiment.ablated)


def config_table(study: Study) -> dict[str, list[Any]]:
    """Returns {config key: value per arm} for the keys that arms set or in which they differ.

    Values come from the resolved configs at the first point, so that differences which no delta
    states (such as a derived width) also show. Until there are configs, the deltas are used, with
    None if an arm does not set the key.
    """
    experiment = study.experiment
    first = point_key(points(experiment)[0])
    configs = []
    for arm in experiment.arms:
        found = [r.config for r in study.runs if r.key == (arm, first) and r.config]
        # The last config is from the report stage, once that has begun.
        configs.append(flatten(found[-1]) if found else dict(experiment.arms[arm]))
    declared = [key for deltas in experiment.arms.values() for key in deltas]
    keys = dict.fromkeys([*declared, *(key for config in configs for key in sorted(config))])
    table = {key: [config.get(key) for config in configs] for key in keys if key != "seed"}
    return {
        key: values
        for key, values in table.items()
        if key in declared or any(value != values[0] for value in values)
    }


def failures(study: Study) -> list[tuple[Run, str]]:
    """Returns the failed runs with the last lines of their tracebacks."""
    seen: dict[str, tuple[Run, str]] = {}
    for run in study.runs:
        if run.status == store.FAILED:
            lines = [
                line for line in str(run.result.get("error") or "").splitlines() if line.strip()
            ]
            seen.setdefault(run.run, (run, lines[-1].strip() if lines else "no error was recorded"))
    return list(seen.values())


def progress(study: Study) -> dict[str, int]:
    """Returns {status: number of cells}; cells not written yet count as waiting."""
    counts = dict.fromkeys((store.COMPLETED, store.DIVERGED, store.FAILED, WAITING), 0)
    for run in study.runs:
        status = store.DIVERGED if has_diverged(run, study.experiment.outcome) else run.status
        counts[status] = counts.get(status, 0) + 1
    counts[WAITING] += study.planned - len(study.runs)
    return counts


def _has_bleu(run: Run) -> bool:
    return any("bleu" in (metrics or {}) for metrics in (run.result.get("best") or {}).values())


def score_signatures(study: Study) -> str:
    """Returns the signatures of the reported runs' scores; "" if the metric names suffice."""
    found: dict[str, None] = {}
    for run in study.reported:
        found |= {f"{k}: {v}": None for k, v in (run.result.get("signatures") or {}).items()}
    return f"Scores by sacrebleu: {'; '.join(found)}." if found else ""


def provenance_warnings(study: Study) -> list[str]:
    """Returns warnings if the runs differ in commit, device, versions or BLEU tokenizer."""
    places = {
        "git commits": lambda e: (e.get("git") or {}).get("commit"),
        "devices": lambda e: e.get("device"),
        "sets of package versions": lambda e: e.get("versions"),
    }
    warnings = []
    for what, get in places.items():
        kinds = {repr(get(r.environment)) for r in study.runs if get(r.environment) is not None}
        if len(kinds) > 1:
            warnings.append(f"The runs come from {len(kinds)} different {what}.")
    # Runs that predate signatures used the default tokenizer.
    signatures = (run.result.get("signatures") or {} for run in study.runs if _has_bleu(run))
    words = {signature_tokenizer(signature.get("bleu", "")) for signature in signatures}
    if len(words) > 1:
        warnings.append(
            f"BLEU of the runs is by different tokenizers ({', '.join(sorted(words))}), so that "
            "it cannot be compared."
        )
    if any((r.environment.get("git") or {}).get("dirty") for r in study.runs) or (
        study.environment.get("git") or {}
    ).get("dirty"):
        warnings.append(
            "The working tree had uncommitted changes: the commit alone does not say what ran."
        )
    return warnings
