"""Tasks by the name that `task.name` takes. A new task is one file and one line here."""

from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from research.attention.parts.masks import LONGEST
from research.errors import UserError, check_name
from research.tasks.speech.recognition import Speech
from research.tasks.speech.recordings import make_speech
from research.tasks.synthetic.induction import Induction, make_induction
from research.tasks.synthetic.recall import Recall, make_recall
from research.tasks.synthetic.rule import Rule, make_rule
from research.tasks.synthetic.transduction import Transduction, make_transduction
from research.tasks.task import Task
from research.tasks.text.language_modeling import Text, make_text
from research.tasks.text.sentiment import Sentiment, make_sentiment
from research.tasks.text.translation import Translation, make_translation


class Entry(NamedTuple):
    """A task: its class, which declares its metrics and options, and what makes it of a config."""

    task: type[Task]
    make: Callable[[ConfigDict], Task]


TASKS: dict[str, Entry] = {
    "induction": Entry(Induction, make_induction),
    "recall": Entry(Recall, make_recall),
    "rule": Entry(Rule, make_rule),
    "sentiment": Entry(Sentiment, make_sentiment),
    "speech": Entry(Speech, make_speech),
    "text": Entry(Text, make_text),
    "transduction": Entry(Transduction, make_transduction),
    "translation": Entry(Translation, make_translation),
}

OPTIONS = {key: value for entry in TASKS.values() for key, value in entry.task.options.items()}
"""Every key that some task reads and others do not, with its default."""

GENERATED = ("induction", "recall", "rule", "transduction")
"""Tasks whose tokens are numbers: they are generated, and `task.vocab_size` says how many."""


def make_task(config: ConfigDict) -> Task:
    """Returns the task of `config.task`. Raises UserError for what does not fit."""
    check_name("task.name", config.name, TASKS)
    for key in ("length", "batch_size"):
        if not 1 <= config[key] <= LONGEST:
            raise UserError(f"task.{key}={config[key]} must be at least 1 and at most {LONGEST}.")
    check_read(config)
    check_eval_lengths(config)
    return TASKS[config.name].make(config)


def check_read(config: ConfigDict) -> None:
    """Raises UserError for a changed key that the task of `config` does not read.

    It would make an ablation of two equal arms.
    """
    mine = TASKS[config.name].task.options
    for key, default in OPTIONS.items():
        if key in mine or key not in config or config[key] == default:
            continue
        readers = [name for name, entry in TASKS.items() if key in entry.task.options]
        raise UserError(
            f"task.{key}={config[key]!r}: task.name={config.name!r} does not read it, "
            f"{', '.join(readers)} {'does' if len(readers) == 1 else 'do'}; leave it {default!r}."
        )


def check_eval_lengths(config: ConfigDict) -> None:
    """Raises UserError for lengths that make no sense, or that the task of `config` cannot take."""
    lengths = tuple(config.eval_lengths)
    if not lengths:
        return
    if lengths[0] < 1 or list(lengths) != sorted(set(lengths)):
        raise UserError(
            f"task.eval_lengths={lengths}: give positive numbers, each longer than the one before."
        )
    if lengths[-1] > LONGEST:
        raise UserError(f"task.eval_lengths={lengths}: each must be at most {LONGEST}.")
