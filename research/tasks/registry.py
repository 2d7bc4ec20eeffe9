"""Tasks by the name that `task.name` takes. A new task is one file and one line here."""

from dataclasses import dataclass

from ml_collections import ConfigDict

from research.errors import read_part
from research.options import Part, choice, declarations
from research.tasks.options import TaskOptions
from research.tasks.speech.recordings import SpeechOptions
from research.tasks.synthetic.induction import InductionOptions
from research.tasks.synthetic.recall import RecallOptions
from research.tasks.synthetic.rule import RuleOptions
from research.tasks.synthetic.transduction import TransductionOptions
from research.tasks.task import Task
from research.tasks.text.language_modeling import TextOptions
from research.tasks.text.sentiment import SentimentOptions
from research.tasks.text.translation import TranslationOptions
from research.tasks.tokens.windows import TokensOptions

TASKS: dict[str, type[TaskOptions]] = {
    "induction": InductionOptions,
    "recall": RecallOptions,
    "rule": RuleOptions,
    "sentiment": SentimentOptions,
    "speech": SpeechOptions,
    "text": TextOptions,
    "tokens": TokensOptions,
    "transduction": TransductionOptions,
    "translation": TranslationOptions,
}

GENERATED = tuple(name for name, task in TASKS.items() if "vocab_size" in declarations(task))
"""Names of synthetic tasks: their tokens are numbers below `task.vocab_size`."""


@dataclass(frozen=True, kw_only=True)
class TaskSection(Part):
    """What is learned: `config.task`."""

    name: TaskOptions = choice(TASKS, "recall", "what is learned")


def make_task(section: ConfigDict) -> Task:
    """Returns the task that `config.task` describes. Raises UserError for invalid options."""
    return read_part("task", TaskSection, section.to_dict()).name.make()
