"""Base classes of task options, which make a task from `config.task`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from research.attention.parts.masks import LONGEST
from research.errors import UserError
from research.options import Part, option
from research.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class TaskOptions(Part):
    """Options of every task.

    Attributes:
      task: class that the options make; it declares the metrics.
      decodes: whether sequences are decoded after training, with the options of `decoding`.
    """

    task: ClassVar[type[Task]]
    decodes: ClassVar[bool] = False
    length: int = option(
        64, "maximum number of tokens in a sequence, including the end token", least=1, most=LONGEST
    )
    batch_size: int = option(32, "sequences per step", least=1, most=LONGEST)

    def make(self) -> Task:
        """Reads or generates the data and returns the task. Raises UserError for bad options."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Generated(TaskOptions):
    """Options of tasks with generated data."""

    test_of_seed: bool = option(
        False,
        "draw a test set for each seed, so that the spread over seeds includes that of "
        "the test set; decoding and the measures at the end use the test set that all "
        "seeds share",
    )


@dataclass(frozen=True, kw_only=True)
class WithEvalLengths(TaskOptions):
    """Options of tasks that can be evaluated at lengths other than the training length."""

    eval_lengths: tuple[int, ...] = option(
        (),
        "additional lengths at which the model is evaluated, without training on them",
        least=1,
        most=LONGEST,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ascending("eval_lengths", self.eval_lengths)


def check_ascending(key: str, numbers: Sequence[int]) -> None:
    """Raises UserError if the numbers of `task.KEY` are not strictly ascending."""
    if list(numbers) != sorted(set(numbers)):
        raise UserError(
            f"task.{key}={tuple(numbers)}: give positive numbers, each longer than the one before."
        )
