"""Registry of the analyses that run at the end of training: the names of `config.interpret.final`.

An analysis runs for each member of a population in turn, on the last split of the task. Its metrics
are stored with those of the split, so that any of them can be the outcome of a sweep. A new one is
one function and one line here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from research.interpret import explanations, rollout
from research.interpret.head_metrics import MEASURES
from research.interpret.heads.importance import METRICS, RANGES, head_importance_findings
from research.interpret.trained import Findings, Trained
from research.models.model import Model
from research.options import Part, option
from research.tasks.task import Batch, Range, Task


def accept_any_model(model: Model, batch: Batch) -> None:
    """Accepts every model."""


class Analysis(NamedTuple):
    """An analysis of a trained model.

    Attributes:
      run: runs the analysis.
      metrics: {metric: whether higher is better}; None: neither.
      ranges: {metric: lowest and highest possible value}; see `Task.ranges`.
      rationale_metrics: as `metrics`, those that exist only if the task marks the tokens that
        decide the label ("relevant" in its batches).
      source: the paper, with section or equation.
      check: raises UserError for a model that it does not apply to, given the shapes of a batch.
    """

    run: Callable[[Trained], Findings]
    metrics: Mapping[str, bool | None]
    ranges: Mapping[str, Range]
    source: str
    check: Callable[[Model, Batch], None] = accept_any_model
    rationale_metrics: Mapping[str, bool | None] = MappingProxyType({})


FINAL: dict[str, Analysis] = {
    "faithfulness": Analysis(
        explanations.faithfulness,
        explanations.METRICS,
        explanations.RANGES,
        "Jain and Wallace 2019, section 4; Wiegreffe and Pinter 2019, section 3.3; DeYoung et al. "
        "2020, section 4.2",
        explanations.check_pooling,
        explanations.RATIONALE_METRICS,
    ),
    "rollout": Analysis(
        rollout.rollout_agreement,
        rollout.METRICS,
        rollout.RANGES,
        "Abnar and Zuidema 2020, Tables 1 and 2",
        rollout.check_layers,
        rollout.RATIONALE_METRICS,
    ),
    "head_importance": Analysis(
        head_importance_findings,
        METRICS,
        RANGES,
        "Michel et al. 2019, sections 3.2 and 4.2",
    ),
}


def analysis_split(task: Task) -> str:
    """Returns the split to run the analyses on: test, if the task has one."""
    return task.splits[-1]


@dataclass(frozen=True, kw_only=True)
class Interpretation(Part):
    """Measures of a model in addition to those of its task: `config.interpret`."""

    measures: tuple[str, ...] = option(
        (),
        "measures of attention heads at every evaluation: one number, and one per head",
        allowed=tuple(MEASURES),
    )
    final: tuple[str, ...] = option((), "analyses to run when training ends", allowed=tuple(FINAL))
    examples: int = option(
        256,
        "approximate number of examples of the last split that final uses",
        unless={"final": ((),)},
        least=1,
    )


def check_model(names: Sequence[str], model: Model, batch: Batch) -> None:
    """Raises UserError if one of the analyses does not apply to the model.

    Args:
      names: names of analyses in `FINAL`.
      model: the model to train.
      batch: shapes of a batch.
    """
    for name in names:
        FINAL[name].check(model, batch)


def metric_names(names: Sequence[str], task: Task, split: str, batch: Batch) -> list[str]:
    """Returns the metrics that the analyses add to a split; `batch` as in `check_model`."""
    if split != analysis_split(task):
        return []
    asked = [FINAL[name] for name in names]
    known = "relevant" in batch
    return [
        metric for q in asked for metric in (*q.metrics, *(q.rationale_metrics if known else ()))
    ]


def run_analyses(names: Sequence[str], trained: Trained) -> Findings:
    """Runs the analyses and returns their findings merged into one."""
    found = Findings({}, {}, {})
    for name in names:
        new = FINAL[name].run(trained)
        found = Findings(
            found.metrics | new.metrics, found.slices | new.slices, found.labels | new.labels
        )
    return found
