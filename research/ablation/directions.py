"""Which way the metrics of a run are better, and how bad they can be, as each declares it."""

from ml_collections import ConfigDict

from research.ablation.claims import Directions
from research.errors import check_name
from research.interpret import alignment_measures
from research.interpret.questions import FINAL
from research.tasks.registry import TASKS
from research.training import scores


def declared(config: ConfigDict) -> Directions:
    """Returns the direction of every metric that a run of `config` may have; None: it has none.

    Raises UserError for an unknown task or question.
    """
    check_name("task.name", config.task.name, TASKS)
    task = TASKS[config.task.name].task
    found: dict[str, bool | None] = dict(scores.HIGHER_IS_BETTER)
    # How heads are makes a model neither better nor worse.
    found |= dict.fromkeys(config.interpret.measures)
    for name in config.interpret.final:
        check_name("interpret.final", name, FINAL)
        found |= {**FINAL[name].metrics, **FINAL[name].truth}
    found |= {name: alignment_measures.HIGHER_IS_BETTER[name] for name in task.aligned}
    return {**found, **task.higher_is_better}


def worst_values(config: ConfigDict) -> dict[str, float]:
    """Returns {metric: value of a model that does nothing right}, of those that have one."""
    task = TASKS[config.task.name].task
    aligned = {n: v for n, v in alignment_measures.WORST.items() if n in task.aligned}
    return {**aligned, **task.worst}
