"""Directions and ranges of a run's metrics, as the metrics declare them."""

from ml_collections import ConfigDict

from research.ablation.claims import Directions, Ranges
from research.errors import check_name
from research.interpret import alignment_measures
from research.interpret.analyses import FINAL
from research.tasks.registry import TASKS
from research.training import scores


def metric_directions(config: ConfigDict) -> Directions:
    """Returns {metric: whether higher is better} for all metrics of a run; None for neither.

    Raises UserError for an unknown task or analysis.
    """
    check_name("task.name", config.task.name, TASKS)
    task = TASKS[config.task.name].task
    found: dict[str, bool | None] = dict(scores.HIGHER_IS_BETTER)
    # Measures of attention heads describe a model; no value of them is better than another.
    found |= dict.fromkeys(config.interpret.measures)
    for name in config.interpret.final:
        check_name("interpret.final", name, FINAL)
        found |= {**FINAL[name].metrics, **FINAL[name].rationale_metrics}
    found |= {name: alignment_measures.HIGHER_IS_BETTER[name] for name in task.aligned}
    return {**found, **task.higher_is_better}


def metric_ranges(config: ConfigDict) -> Ranges:
    """Returns {metric: its lowest and highest possible value} for the metrics that have either."""
    task = TASKS[config.task.name].task
    found = {n: v for n, v in alignment_measures.RANGES.items() if n in task.aligned}
    for name in config.interpret.final:
        found |= FINAL[name].ranges
    return {**found, **task.ranges}
