"""Runs that start from the parameters of others: equal at zero steps, exact when resumed."""

import functools
import shutil

import jax
import numpy as np
import pytest

from research.ablation.expansion import report_cells, tuning_cells
from research.ablation.experiment import Experiment, Outcome
from research.ablation.loading import InMemoryExperiment
from research.ablation.populations import Shard, populations
from research.ablation.sweep import prepare, run_sweep
from research.configuration import flatten, load_config
from research.errors import UserError
from research.parallel.parallelize import to_global_arrays
from research.runs.store import read_json, read_metrics, read_result, write_json
from research.training.initial import INITIAL, digest, load_initial
from research.training.loop import train_population
from research.training.preemption import Preempted
from research.training.program import make_members, make_program, static_id
from research.training.runs import load_run_config, open_run
from research.training.schema import resolve
from tests import small
from tests.conftest import ROOT
from tests.random_runs import write_run
from tests.runs import best_of, signal_at, train, without_time

recall = functools.partial(small.recall, model__num_layers=1, train__steps=16)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Two runs that were trained together."""
    return train(recall(members=2), tmp_path_factory.mktemp("pretrained"))


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_seeds_that_are_trained_together_lie_in_directories_named_by_them(sources):
    assert [run.name for run in sources] == ["seed-0", "seed-1"]


def test_zero_steps_evaluate_what_each_member_starts_from(sources, tmp_path):
    configs = [recall(train__init_from=str(run), train__steps=0) for run in sources]
    assert static_id(configs[0]) == static_id(configs[1])
    runs = [tmp_path / "a", tmp_path / "b"]
    train_population(configs, runs, tmp_path)
    for run, source in zip(runs, sources, strict=True):
        before, now = read_result(source), read_result(run)
        assert now["best"] == now["final"] == before["best"]
        assert (now["steps"], now["best_step"], now["budget"]["tokens"]) == (0, 0, 0)
        jax.tree.map(np.testing.assert_array_equal, best_of(run)[0], best_of(source)[0])
        (row,) = read_metrics(run)
        assert row["step"] == 0
        assert row["validation/loss"] == before["best"]["validation"]["loss"]
        record = read_json(run / INITIAL)
        assert record["source"] == str(source)
        assert record["changed"] == record["fresh"] == record["unused"] == []
        assert record["digest"] == digest(best_of(source)[0])
    digests = {read_json(run / INITIAL)["digest"] for run in runs}
    assert len(digests) == 2
    opened = open_run(runs[0], load_run_config(runs[0]))
    jax.tree.map(np.testing.assert_array_equal, opened.params, best_of(sources[0])[0])


def test_the_config_that_continues_a_run_is_the_run_s_own(sources):
    path = ROOT / "configs" / "continued.py"
    config, before = (flatten(resolve(c)) for c in (load_config(f"{path}:{sources[1]}"), recall()))
    changed = {key for key in before if config[key] != before[key]}
    assert {"seed", "train.init_from", "train.steps", "optimizer.learning_rate"} <= changed
    assert all(key.split(".")[0] in ("seed", "train", "optimizer") for key in changed)
    assert config["train.init_from"] == str(sources[1]) and config["train.steps"] == 1
    assert config["optimizer.learning_rate"] == pytest.approx(1e-3)
    with pytest.raises(UserError, match=r"which run goes on\? Name it: --config="):
        load_config(str(path))


@pytest.mark.parametrize("rule", ["adamw", "schedule_free"])
def test_training_goes_on_from_there(sources, tmp_path, rule):
    changes = {"optimizer__schedule": "constant"} if rule == "schedule_free" else {}
    config = recall(
        train__init_from=str(sources[1]), train__steps=6, optimizer__name=rule, **changes
    )
    program = make_program(config)
    there = jax.tree.map(lambda leaf: np.asarray(leaf)[None], best_of(sources[1])[0])
    state = program.begin(there)
    jax.tree.map(np.testing.assert_array_equal, state.params, there)
    if rule == "schedule_free":  # it keeps a second copy, from which it goes on
        structure = jax.tree.structure(there)
        kept = [
            node
            for node in jax.tree.leaves(
                state.optimizer, is_leaf=lambda x: jax.tree.structure(x) == structure
            )
            if jax.tree.structure(node) == structure
        ]
        assert any(same(one, there) for one in kept)
    (run,) = train(config, tmp_path)
    rows = read_metrics(run)
    before = read_result(sources[1])["best"]["validation"]
    assert [row["step"] for row in rows] == [0, 5, 6]
    assert rows[0]["validation/loss"] == before["loss"]
    # Random parameters begin at log(16) = 2.77.
    assert rows[1]["train/loss"] < np.log(16)
    assert rows[-1]["validation/loss"] != before["loss"]
    assert read_result(run)["best"]["validation"]["accuracy"] >= before["accuracy"]


def test_a_stopped_run_goes_on_without_its_source(sources, tmp_path, monkeypatch):
    source = tmp_path / "pretrained" / "seed-0"
    shutil.copytree(sources[0].parent, source.parent)
    config = recall(train__init_from=str(source), train__steps=12)
    (whole,) = train(config, tmp_path / "whole")
    signal_at(monkeypatch, [5])
    with pytest.raises(Preempted):
        train(config, tmp_path / "stopped")
    # The same path with other parameters is another source.
    shutil.rmtree(source)
    shutil.copytree(sources[0].parent / "seed-1", source)
    with pytest.raises(UserError, match=r"init_from=.* changed since the run began"):
        train(config, tmp_path / "stopped")
    shutil.rmtree(source.parent)
    (stopped,) = train(config, tmp_path / "stopped")
    assert without_time(stopped) == without_time(whole)
    jax.tree.map(np.testing.assert_array_equal, best_of(stopped), best_of(whole))


def test_a_run_that_has_saved_nothing_asks_for_the_same_source(sources, tmp_path):
    config = recall(train__init_from=str(sources[0]), train__steps=0)
    write_json(tmp_path / INITIAL, {"digest": "0" * 64})
    with pytest.raises(UserError, match=r"had the sha256 000000000000, and now have .* Put the"):
        train(config, tmp_path)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__init_from": "nowhere"}, r"train.init_from='nowhere': nowhere is not a run"),
        ({"task__vocab_size": 32}, r"its vocabulary has 16 tokens, that of the task 32\."),
        ({"model__feedforward": 8}, r"layers/0/feedforward/in is \(8, 16\) there, \(8, 8\) here\."),
        (
            {"train__init_without_heads": ("0.0", "1.0")},
            r"train.init_without_heads=\('0.0', '1.0'\): '1.0': there are 1 layers that mix",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_line_and_writes_nothing(sources, tmp_path, changes, message):
    config = recall(**{"train__init_from": str(sources[0]), "train__steps": 0} | changes)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_another_tokenizer_is_refused(tmp_path):
    for name, letters in (("a", "abcd"), ("b", "abce")):
        (tmp_path / f"{name}.txt").write_text((f"{letters}\n" * 9) * 40)
    short = {"model__num_layers": 1, "train__steps": 1}
    (run,) = train(small.text(tmp_path / "a.txt", **short), tmp_path / "run")
    config = small.text(tmp_path / "b.txt", **short, train__init_from=str(run))
    with pytest.raises(UserError, match=r"its tokenizer \(sha256 \w{12}\) is not that of the task"):
        train(config, tmp_path / "other")


def test_another_kind_of_model_is_refused(tmp_path):
    write_run(tmp_path / "run", small.transduction())
    transformer = {key.replace(".", "__"): value for key, value in small.TRANSFORMER.items()}
    config = small.transduction(
        model__name="encoder_decoder", train__init_from=str(tmp_path / "run"), **transformer
    )
    with pytest.raises(UserError, match=r"is a 'recurrent', and model.name='encoder_decoder'\."):
        load_initial(make_program(config), [config])


def test_what_a_new_mechanism_has_of_its_own_is_told(sources, tmp_path, capsys):
    config = recall(train__init_from=str(sources[0]), train__steps=0, model__mixer="gated_linear")
    (run,) = train(config, tmp_path)
    record = read_json(run / INITIAL)
    assert "layers/*/mixer/decay_bias" in record["fresh"] and not record["unused"]
    said = capsys.readouterr().out
    assert f"at initial values, not from {sources[0]}: layers/*/mixer/" in said
    assert f"not as in {sources[0]}: " in said
    assert "model.mixer ('softmax' there, 'gated_linear' here)" in said
    there, here = best_of(sources[0])[0], best_of(run)[0]
    assert np.array_equal(there["embedding"], here["embedding"])
    program = make_program(config)
    drawn = program.init(to_global_arrays(make_members([config]), program.members)).params
    for name in ("decay_in", "gate"):
        own = [tree["layers"]["0"]["mixer"][name] for tree in (drawn, here)]
        np.testing.assert_array_equal(own[0][0], own[1])


def experiment_from(sources, **changes):
    """Returns an experiment whose replicates start from models of their own."""
    return Experiment(
        question="?",
        base=small.BASE,
        common={**small.RECALL, "model.num_layers": 1, "train.steps": 0}
        | {"train.init_from": str(sources[0].parent / "seed-{replicate}")},
        arms={"multi-head": {}, "multi-query": {"model.num_kv_heads": 1}},
        seeds=2,
        outcome=Outcome("loss"),
        **changes,
    )


def test_each_replicate_starts_from_a_model_of_its_own(sources, tmp_path):
    source = InMemoryExperiment(experiment_from(sources), "converted")
    experiment = prepare(source, tmp_path, 64)
    cells = report_cells(experiment, "multi-head", {}, {})
    assert [cell.config.train.init_from for cell in cells] == list(map(str, sources))
    assert len(populations(cells, 64)) == 1  # they share a program
    counts = run_sweep(source, tmp_path, Shard(), False, 64)
    assert counts["trained"] == 4
    for cell, run in zip(cells, sources, strict=True):
        assert read_result(tmp_path / cell.run)["best"] == read_result(run)["best"]
    # One that is to begin names the first model that is not there.
    gone = experiment_from([tmp_path / "gone" / "seed-0"])
    with pytest.raises(UserError, match=r"converted: arm 'multi-head': train.init_from='.*seed-0'"):
        prepare(InMemoryExperiment(gone, "converted"), tmp_path / "new", 64)


def test_tuning_runs_count_their_seeds_from_zero_too(sources):
    tuned = experiment_from(
        sources, tune={"optimizer.learning_rate": (1e-3, 1e-2)}, tune_seeds=(7, 9)
    )
    cells = tuning_cells(tuned)
    named = {(cell.seed, cell.config.train.init_from) for cell in cells}
    assert named == {(7, str(sources[0])), (9, str(sources[1]))}
