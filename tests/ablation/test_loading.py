"""What an experiment file may not say: a key twice, one run under two names, a wrong direction."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from research.ablation.directions import metric_directions
from research.ablation.expansion import report_cells, tuning_cells
from research.ablation.experiment import Experiment, Outcome, experiment_from_json, points
from research.ablation.loading import load_experiment
from research.ablation.measured_metrics import check_metrics
from research.ablation.sweep import prepare, with_layout
from research.ablation.tuning import choose
from research.configuration import load_config
from research.errors import UserError
from research.interpret.head_metrics import MEASURES
from research.report.judging.evidence import load_study
from research.report.judging.measuring import measure
from research.tasks.registry import TASKS, make_task
from research.tasks.speech.recognition_scores import SpeechOutputs
from research.training.program import make_program
from research.training.schema import run_id
from research.training.scores import score_names
from research.training.step import batch_shapes
from tests import corpora, small
from tests.report.synthetic_sweep import build, plausible

FILE = """
from research.ablation.claims import *
from research.ablation.experiment import Experiment, Outcome
experiment = Experiment({arguments})
"""
BASE = {
    "question": "'?'",
    "base": repr(small.BASE),
    "arms": "{'a': {}, 'b': {'model.num_heads': 1}}",
    "seeds": "(0, 1)",
    "outcome": "Outcome('accuracy')",
}
RATES = "{'optimizer.learning_rate': (1e-3, 3e-3)}"
TUNED = {"tune": RATES, "tune_seeds": "(100,)"}


def load(tmp_path, **changes):
    arguments = ", ".join(f"{key}={value}" for key, value in (BASE | changes).items())
    path = tmp_path / "mine.py"
    path.write_text(FILE.format(arguments=arguments))
    return load_experiment(path)


def arms(deltas):
    return f"{{'a': {{}}, 'b': {deltas}}}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # An arm at a rate of 10 would be a copy of the reference at the tuned rate.
        (
            TUNED | {"arms": arms("{'optimizer.learning_rate': 10.0}")},
            "arm 'b' sets 'optimizer.learning_rate', which is in tune as well",
        ),
        (
            {"axes": "{'task.length': (32, 64)}", "arms": arms("{'task.length': 16}")},
            "arm 'b' sets 'task.length', which is in axes as well",
        ),
        (TUNED | {"axes": RATES}, "axes sets 'optimizer.learning_rate', which is in tune"),
        (TUNED | {"common": "{'optimizer.learning_rate': 1.0}"}, "common sets 'optimizer.learn"),
        (
            {"axes": "{'task.length': (32, 64)}", "common": "{'task.length': 16}"},
            "common sets 'task.length', which is in axes as well",
        ),
        (
            {"axes": "{'task.length': (32, 64)}", "along": "{'task.length=16': {}}"},
            "along='task.length=16' is unknown. Did you mean 'task.length=",
        ),
        (
            {
                "axes": "{'task.length': (32, 64)}",
                "along": "{'task.length=64': {'task.length': 8}}",
            },
            "along 'task.length=64' sets 'task.length', which is in axes as well",
        ),
        (
            {
                "axes": "{'task.length': (32, 64), 'model.width': (8, 16)}",
                "along": "{'task.length=64': {'task.batch_size': 2}, "
                "'model.width=16': {'task.batch_size': 4}}",
            },
            "along sets 'task.batch_size' for 'task.length=64' and for 'model.width=16'",
        ),
        ({"arms": arms("{'seed': 7}")}, "arm 'b' sets 'seed', which is not an arm's to choose"),
        ({"common": "{'members': 4}"}, "common sets 'members', .* --max_members"),
        ({"axes": "{'seed': (0, 1)}"}, "axes sets 'seed'"),
        (
            {"common": "{'model.width': 32}", "arms": "{'a': {'model.width': 64}}"},
            "common sets 'model.width' to 32, and so does every arm",
        ),
        (
            {"match": "'parameters'", "arms": arms("{'model.feedforward': 64}")},
            "arm 'b' sets 'model.feedforward', which match='parameters' solves",
        ),
        (
            {"match": "'parameters'", "axes": "{'model.feedforward': (64, 128)}"},
            "axes sets 'model.feedforward', which match",
        ),
        (
            {"outcome": "Outcome('accuracy', split='validation')"},
            r"chooses the checkpoint \(outcome.at='best'\), .* outcome.at='final'",
        ),
        (
            TUNED | {"outcome": "Outcome('accuracy', split='validation')"},
            "chooses the checkpoint .* and the tuned values, so its results are too good; use",
        ),
        (
            TUNED | {"outcome": "Outcome('accuracy', split='validation', at='final')"},
            "chooses the tuned values, so its results are too good; use 'test'",
        ),
        ({"feedforward": "{'b': {'': 64}}"}, "feedforward is found by the sweep"),
        ({"seeds": "(0, 0)"}, "seeds has 0 twice"),
        ({"axes": "{'task.length': (32, 32)}"}, r"axes\['task.length'\] has 32 twice"),
        ({"axes": "{'task.num_pairs': ([2], [2])}"}, r"has \[2\] twice"),
        ({"axes": "{'task.length': ()}"}, "give a tuple of one or more values"),
        ({"axes": "{'task.kind': 'copy'}"}, "give a tuple of one or more values"),
        ({"arms": arms("{}")}, r"arm 'a' and arm 'b' are the same run, .* same=\(\('a', 'b'\),\)"),
        # The layout over devices is no part of what a run is.
        ({"arms": arms("{'parallel.data': 2}")}, "are the same run"),
        (
            {"axes": "{'model.num_heads': (2, 4)}", "arms": arms("{'model.dropout': 0.0}")},
            "arm 'a' at model.num_heads=2 and arm 'b' at model.num_heads=2 are the same run",
        ),
        ({"same": "(('a', 'b'),)"}, r"same has \('a', 'b'\), which are never the same run"),
        ({"same": "(('a', 'bb'),)"}, "same='bb' is unknown. Did you mean 'b'"),
    ],
)
def test_what_would_be_lost_is_refused(changes, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path, **changes)
    assert str(tmp_path / "mine.py") in str(error.value)
    assert "\n" not in str(error.value)


def test_validation_may_be_reported_where_it_has_chosen_nothing(tmp_path):
    outcome = load(tmp_path, outcome="Outcome('accuracy', split='validation', at='final')").outcome
    assert (outcome.split, outcome.at) == ("validation", "final")


def test_an_arm_may_be_the_exception_to_what_is_common(tmp_path):
    found = load(tmp_path, common="{'model.num_heads': 2, 'model.width': 32}")
    configs = [report_cells(found, arm, {}, {})[0].config for arm in found.arms]
    assert [c.model.num_heads for c in configs] == [2, 1]


def test_deltas_go_along_with_an_axis_value(tmp_path):
    experiment = load(
        tmp_path,
        axes="{'task.length': (32, 64)}",
        along="{'task.length=64': {'task.batch_size': 2}}",
        arms=arms("{'task.batch_size': 3}"),
    )
    found = [
        (cell.arm, dict(cell.point), cell.config.task.length, cell.config.task.batch_size)
        for point in points(experiment)
        for arm in experiment.arms
        for cell in report_cells(experiment, arm, point, {})[:1]
    ]
    assert found == [
        ("a", {"task.length": 32}, 32, load_config(small.BASE).task.batch_size),
        ("b", {"task.length": 32}, 32, 3),
        ("a", {"task.length": 64}, 64, 2),
        ("b", {"task.length": 64}, 64, 3),
    ]
    assert experiment_from_json(json.loads(json.dumps(experiment.to_json()))).along == dict(
        experiment.along
    )


def test_arms_may_be_said_to_be_the_same_run(tmp_path):
    found = load(tmp_path, arms=arms("{'model.num_heads': 4}"), same="(('a', 'b'),)")
    a, b = (report_cells(found, arm, {}, {})[0] for arm in found.arms)
    assert a.run == b.run
    assert experiment_from_json(json.loads(json.dumps(found.to_json()))).same == [["a", "b"]]


def test_a_base_that_is_a_population_is_refused(tmp_path):
    base = tmp_path / "four.py"
    base.write_text(
        "from configs import base\n"
        "def get_config():\n"
        "    config = base.get_config()\n"
        "    config.members = 4\n"
        "    return config\n"
    )
    with pytest.raises(UserError, match="four.py sets members=4; a sweep trains"):
        load(tmp_path, base=repr(str(base)))


def test_matching_may_not_make_two_arms_one(tmp_path):
    common = small.RECALL | {"model.feedforward": 24}
    path = tmp_path / "mine.py"
    changes = {
        "match": "'parameters'",
        "common": repr({k: v for k, v in small.RECALL.items() if k != "model.feedforward"}),
        "arms": "{'a': {'model.feedforward': 24}, 'b': {}}",
    }
    load(tmp_path, **changes)  # 24 and 256, until both have as many parameters
    assert common["model.feedforward"] == 24
    with pytest.raises(UserError, match="arm 'a' and arm 'b' are the same run"):
        prepare(str(path), tmp_path / "sweep")


def test_devices_on_the_command_line_are_not_lost_to_an_arm():
    experiment = Experiment("?", small.BASE, {"a": {"parallel.data": 2}}, Outcome("loss"), (0,))
    with pytest.raises(UserError, match="--parallel sets 'parallel.data', and so does the experi"):
        with_layout(experiment, {"parallel.data": 4})


@pytest.mark.parametrize(
    ("metric", "higher", "base"),
    [
        ("loss", False, {}),
        ("accuracy", True, {}),
        ("bleu", True, {"task.name": "translation"}),
        ("wer", False, {"task.name": "speech"}),
        ("bits_per_character", False, {"task.name": "text"}),
        ("stream_perplexity_ratio", False, {"task.name": "text"}),
        ("alignment_error", False, {"task.name": "transduction"}),
        ("sufficiency_gradient", False, {"interpret.final": ("faithfulness",)}),
    ],
)
def test_the_direction_is_the_declared_one(metric, higher, base, tmp_path):
    found = load(tmp_path, outcome=f"Outcome({metric!r})", common=repr(base))
    assert found.outcome.higher_is_better is higher
    assert found.directions[metric] is higher
    with pytest.raises(UserError, match=f"outcome.higher_is_better={not higher}: of '{metric}' "):
        load(
            tmp_path,
            outcome=f"Outcome({metric!r}, higher_is_better={not higher})",
            common=repr(base),
        )


def test_a_direction_that_nobody_declares_must_be_said(tmp_path):
    asked = {"common": "{'interpret.measures': ('entropy',)}"}
    with pytest.raises(UserError, match="outcome.metric='entropy': whether higher .* neither way"):
        load(tmp_path, outcome="Outcome('entropy')", **asked)
    said = load(tmp_path, outcome="Outcome('entropy', higher_is_better=False)", **asked)
    assert said.outcome.higher_is_better is False
    with pytest.raises(UserError, match="'acuracy': .* is unknown. Did you mean 'accuracy'"):
        load(tmp_path, outcome="Outcome('acuracy')")


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("Direction('a', 'b', metric='loss', better='higher')", "of 'loss' lower is better"),
        ("Direction('a', 'b', better='lower')", "of 'accuracy' higher is better"),
        ("Direction('a', 'b', metric='loss_by_gap', better='higher')", "lower is better"),
        ("Direction('a', 'b', metric='timing/steps_per_second', better='lower')", "higher is bet"),
        ("Direction('a', 'b', metric='timing/members')", "direction is not declared"),
        ("Direction('a', 'b', metric='lost')", "direction is not declared.* Did you mean 'loss'"),
        ("Threshold('a', 1.0, metric='timing/step_per_second')", "Did you mean 'timing/steps_per"),
    ],
)
def test_claims_go_the_declared_way(test, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load(tmp_path, claims=f"(Claim('It is so.', test={test}),)")


def test_claims_need_not_say_what_is_declared(tmp_path):
    tests = (
        "Direction('a', 'b', metric='loss')",
        "Direction('a', 'b', metric='timing/model_flops_utilization')",
    )
    found = load(tmp_path, claims="".join(f"Claim('?', test={t})," for t in tests).join("()"))
    study = load_study(build(tmp_path, found, lambda *a: plausible(0.5, a[-1])))
    assert measure(study, "loss").higher_is_better is False
    assert measure(study, "loss_by_gap").higher_is_better is False
    assert measure(study, "timing/model_flops_utilization").higher_is_better is True


def test_tuning_by_loss_takes_the_lowest(tmp_path):
    found = load(tmp_path, outcome="Outcome('loss')", **TUNED)
    cells = [c for c in tuning_cells(found) if c.arm == "a"]
    losses = dict(zip([c.run for c in cells], (4.470, 3.651), strict=True))
    results = {
        run: {"status": "completed", "best": {"validation": {"loss": loss}}}
        for run, loss in losses.items()
    }
    chosen = choose(found.outcome, [c.to_json() for c in cells], results)
    assert list(chosen.values()) == [{"optimizer.learning_rate": 3e-3}]


def checked(experiment, config):
    check_metrics(experiment, "a", make_program(config), config)


def test_what_is_not_measured_is_refused_before_training(tmp_path):
    config = small.transduction()
    loaded = load(
        tmp_path, outcome="Outcome('exact_match')", common="{'task.name': 'transduction'}"
    )
    checked(loaded, config)
    # Only the test is decoded: tuning would take the first rate without a word.
    tuned = dataclasses.replace(loaded, tune={"optimizer.learning_rate": (1.0, 2.0)})
    with pytest.raises(UserError, match="'exact_match' is not measured on validation, by which"):
        checked(tuned, config)
    claims = "(Claim('?', test=Threshold('a', 0.5, metric='acuracy_by_length')),)"
    with pytest.raises(UserError, match="metric='acuracy_by_length' is unknown. Did you mean 'acc"):
        checked(load(tmp_path, common="{'task.name': 'transduction'}", claims=claims), config)


@pytest.fixture
def runs(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question.\n" * 60)
    return {
        "induction": small.induction(),
        "recall": small.recall(task__eval_lengths=(32,)),
        "rule": small.rule(),
        "sentiment": small.sentiment(small.labelled(tmp_path)),
        "speech": small.speech(),
        "text": small.text(text, task__eval_lengths=(32,)),
        "tokens": small.tokens(corpora.corpus(tmp_path)),
        "transduction": small.transduction(),
        "translation": small.translation(small.corpus(tmp_path), task__label_smoothing=0.1),
    }


def outputs_of(task, batch):
    """Shapes of what a model makes of a batch."""
    rows, number = batch["inputs"].shape
    logits = jax.ShapeDtypeStruct((rows, number, task.vocab_size), jnp.float32)
    if task.classes:
        return jax.ShapeDtypeStruct((rows, task.classes), jnp.float32)
    if "speech" not in task.models:
        return logits
    lengths = jax.ShapeDtypeStruct((rows,), jnp.int32)
    labelling = jax.ShapeDtypeStruct((rows, number), jnp.int32)
    weight = jax.ShapeDtypeStruct((), jnp.float32)
    return SpeechOutputs(logits, logits, lengths, weight, labelling)


def test_every_metric_of_every_task_says_which_way_is_better(runs):
    assert set(runs) == set(TASKS)
    for name, config in runs.items():
        task = make_task(config.task)
        batch = batch_shapes(task)
        sums = jax.eval_shape(
            lambda outputs, batch, t=task: t.metrics(outputs, t.with_eval_length(batch, 0)),
            outputs_of(task, batch),
            batch,
        )
        scores = [m for split in task.splits for m in score_names(task, split)]
        known = metric_directions(config)
        found = {m for m in (*sums, *task.slices, *scores) if m not in known}
        assert not {m for m in found if m.partition("_by_")[0] not in known}, name
        assert task.higher_is_better[task.select] is task.select_higher


def test_reports_of_sweeps_that_said_their_direction_are_readable():
    plain = Experiment("?", "b", {"a": {}}, Outcome("loss", higher_is_better=True), (0,)).to_json()
    for new in ("same", "directions"):
        del plain[new]
    assert experiment_from_json(plain).outcome.higher_is_better is True
    plain["outcome"]["higher_is_better"] = None
    with pytest.raises(UserError, match="outcome.higher_is_better is missing"):
        experiment_from_json(plain)


def test_older_files_know_the_worst_values_only():
    older = Experiment("?", "b", {"a": {}}, Outcome("loss", higher_is_better=False), (0,)).to_json()
    del older["ranges"]
    older |= {"worst": {"accuracy": 0.0, "cost": 2.0}, "directions": {"accuracy": True, "cost": 0}}
    assert experiment_from_json(older).ranges == {"accuracy": (0.0, None), "cost": (None, 2.0)}


def test_measures_of_heads_have_no_direction():
    config = small.recall(interpret__measures=tuple(MEASURES))
    assert {metric_directions(config)[name] for name in MEASURES} == {None}
    assert run_id(load_config(small.BASE)) != run_id(config)
