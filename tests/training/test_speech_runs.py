"""Training on speech: every kind of objective is trained, decoded and scored."""

import functools

import jax
import numpy as np
import pytest

from research.decoding.decode import decode_all
from research.decoding.search import Search
from research.errors import UserError
from research.runs.store import read_result
from research.tasks.speech.recognition_scores import RATES, error_rates
from research.training.loop import train_population
from research.training.preemption import Preempted
from research.training.program import make_program
from research.training.runs import load_best_params
from research.training.scores import SPEED
from research.training.step import make_evaluate
from research.training.validation import check_config
from tests import small
from tests.runs import best_of, signal_at, without_time

OBJECTIVES = {
    "attention": {"model__ctc_weight": 0.0},
    # One bucket is enough: the programs of several are those of test_seq2seq.py.
    "joint": {"decoding__beam": 2, "decoding__ctc_weight": 0.4, "task__buckets": 1},
    "ctc": {"model__ctc_weight": 1.0, "task__buckets": 1},
}
READING = {"diagonality", "entropy", "monotonicity", "on_span", "coverage"}


def train(config, run):
    train_population([config], [run], run)
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns the run of an objective, which is trained when it is first asked for."""
    home = tmp_path_factory.mktemp("speech")
    return functools.cache(lambda name: train(small.speech(**OBJECTIVES[name]), home / name))


# Fast is the objective that has everything of the other two. What their evaluations have is asked
# below; tests/decoding/test_joint.py and tests/test_transcribe.py decode with CTC alone.
FAST = "joint"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == FAST else pytest.mark.slow) for n in OBJECTIVES]
)
def test_a_run_is_scored(trained, name):
    run = trained(name)
    result = read_result(run)
    assert result["status"] == "completed"
    for metrics in result["best"].values():
        assert set(RATES) | {SPEED, "error_rate", "loss"} <= metrics.keys()
        assert metrics["wer"] == pytest.approx(
            metrics["substitutions"] + metrics["insertions"] + metrics["deletions"]
        )
        assert (READING <= metrics.keys()) == (name != "ctc")
        assert ("ctc_loss" in metrics) == (name != "attention")
        assert len(metrics["wer_by_words"]) == len(result["slices"]["wer_by_words"]) == 3
    for split in ("validation", "test"):
        found, wanted = (
            (run / f"{split}.{kind}.txt").read_text().split("\n")[:-1]
            for kind in ("hypotheses", "references")
        )
        assert error_rates(wanted, found)["wer"] == result["best"][split]["wer"]
    # Validation has no string of three, the test none of two.
    labels = result["slices"]["wer_by_words"]
    assert labels == ["1", "2", "3"]
    validation, test = (result["best"][s]["wer_by_words"] for s in ("validation", "test"))
    assert [v is None or np.isnan(v) for v in validation] == [False, False, True]
    assert [v is None or np.isnan(v) for v in test] == [False, True, False]


@pytest.mark.parametrize("name", ["attention", "ctc"])
def test_one_objective_has_no_metric_of_the_other(name):
    program = make_program(small.speech(**OBJECTIVES[name]))
    evaluate = make_evaluate(program.task, program.model, "validation", 1, None, program.measures)
    found = jax.eval_shape(evaluate, program.state.params, program.task.data).sums
    assert {"loss", "error_rate"} <= found.keys()
    assert ("ctc_loss" in found) == (name == "ctc")
    assert ("accuracy" in found) == (name == "attention"), "of a speller"


def test_what_is_logged_while_training_is_greedy_decoding(trained):
    """By attention alone: the same rate as of validation that is decoded so."""
    run = trained("joint")
    metrics = read_result(run)["best"]["validation"]
    program = make_program(small.speech(**OBJECTIVES["joint"]))
    params, _ = load_best_params(run)
    sources = program.task.sources("validation")
    # Training decodes twice the tokens of a bucket's longest transcript with its end, no more.
    found = decode_all(
        program.model,
        params,
        sources["source"],
        sources["source_length"],
        Search(),
        lengths=(sources["source"].shape[1],),
    )
    encode = program.task.tokenizer.encode
    wanted = [encode(text).tolist() for text in program.task.references["validation"]]
    room = 2 * (max(map(len, wanted)) + 1)
    cut = [f[0].tokens[:room] for f in found]
    texts, references = ([" ".join(map(str, row)) for row in rows] for rows in (cut, wanted))
    assert metrics["error_rate"] == pytest.approx(error_rates(references, texts)["wer"])
    assert metrics["error_rate"] > 0


def test_a_stopped_run_ends_as_if_nothing_had_happened(trained, tmp_path, monkeypatch):
    whole = trained("joint")
    signal_at(monkeypatch, [30])
    config = small.speech(**OBJECTIVES["joint"])
    with pytest.raises(Preempted, match="saved at step 30"):
        train(config, tmp_path)
    train(config, tmp_path)
    assert without_speed(tmp_path) == without_speed(whole)
    jax.tree.map(np.testing.assert_array_equal, best_of(tmp_path)[0], best_of(whole)[0])


def without_speed(run):
    result, rows = without_time(run)
    for metrics in result["best"].values():
        metrics.pop(SPEED)
    return repr(result), repr(rows)


@pytest.mark.parametrize(
    ("deltas", "parts"),
    [
        ({"model__name": "recurrent"}, ("model.name='recurrent'", "speech")),
        ({"model__ctc_weight": 0.0, "decoding__ctc_weight": 0.3}, ("ctc_weight=0.3", "CTC")),
        ({"model__ctc_weight": 1.5}, ("model.ctc_weight=1.5",)),
        ({"model__levels": 4}, ("model.levels=4",)),
        ({"model__filter_conv": 7}, ("model.filter_conv=7", "does not read it")),
        ({"model__score": "dot"}, ("model.score='dot'", "does not read it")),
        (
            {"model__speller": "transformer", "model__attention": "dot"},
            ("model.attention='dot'", "does not read it"),
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_training(deltas, parts):
    with pytest.raises(UserError) as error:
        check_config(small.speech(**deltas))
    assert all(part in str(error.value) for part in parts)
