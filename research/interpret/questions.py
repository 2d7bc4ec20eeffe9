"""What can be asked of a model when its training ends: the names of `config.interpret.final`.

A question is answered for one member of a population after the other, on the last split that the
task has, and the answer stands beside the split's metrics in the result: it can be the outcome of a
sweep. A new one is one function and one line here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from research.interpret import explanations, rollout
from research.interpret.columns import MEASURES
from research.interpret.heads.importance import METRICS, needed_heads
from research.interpret.trained import Findings, Trained
from research.models.model import Model
from research.options import Part, option
from research.tasks.task import Batch, Task


def fits_all(model: Model, batch: Batch) -> None:
    """Accepts every model."""


class Question(NamedTuple):
    """A question.

    Attributes:
      ask: answers it.
      metrics: names of the numbers of an answer, and whether higher is better; None: neither.
      truth: of those that are there where the task knows which tokens decide ("relevant").
      source: the paper, with section or equation.
      check: raises UserError for a model that cannot be asked, given the shapes of a batch.
    """

    ask: Callable[[Trained], Findings]
    metrics: Mapping[str, bool | None]
    source: str
    check: Callable[[Model, Batch], None] = fits_all
    truth: Mapping[str, bool | None] = MappingProxyType({})


FINAL: dict[str, Question] = {
    "faithfulness": Question(
        explanations.faithfulness,
        explanations.METRICS,
        "Jain and Wallace 2019, section 4; Wiegreffe and Pinter 2019, section 3.3; DeYoung et al. "
        "2020, section 4.2",
        explanations.check_pooling,
        explanations.TRUTH,
    ),
    "rollout": Question(
        rollout.rolled_out,
        rollout.METRICS,
        "Abnar and Zuidema 2020, Tables 1 and 2",
        rollout.check_layers,
        rollout.TRUTH,
    ),
    "head_importance": Question(
        needed_heads,
        METRICS,
        "Michel et al. 2019, sections 3.2 and 4.2",
    ),
}


def split_of(task: Task) -> str:
    """Returns the split that questions are answered on: test, where there is one."""
    return task.splits[-1]


@dataclass(frozen=True, kw_only=True)
class Interpretation(Part):
    """What is measured of a model, beside what the task measures: `config.interpret`."""

    measures: tuple[str, ...] = option(
        (),
        "columns of every evaluation, one number and one to each head of attention",
        allowed=tuple(MEASURES),
    )
    final: tuple[str, ...] = option((), "asked when training ends", allowed=tuple(FINAL))
    examples: int = option(
        256,
        "about how many of the last split these are asked on",
        unless={"final": ((),)},
        least=1,
    )


def check_model(names: Sequence[str], model: Model, batch: Batch) -> None:
    """Raises UserError for a model that cannot be asked one of the questions.

    Args:
      names: of the questions.
      model: what will be trained.
      batch: shapes of a batch.
    """
    for name in names:
        FINAL[name].check(model, batch)


def metric_names(names: Sequence[str], task: Task, split: str, batch: Batch) -> list[str]:
    """Returns the metrics that questions add to a split's; `batch` as of `check_model`."""
    if split != split_of(task):
        return []
    asked = [FINAL[name] for name in names]
    known = "relevant" in batch
    return [metric for q in asked for metric in (*q.metrics, *(q.truth if known else ()))]


def answered(names: Sequence[str], trained: Trained) -> Findings:
    """Returns all answers together."""
    found = Findings({}, {}, {})
    for name in names:
        new = FINAL[name].ask(trained)
        found = Findings(
            found.metrics | new.metrics, found.slices | new.slices, found.labels | new.labels
        )
    return found
