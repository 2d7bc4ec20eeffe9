"""Keys of a task: each declares what it reads, which building it proves; other keys are refused."""

from typing import Any

import pytest
from ml_collections import ConfigDict

from research.configuration import load_config
from research.errors import UserError
from research.tasks.registry import OPTIONS, TASKS, make_task
from research.tasks.task import COMMON
from tests import small


class Recording:
    """A config that remembers which of its keys were read."""

    def __init__(self, config: ConfigDict) -> None:
        self.config, self.read = config, set()

    def __getattr__(self, key: str) -> Any:
        self.read.add(key)
        return self.config[key]

    __getitem__ = __getattr__


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("data")
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question.\n" * 60)
    return {
        "induction": [small.induction()],
        "recall": [small.recall()],
        "rule": [small.rule()],
        "sentiment": [small.sentiment(small.labelled(tmp_path))],
        # What is generated has no speakers' files, whose recordings may be too long.
        "speech": [small.speech()],
        "text": [small.text(text, task__stream_sinks=(0,), task__stream_tokens=32)],
        "transduction": [small.transduction()],
        "translation": [small.translation(small.corpus(tmp_path))],
    }


UNSEEN = {("speech", "max_seconds")}
"""What a recording reads and a generated tone does not."""


@pytest.mark.parametrize("name", TASKS)
def test_a_task_reads_exactly_the_options_that_it_declares(name, configs):
    found = set()
    for config in configs[name]:
        recording = Recording(config.task)
        TASKS[name].make(recording)
        found |= recording.read
    declared = set(TASKS[name].task.options)
    assert found - set(COMMON) <= declared, "it reads what it does not declare"
    assert {(name, key) for key in declared - found} <= UNSEEN, "it declares what it does not read"


def test_declared_defaults_are_those_of_the_base_config_and_every_key_has_a_reader():
    base = load_config(small.BASE).task
    assert {*OPTIONS, *COMMON} == set(base)
    for name, entry in TASKS.items():
        assert {key: base[key] for key in entry.task.options} == dict(entry.task.options), name


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"label_smoothing": 0.1},
            "task.label_smoothing=0.1: task.name='recall' does not read it, translation does; "
            "leave it 0.0.",
        ),
        (
            {"buckets": 3},
            "'recall' does not read it, sentiment, speech, translation do; leave it 6",
        ),
        ({"name": "transduction", "gap_power": 0.5}, "task.gap_power=0.5: .* recall does"),
        ({"name": "induction", "num_pairs": (2,)}, r"task.num_pairs=\(2,\): .* recall does"),
        ({"stream_sinks": (0,)}, r"task.stream_sinks=\(0,\): .* text does"),
    ],
)
def test_a_changed_key_that_the_task_does_not_read_is_refused(config, message):
    task = ConfigDict(load_config(small.BASE).task.to_dict())
    task.update(config)
    with pytest.raises(UserError, match=message):
        make_task(task)


def test_keys_at_their_default_are_harmless():
    make_task(load_config(small.BASE).task)
