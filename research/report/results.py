"""Writes and reads results.json, which holds all evidence of an experiment without its runs.

    {"experiment": experiment.json of the sweep, with its registration,
     "workdir": directory of the runs,
     "environment": environment of the sweep,
     "config": {dotted key: value} common to the configs of all runs,
     "environments": distinct environments of the runs,
     "resampled": sentence-level comparisons of decoded text, or null,
     "items": errors of results over the test items, see `judging.items.items_to_json`,
     "costs": measured costs of a training step, see `research.ablation.costs.Costs`,
     "runs": [{"run", "arm", "point", "stage", "tuned", "seed", "result", "curve",
               "config": the run's own values, "environment": index} for each cell]}

`curve` holds the rows of metrics.jsonl of a reported run, without sliced metrics. A report can be
made from this file just as from a sweep directory.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from research.ablation.costs import costs_from_json
from research.ablation.experiment import experiment_from_json
from research.configuration import flatten, nested
from research.errors import UserError
from research.report.judging.bootstrap import Bootstrap
from research.report.judging.evidence import make_study
from research.report.judging.items import items_from_json, items_to_json
from research.report.judging.study import WAITING, Study
from research.runs import store
from research.runs.bucket import named

RESULTS = "results.json"


def write_results(study: Study, resampled: Bootstrap | None, path: Path) -> None:
    """Writes results.json of a study; runs without a result are left out."""
    runs = [run for run in study.runs if run.status != WAITING]
    configs = [flatten(run.config) for run in runs]
    common = {
        key: value
        for key, value in sorted((configs[0] if configs else {}).items())
        if all(key in config and config[key] == value for config in configs)
    }
    environments: list[Mapping] = []
    rows = []
    for run, config in zip(runs, configs, strict=True):
        if run.environment not in environments:
            environments.append(run.environment)
        rows.append(
            {
                "run": run.run,
                "arm": run.arm,
                "point": run.point,
                "stage": run.stage,
                "tuned": run.tuned,
                "seed": run.seed,
                "result": run.result,
                "curve": [_scalars(row) for row in run.curve],
                "config": {k: config[k] for k in sorted(config) if k not in common},
                "environment": environments.index(run.environment),
            }
        )
    content = {
        "experiment": study.plain,
        "workdir": named(study.workdir),
        "environment": study.environment,
        "config": common,
        "environments": environments,
        "resampled": asdict(resampled) if resampled else None,
        "items": items_to_json(study.items),
        "costs": asdict(study.costs),
        "runs": rows,
    }
    store.write_text(path, _lines(store.json_safe(content)))


def _scalars(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not isinstance(value, list)}


def _lines(content: Mapping[str, Any]) -> str:
    """Returns JSON with one line per run, so that version control shows changes per run."""
    parts = []
    for key, value in content.items():
        if key == "runs":
            rows = ",\n".join(f"  {json.dumps(row, separators=(',', ':'))}" for row in value)
            parts.append(f'"runs": [\n{rows}\n]')
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{" + ",\n".join(parts) + "}\n"


def read_results(folder: str | Path) -> Study:
    """Reads results.json in a folder into a study.

    Raises UserError if the file is missing or damaged.
    """
    path = Path(folder) / RESULTS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"--results={str(folder)!r} has no {RESULTS}; `python -m research.report "
            "--workdir=DIR --out=DIR` writes one."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
    try:
        runs: Sequence[Mapping] = content["runs"]
        read = {
            row["run"] + row["stage"]: (
                row["result"],
                row["curve"],
                nested({**content["config"], **row["config"]}),
                content["environments"][row["environment"]],
            )
            for row in runs
        }
        plain = content["experiment"]
        experiment = experiment_from_json(plain)
        workdir = Path(content["workdir"])
        study = make_study(plain, runs, read, content["environment"], workdir, experiment)
        return replace(
            study,
            resampled=content.get("resampled"),
            items=items_from_json(content.get("items", {})),
            costs=costs_from_json(content.get("costs")),
        )
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} holds no results: {error!r}.") from None
