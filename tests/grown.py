"""An update of the code: another task, and another option of tasks that there are."""

from collections.abc import Generator
from dataclasses import make_dataclass
from unittest import mock

from research.options import Part, option
from research.tasks.registry import TASKS
from research.training import schema


def with_option(part: type[Part], name: str) -> type[Part]:
    """Returns the part with one more option, at 0.0 unless it is set."""
    field = (name, float, option(0.0, "how much of it", least=0))
    return make_dataclass(f"More{part.__name__}", [field], bases=(part,), frozen=True, kw_only=True)


def updated() -> Generator[None]:
    """Puts another task, and another option of every task, into the registry; takes them out."""
    tasks = {name: with_option(part, "noise") for name, part in TASKS.items()}
    tasks["another"] = with_option(TASKS["rule"], "colour")
    with mock.patch.dict(TASKS, tasks):
        schema.every_key.cache_clear()
        yield
    schema.every_key.cache_clear()
