"""Training on speech: every kind of objective is trained, decoded and scored."""

import jax
import numpy as np
import pytest

from research.ablation.store import result_of
from research.decoding.decode import decode_all
from research.decoding.search import search_of
from research.errors import UserError
from research.tasks.recognition_scores import RATES, error_rates
from research.training.loop import train_population
from research.training.preemption import Preempted
from research.training.program import make_program
from research.training.runs import load_best_of
from research.training.scores import SPEED
from tests import small
from tests.training.test_loop import best_of, signal_at, without_time

OBJECTIVES = {
    "attention": {"model__ctc_weight": 0.0},
    "joint": {"decoding__beam": 2, "decoding__ctc_weight": 0.4},
    "ctc": {"model__ctc_weight": 1.0},
}
READING = {"diagonality", "entropy", "monotonicity", "on_span", "coverage"}


def train(config, run):
    train_population([config], [run], run)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    home = tmp_path_factory.mktemp("speech")
    return {name: train(small.speech(**deltas), home / name) for name, deltas in OBJECTIVES.items()}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_run_is_scored(runs, name):
    result = result_of(runs[name])
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
            (runs[name] / f"{split}.{kind}.txt").read_text().split("\n")[:-1]
            for kind in ("hypotheses", "references")
        )
        assert error_rates(wanted, found)["wer"] == result["best"][split]["wer"]
    # Validation has no string of three, the test none of two.
    labels = result["slices"]["wer_by_words"]
    assert labels == ["1", "2", "3"]
    validation, test = (result["best"][s]["wer_by_words"] for s in ("validation", "test"))
    assert [v is None or np.isnan(v) for v in validation] == [False, False, True]
    assert [v is None or np.isnan(v) for v in test] == [False, True, False]


def test_what_is_logged_while_training_is_greedy_decoding(runs):
    """Of attention alone, whose search is greedy: the same rate as of the decoded validation."""
    metrics = result_of(runs["attention"])["best"]["validation"]
    config = small.speech(**OBJECTIVES["attention"])
    program = make_program(config)
    params, _ = load_best_of(runs["attention"])
    sources = program.task.sources("validation")
    # Training decodes twice the tokens of a bucket's longest transcript with its end, no more.
    found = decode_all(
        program.model,
        params,
        sources["source"],
        sources["source_length"],
        search_of(config),
        lengths=(sources["source"].shape[1],),
    )
    encode = program.task.tokenizer.encode
    wanted = [encode(text).tolist() for text in program.task.references["validation"]]
    cut = [f[0].tokens[: 2 * (len(w) + 1)] for f, w in zip(found, wanted, strict=True)]
    texts, references = ([" ".join(map(str, row)) for row in rows] for rows in (cut, wanted))
    assert metrics["error_rate"] == pytest.approx(error_rates(references, texts)["wer"])
    assert metrics["error_rate"] > 0


def test_a_stopped_run_ends_as_if_nothing_had_happened(runs, tmp_path, monkeypatch):
    signal_at(monkeypatch, [30])
    config = small.speech(**OBJECTIVES["joint"])
    with pytest.raises(Preempted, match="saved at step 30"):
        train(config, tmp_path)
    train(config, tmp_path)
    assert without_speed(tmp_path) == without_speed(runs["joint"])
    jax.tree.map(np.testing.assert_array_equal, best_of(tmp_path)[0], best_of(runs["joint"])[0])


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
        make_program(small.speech(**deltas))
    assert all(part in str(error.value) for part in parts)
