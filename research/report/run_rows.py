"""Flat table of runs: each row holds a run's place in the ablation, its metrics and its costs."""

import csv
import io
from collections.abc import Iterator
from typing import Any

from research.report.formatting import value_text
from research.report.judging.measuring import rise_time, steps_to_threshold
from research.report.judging.study import Run, Study


def run_rows(study: Study) -> list[dict[str, Any]]:
    """Returns {column: value} for every run; columns without a value are absent.

    Columns are "run", "arm", "stage", "seed", the keys of the axes, "tuned.KEY", "status",
    "best.SPLIT.METRIC", "final.SPLIT.METRIC" (followed by "[SLICE]" for a sliced metric),
    "budget.NAME" and "timing.NAME".
    """
    return [dict(_flat(study, run)) for run in study.runs]


def results_csv(study: Study) -> str:
    """Returns the rows as CSV, with config values formatted as in the report's tables."""
    rows = run_rows(study)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    config = {*study.experiment.axes, *(f"tuned.{key}" for key in study.experiment.tune)}
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: value_text(v) if k in config else v for k, v in row.items()})
    return text.getvalue()


def _flat(study: Study, run: Run) -> Iterator[tuple[str, Any]]:
    yield from {"run": run.run, "arm": run.arm, "stage": run.stage, "seed": run.seed}.items()
    yield from run.point.items()
    yield from ((f"tuned.{key}", value) for key, value in run.tuned.items())
    result = run.result
    yield "status", run.status
    for key in ("implementation", "best_step", "steps"):
        yield key, result.get(key)
    if study.experiment.outcome.solved is not None:
        yield "steps_to_threshold", steps_to_threshold(run, study.experiment.outcome)
        yield "rise_time", rise_time(run, study.experiment.outcome)
    for group in ("best", "final"):
        for split, metrics in (result.get(group) or {}).items():
            for metric, value in (metrics or {}).items():
                labels = (result.get("slices") or {}).get(metric)
                if isinstance(value, list):
                    for i, v in enumerate(value):
                        label = labels[i] if labels and i < len(labels) else i
                        yield f"{group}.{split}.{metric}[{label}]", v
                else:
                    yield f"{group}.{split}.{metric}", value
    for group in ("budget", "timing"):
        yield from ((f"{group}.{key}", value) for key, value in (result.get(group) or {}).items())
