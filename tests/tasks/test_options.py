"""Options of a task: building it reads all that it declares, and nothing else."""

from typing import Any

import pytest

from research.options import declarations
from research.tasks.registry import TASKS, TaskSection
from tests import corpora, small


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("data")
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question.\n" * 60)
    return {
        "induction": small.induction(),
        "recall": small.recall(),
        "rule": small.rule(),
        "sentiment": small.sentiment(small.labelled(tmp_path)),
        "speech": small.speech(task__time_masks=1),
        "text": small.text(text, task__stream_sinks=(0,), task__stream_tokens=32),
        "tokens": small.tokens(corpora.corpus(tmp_path)),
        "transduction": small.transduction(),
        "translation": small.translation(small.corpus(tmp_path)),
    }


# A generated tone is no recording that may be too long.
UNSEEN = {"speech": {"max_seconds"}}
# Handed on to the tokenizer, which reads them or not.
ALWAYS = {"text": {"bpe_vocab_size"}, "sentiment": {"bpe_vocab_size"}}
ALWAYS |= {"speech": {"bpe_vocab_size", "band_mask"}}


@pytest.mark.parametrize("name", TASKS)
def test_making_a_task_reads_what_it_declares(name, configs, monkeypatch):
    options = TaskSection(name=TASKS[name](**values(configs[name], name))).name
    read = set()

    def recording(self: Any, key: str) -> Any:
        read.add(key)
        return object.__getattribute__(self, key)

    declared = {key for key, one in declarations(type(options)).items() if options.reads(one)}
    monkeypatch.setattr(type(options), "__getattribute__", recording)
    options.make()
    found = read & set(declarations(type(options)))
    assert declared - found == UNSEEN.get(name, set()), "it declares what it does not read"
    assert found - declared <= ALWAYS.get(name, set()), "it reads what it says it does not"


def values(config, name):
    return {
        key: config.task[key] for key in declarations(TASKS[name]) if config.task[key] is not None
    }


@pytest.mark.parametrize("name", TASKS)
def test_a_task_declares_the_directions_of_its_metrics_and_whether_it_decodes(name, configs):
    options = TASKS[name](**values(configs[name], name))
    task = options.make()
    assert isinstance(task, options.task)
    assert bool(task.decoded) == options.decodes
    assert task.select in task.higher_is_better
