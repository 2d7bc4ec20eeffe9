"""Computes the content of the report once, for all output formats."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from research.ablation.claims import Claim
from research.ablation.registration import is_late
from research.drawing.chart import Chart
from research.errors import UserError, did_you_mean
from research.report import tables
from research.report.arms import arm_colors
from research.report.figures import charts
from research.report.judging.judgements import Judgement
from research.report.judging.measuring import measure
from research.report.judging.study import Run, Study, metric_value
from research.report.judging.verdicts import judge_all
from research.report.tables import BudgetRow, Row
from research.report.takeaway import takeaway
from research.report.tuning import TuningRow, tuning_table
from research.stats import ALPHA


@dataclass(frozen=True)
class Summary:
    """The content of a report.

    Attributes:
      study: the study of the sweep.
      judgements: one judgement per claim.
      rows, budget, tuning: rows of the main, budget and tuning tables.
      configs: {config key: value per arm} for the keys that differ.
      outcomes: {run id: its measured outcome}; runs without a number are absent.
      progress: {status: number of cells}.
      failures: failed runs with the last line of their traceback.
      warnings: warnings about the provenance of the runs.
      charts: the figures.
      takeaway: the main finding, one sentence.
      colors: {arm: index of its color}.
    """

    study: Study
    judgements: Sequence[Judgement]
    rows: Sequence[Row]
    budget: Sequence[BudgetRow]
    tuning: Sequence[TuningRow]
    configs: Mapping[str, Sequence[Any]]
    outcomes: Mapping[str, float]
    progress: Mapping[str, int]
    failures: Sequence[tuple[Run, str]]
    warnings: Sequence[str]
    charts: Sequence[Chart]
    takeaway: str
    colors: Mapping[str, int]


def summarize(study: Study) -> Summary:
    """Computes the report of a study. Raises UserError when no run has the outcome metric."""
    _check_outcome(study)
    rows = tables.main_table(study)
    judgements = judge_all(
        _claims(study),
        lambda metric, better: measure(study, metric, better),
        # Each time seeds were added was a chance to stop at a lucky moment: Bonferroni over looks.
        ALPHA / max(1, len(study.experiment.looks)),
    )
    return Summary(
        study=study,
        judgements=judgements,
        rows=rows,
        budget=tables.budget_table(study),
        tuning=tuning_table(study),
        configs=tables.config_table(study),
        outcomes=_outcomes(study),
        progress=tables.progress(study),
        failures=tables.failures(study),
        warnings=tables.provenance_warnings(study),
        charts=charts(study, rows),
        takeaway=takeaway(study, rows, judgements),
        colors=arm_colors(study.experiment),
    )


def _claims(study: Study) -> list[Claim]:
    """Returns the claims, marking those written after the first run as exploratory."""
    return [
        replace(claim, primary=claim.primary and not is_late(claim, study.registration))
        for claim in study.experiment.claims
    ]


def _check_outcome(study: Study) -> None:
    outcome = study.experiment.outcome
    done = [r for r in study.reported if r.status == "completed"]
    known = {
        name for run in done for name in (run.result.get(outcome.at) or {}).get(outcome.split) or {}
    }
    if done and outcome.metric not in known:
        hint = did_you_mean(outcome.metric, known)
        raise UserError(
            f"outcome.metric={outcome.metric!r} is in no result at {outcome.at!r} of split "
            f"{outcome.split!r}.{hint} Found: {', '.join(sorted(known)) or 'nothing'}."
        )


def _outcomes(study: Study) -> dict[str, float]:
    """Returns {run id: outcome}; for tuning runs, the validation outcome used for the choice."""
    outcome = study.experiment.outcome
    found = {}
    for run in study.runs:
        if run.stage == "report":
            value = metric_value(run, outcome, outcome.metric)
        else:
            value = ((run.result.get(outcome.at) or {}).get("validation") or {}).get(outcome.metric)
        if isinstance(value, int | float):
            found[run.run] = float(value)
    return found
