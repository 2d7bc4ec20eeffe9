"""What a run reads, and that nothing else is a part of it."""

import json
from pathlib import Path

import pytest

from research.configuration import apply_deltas, flatten, from_plain, load_config, to_plain
from research.errors import UserError
from research.options import declarations
from research.runs.store import CONFIG, read_json, write_json
from research.tasks.registry import TASKS
from research.training import schema
from research.training.evaluating import evaluate
from research.training.loop import check_same_config
from research.training.preemption import Preempted
from research.training.runs import load_run_config, open_run
from research.training.schema import identity, resolve, resolve_recorded, run_id
from tests import small
from tests.conftest import ROOT
from tests.grown import updated
from tests.random_runs import write_run
from tests.runs import signal_at, train, without_time

HERE = Path(__file__).parent
DEFAULTS = ROOT / "tests" / "declared_defaults.json"


def test_every_key_is_there_once_with_its_default():
    config = load_config(small.BASE)
    assert set(flatten(config)) == set(schema.every_key())
    for key, value in flatten(config).items():
        defaults = [one.default for one in schema.every_key()[key]]
        assert value == defaults[0] if value is not None else len(defaults) > 1, key


def test_a_key_with_two_defaults_takes_values_of_its_type():
    config = load_config(small.BASE)
    assert config.task.kind is None
    assert apply_deltas(config, {"task.kind": "pair"}).task.kind == "pair"
    with pytest.raises(UserError, match="'task.kind' takes str, not int"):
        apply_deltas(config, {"task.kind": 3})
    with pytest.raises(UserError, match="'task.test_lengths' takes tuple, not int"):
        apply_deltas(config, {"task.test_lengths": 3})
    # Another copy is not changed by it.
    assert config.task.kind is None and load_config(small.BASE).task.kind is None


def test_each_task_has_its_own_default():
    kinds = {name: resolve({"task": {"name": name}}).task.kind for name in ("rule", "transduction")}
    assert kinds == {"rule": "keyword", "transduction": "substitute"}
    assert "kind" not in resolve({}).task


RUNS = {
    "recall": small.recall(),
    "induction": small.induction(),
    "rule": small.rule(),
    "transduction": small.transduction(),
    "speech": small.speech(),
    "text": small.text("x.txt"),
    "sgd": small.recall(optimizer__name="sgd", optimizer__schedule="rsqrt"),
}


IDS = {name: run_id(config) for name, config in RUNS.items()}


@pytest.mark.parametrize("name", RUNS)
def test_resolving_twice_or_from_json_is_resolving_once(name):
    once = resolve(RUNS[name])
    assert resolve(once) == once == resolve_recorded(to_plain(once)) == from_plain(to_plain(once))
    assert run_id(once) == run_id(RUNS[name])
    assert once.is_locked
    # What is read of a whole config.json of before is the same.
    assert resolve_recorded(to_plain(RUNS[name])) == once


@pytest.mark.parametrize("name", RUNS)
def test_every_key_that_is_read_is_part_of_the_identity_and_no_other(name):
    run = resolve(RUNS[name])
    other = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: 0.7 * v + 0.2}
    other |= {str: lambda v: v + "x", tuple: lambda v: v[:-1] if len(v) > 1 else (1,)}
    ids = {}
    for key, value in flatten(run).items():
        try:
            changed = apply_deltas(run, {key: other[type(value)](value)})
            ids[key] = run_id(changed)
        except UserError:  # a choice that does not exist, or out of range
            continue
    layout = {key for key in ids if key.startswith("parallel.")}
    assert layout and {ids.pop(key) for key in layout} == {run_id(run)}
    assert len({run_id(run), *ids.values()}) == 1 + len(ids) > 20


def test_values_at_their_default_are_no_part_of_the_identity():
    assert identity({}) == {}
    assert identity(schema.defaults()) == {}
    config = {"task": {"name": "rule", "kind": "keyword", "length": 8}, "seed": 3}
    assert identity(config) == {"task": {"name": "rule", "length": 8}, "seed": 3}


@pytest.mark.parametrize(
    ("deltas", "message"),
    [
        (
            {"task.vocab_size": 5, "task.name": "text"},
            "task.vocab_size=5: task.name='text' does not read it, induction, recall, rule, "
            "transduction do; leave it 64.",
        ),
        (
            {"task.label_smoothing": 0.1},
            "task.label_smoothing=0.1: task.name='recall' does not read it, translation does; "
            "leave it 0.0.",
        ),
        (
            {"task.kind": "pair"},
            "task.kind='pair': task.name='recall' does not read it, rule, transduction do; "
            "leave it out.",
        ),
        (
            {"task.name": "text", "task.bpe_vocab_size": 300},
            "task.bpe_vocab_size=300: task.tokenizer='char' does not read it, bpe does; "
            "leave it 1024.",
        ),
        (
            {"task.name": "text", "task.stream_window": 8},
            "task.stream_window=8: task.stream_sinks=() does not read it; leave it 0.",
        ),
        (
            {"task.name": "speech", "task.time_mask": 8},
            "task.time_mask=8: task.time_masks=0 does not read it; leave it 10.",
        ),
        (
            {"task.name": "sentiment", "task.tokenizer": "bpe", "task.min_count": 2},
            "task.min_count=2: task.tokenizer='bpe' does not read it, word does; leave it 1.",
        ),
        (
            {"model.rope_low_freq_factor": 2.0},
            "model.rope_low_freq_factor=2.0: model.rope_scaling='none' does not read it, llama3 "
            "does; leave it 1.0.",
        ),
        ({"task.length": 0}, "task.length=0 must be at least 1."),
        (
            {"task.name": "rule", "task.kind": "keywrd"},
            "task.kind='keywrd' is unknown. Did you mean 'keyword'? Allowed: keyword, pair.",
        ),
        ({"task.num_pairs": (4, 0)}, "task.num_pairs=(4, 0) must be at least 1."),
        ({"seed": -1}, "seed=-1 must be at least 0."),
        ({"train.steps": 0}, "train.steps=0 must be at least 1, or train.init_from must name a"),
        ({"parallel.how": "pmpa"}, "parallel.how='pmpa' is unknown. Did you mean 'pmap'?"),
        (
            {"interpret.measures": ("entropie",)},
            "interpret.measures='entropie' is unknown. Did you mean 'entropy'?",
        ),
        ({"optimizer.beta1": 1.0}, "optimizer.beta1=1.0 must be in [0, 1)."),
    ],
)
def test_what_makes_no_sense_is_one_line(deltas, message):
    with pytest.raises(UserError) as error:
        resolve(apply_deltas(load_config(small.BASE), deltas))
    assert str(error.value).startswith(message)


def test_a_key_that_does_not_exist_is_named():
    with pytest.raises(UserError, match="'task.lenght' does not exist. Did you mean 'task.leng"):
        resolve({"task": {"lenght": 3}})


def declared_now():
    """Returns {part: {"revision": its revision, option: its default}}."""
    return {
        label or "run": {
            "revision": part.revision,
            **{key: one.default for key, one in declarations(part).items()},
        }
        for label, part in schema.named_parts()
    }


def test_defaults_are_those_that_runs_were_made_with():
    """What is at its default is no part of a run's id, so that a default may not just change."""
    before, now = json.loads(DEFAULTS.read_text()), json.loads(json.dumps(declared_now()))
    assert not before.keys() - now.keys(), f"parts are gone: take them out of {DEFAULTS.name}"
    for part, declared in before.items():
        raised = declared["revision"] != now[part]["revision"]
        changed = {key for key in declared if declared[key] != now[part].get(key)}
        assert raised or not changed, (
            f"{part}: {changed} changed: raise `revision` by one, or undo the change"
        )
    new = {
        part: {key: value for key, value in declared.items() if key not in before.get(part, {})}
        for part, declared in now.items()
    }
    assert not any(new.values()), f"new, to be added to {DEFAULTS.name}: {new}"
    assert now == before, f"a revision was raised: write what is declared now to {DEFAULTS.name}"


def test_a_raised_revision_is_another_run(monkeypatch, tmp_path):
    config = small.recall()
    before = run_id(config)
    write_json(tmp_path / CONFIG, schema.run_record(config))
    check_same_config(config, tmp_path)
    monkeypatch.setattr(TASKS["recall"], "revision", 2)
    assert run_id(config) != before
    with pytest.raises(UserError, match=r"revisions.task name 'recall' \('absent' there, 2 here"):
        check_same_config(config, tmp_path)
    # It can still be opened.
    assert load_run_config(tmp_path) == resolve(config)
    write_json(tmp_path / CONFIG, schema.run_record(config))
    check_same_config(config, tmp_path)


@pytest.fixture
def update():
    yield from updated()


def test_an_update_changes_no_id(update):
    assert {name: run_id(config) for name, config in RUNS.items()} == IDS
    assert resolve(RUNS["recall"]).task.noise == 0.0
    other = apply_deltas(resolve(RUNS["recall"]), {"task.noise": 0.5})
    assert run_id(other) != run_id(RUNS["recall"])


BEFORE = json.loads((HERE / "configs_of_before.json").read_text())
"""config.json of runs that were made when it held all keys of all tasks."""
NOW = {
    "recall": small.recall(),
    "rule": small.rule(),
    "transduction": small.transduction(decoding__beam=2),
    "induction": small.induction(),
}


@pytest.mark.parametrize("name", NOW)
def test_a_run_of_before_is_the_run_of_now(name, tmp_path):
    write_json(tmp_path / CONFIG, BEFORE[name])
    check_same_config(NOW[name], tmp_path)
    assert load_run_config(tmp_path) == resolve(NOW[name])
    changed = apply_deltas(NOW[name], {"task.batch_size": 8})
    with pytest.raises(UserError, match=r"task.batch_size \(4 there, 8 here\)"):
        check_same_config(changed, tmp_path)


def test_a_finished_run_of_before_has_nothing_to_do_and_is_evaluated(tmp_path, monkeypatch):
    write_run(tmp_path, NOW["recall"])
    write_json(tmp_path / CONFIG, BEFORE["recall"])
    opened = open_run(tmp_path, load_run_config(tmp_path))
    assert set(evaluate(opened).metrics) == {"validation", "test"}
    monkeypatch.setattr("research.training.loop.make_program", None)
    train(NOW["recall"], tmp_path)


def test_a_stopped_run_of_before_goes_on(tmp_path, monkeypatch):
    train(NOW["recall"], tmp_path / "whole")
    with monkeypatch.context() as patch:
        signal_at(patch, [10])
        with pytest.raises(Preempted):
            train(NOW["recall"], tmp_path / "stopped")
    write_json(tmp_path / "stopped" / CONFIG, BEFORE["recall"])
    train(NOW["recall"], tmp_path / "stopped")
    assert without_time(tmp_path / "stopped") == without_time(tmp_path / "whole")


def test_a_finished_run_has_nothing_to_do_after_an_update(tmp_path, monkeypatch, update):
    write_run(tmp_path, NOW["recall"])
    written = read_json(tmp_path / CONFIG)
    del written["task"]["noise"]  # it was made before the update
    write_json(tmp_path / CONFIG, written)
    monkeypatch.setattr("research.training.loop.make_program", None)
    train(NOW["recall"], tmp_path)
