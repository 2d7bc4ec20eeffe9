"""The command that evaluates a run again, and streams texts through it."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from research.configuration import to_plain
from research.decoding.streaming import stream_scores, streaming
from research.runs.store import CONFIG, write_json
from research.training.evaluating import evaluate, metric_changes
from research.training.loop import train_population
from research.training.runs import load_run_config, open_run
from tests import small
from tests.commands import run_cases
from tests.random_runs import STEP, write_run

TEXT = "A rose by any other name would smell as sweet.\n" * 60
SHARDS = {
    name: np.random.default_rng(number).integers(0, 50, number).astype("<u2")
    for name, number in (("train", 200), ("val", 150))
}
STREAM = {"task__stream_sinks": (0, 2), "task__stream_window": 6, "task__stream_tokens": 60}
TINY = {"model__num_layers": 1, "train__steps": 8, "train__checkpoint_every": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    path = folder / "text.txt"
    path.write_text(TEXT)
    (folder / "long.txt").write_text(TEXT[7:200])
    (folder / "greek.txt").write_text("ῥόδον " * 100, encoding="utf-8")
    write_run(folder / "text", small.text(path, task__eval_lengths=(20,)))
    write_run(folder / "linear", small.text(path, model__mixer="linear", model__position="none"))
    write_run(folder / "learned", small.text(path, model__position="learned"))
    # Shards of another project, without a tokenizer.
    (folder / "shards").mkdir()
    for name, tokens in SHARDS.items():
        tokens.tofile(folder / "shards" / f"{name}.bin")
    shards = {"task__corpus_vocab_size": 50, "task__eval_lengths": (20,)}
    write_run(folder / "tokens", small.tokens(folder / "shards", **shards))
    write_run(folder / "latent", small.text(path, model__mixer="latent"))
    for name, config in (("recall", small.recall()), ("begun", small.text(path))):
        write_json(folder / name / CONFIG, to_plain(config))
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    """Two members of a population, and a model whose sequences are decoded: (run, result)."""
    texts = [small.text(folder / "text.txt", seed=s, **TINY, **STREAM) for s in (0, 1)]
    runs = [folder / "members" / str(s) for s in (0, 1)]
    results = train_population(texts, runs, folder / "members")
    found = {"text": (runs[1], results[1])}
    steps = dict.fromkeys(("train__steps", "train__eval_every", "train__checkpoint_every"), 2)
    pairs = small.transduction(**steps, task__test_lengths=(3,))
    (result,) = train_population([pairs], [folder / "pairs"], folder / "pairs")
    return found | {"pairs": (folder / "pairs", result)}


@pytest.fixture(scope="module")
def outcomes(folder, trained):
    streams = ["--window=6", "--sinks=2,0", "--tokens=40", "--pieces=3"]
    cases = {
        "again": [f"--workdir={trained['text'][0]}"],
        **{
            run: [f"--workdir={folder}/{run}", *streams, "--recompute", f"--out={folder}/{run}-out"]
            for run in ("text", "tokens")
        },
        "file": [
            f"--workdir={folder}/text",
            f"--input={folder}/long.txt",
            "--tokens=90",
            "--sinks=1",
        ],
        "linear": [f"--workdir={folder}/linear", "--window=6", "--tokens=40", "--sinks=0,2"],
        **{
            case: [a.replace("{}", str(folder)) for a in given]
            for case, (given, _) in WRONG.items()
        },
    }
    return dict(zip(cases, run_cases("research.evaluate", list(cases.values())), strict=True))


WORKDIR = "--workdir={}/text"
WRONG = {
    "not a text": (["--workdir={}/recall", "--window=6"], "task.name='recall'; this command takes"),
    "no run": (["--workdir={}"], "is not a run: it has no config.json"),
    "nothing saved": (["--workdir={}/begun"], "tokenizer.json"),
    "short": ([WORKDIR, "--tokens=9999"], "--tokens=9,999: the text has 282 tokens; give at most"),
    "sinks": ([WORKDIR, "--window=4"], "--sinks=4 must be at least 0 and less than --window=4"),
    "no numbers": ([WORKDIR, "--sinks=a"], "--sinks=a must be numbers from 0"),
    "window": ([WORKDIR, "--window=0"], "--window=0 must be at least 1"),
    "few tokens": ([WORKDIR, "--tokens=16"], "--tokens=16 must be more than the window of 16"),
    "recompute": (
        [WORKDIR, "--recompute", "--window=30", "--tokens=60"],
        "--recompute reads --window=30 tokens at once, and the model has room for 20",
    ),
    "position": (["--workdir={}/learned", "--tokens=40"], "model.position='learned' is added to"),
    "mixer": (["--workdir={}/latent", "--tokens=40"], "LatentAttention keeps a cache of every"),
    "split": ([WORKDIR, "--split=tset"], "--split='tset' is unknown"),
    "split of a stream": (
        [WORKDIR, "--split=test", "--tokens=40"],
        "--split='test' is unknown. Allowed: train, validation",
    ),
    "both": ([WORKDIR, "--split=train", "--input={}/long.txt"], "--input and --split are both"),
    "no file": ([WORKDIR, "--input={}/none.txt"], "none.txt: there is no such file"),
    "no tokenizer": (
        ["--workdir={}/tokens", "--input={}/long.txt", "--tokens=40"],
        "long.txt needs a tokenizer, and the shards that",
    ),
    "alphabet": ([WORKDIR, "--input={}/greek.txt", "--tokens=40"], "that the model never saw"),
    "out": ([WORKDIR, "--tokens=40", "--out={}/text.txt"], "text.txt is no directory"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_one_line(outcomes, case):
    outcome = outcomes[case]
    *before, error = outcome.err.splitlines()
    assert outcome.code == 2 and not outcome.out
    assert error.startswith("error: ") and WRONG[case][1] in error
    assert all(line.startswith("best step") for line in before)


def test_metrics_are_those_of_the_result(outcomes, trained):
    """Of the second member, whose streams are scored as well."""
    outcome, (_, result) = outcomes["again"], trained["text"]
    assert outcome.code == 0 and outcome.err.endswith("the same as in result.json\n")
    header, *lines = outcome.out.splitlines()
    assert header == "split\tmetric\tvalue"
    printed = {tuple(line.split("\t")[:2]): float(line.split("\t")[2]) for line in lines}
    best = result["best"]["validation"]
    assert best["stream_loss"] != best["stream_loss_by_sinks"][0]
    for metric in ("loss", "bits_per_character", "stream_loss", "stream_perplexity_ratio"):
        assert printed["validation", metric] == pytest.approx(best[metric], rel=1e-5)
    for sinks, loss in zip(("0", "2"), best["stream_loss_by_sinks"], strict=True):
        name = f"stream_loss_by_sinks[{sinks}]"
        assert printed["validation", name] == pytest.approx(loss, rel=1e-5)
    of_positions = result["slices"]["loss_by_position"]
    for label, loss in zip(of_positions, best["loss_by_position"], strict=True):
        name = f"loss_by_position[{label}]"
        assert printed["validation", name] == pytest.approx(loss, rel=1e-5)


def test_a_run_streams_when_it_ends(trained):
    _, result = trained["text"]
    assert result["slices"]["stream_loss_by_sinks"] == ["0", "2"]
    found = result["best"]["validation"]
    without, kept = found["stream_loss_by_sinks"]
    assert without != kept == found["stream_loss"]
    assert found["stream_perplexity_ratio"] == pytest.approx(math.exp(without - kept))


def test_what_is_decoded_is_evaluated_again_and_nothing_is_written(trained):
    run, result = trained["pairs"]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    opened = open_run(run, load_run_config(run))
    found = evaluate(opened)
    assert found.metrics.keys() == {"validation", "test"}
    assert {"exact_match", "loss"} <= found.metrics["test"].keys()
    assert not metric_changes(found.metrics, result)
    one = evaluate(opened, "test")
    assert one.metrics.keys() == {"test"} and not metric_changes(one.metrics, result)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    moved = opened._replace(params={**opened.params, "embedding": opened.params["embedding"] + 1})
    assert any(
        "test loss was" in text for text in metric_changes(evaluate(moved, "test").metrics, result)
    )


def test_only_what_differs_is_told():
    old = {"best": {"test": {"loss": 1.0, "by": [1.0, None], "decoded_tokens_per_second": 5.0}}}
    assert not metric_changes({"test": {"loss": 1.0 + 1e-6, "by": [1.0, math.nan]}}, old)
    assert metric_changes({"test": {"loss": 1.1, "by": [1.0, 2.0], "new": 0.5}}, old) == [
        "test by was [1.0, None], is [1.0, 2.0]",
        "test loss was 1.0, is 1.1",
        "test new was None, is 0.5",
    ]


def held_out(run, opened):
    """Returns the tokens of the validation split."""
    if run == "text":
        return opened.tokenizer.encode(TEXT[int(0.9 * len(TEXT)) :])
    return SHARDS["val"].astype(np.int32)


@pytest.mark.parametrize("run", ["text", "tokens"])
def test_a_stream_is_that_of_the_model(outcomes, folder, run):
    outcome = outcomes[run]
    assert outcome.code == 0, outcome.err
    out = folder / f"{run}-out"
    content = json.loads((out / "stream.json").read_text())
    assert (out / "stream.png").read_bytes().startswith(b"\x89PNG")
    assert content["config"]["task"]["eval_lengths"] == [20] and content["best_step"] == STEP
    assert content["environment"]["versions"].keys() >= {"jax", "python"}
    curves = {curve["name"]: curve for curve in content["curves"]}
    assert list(curves) == ["0 sinks", "2 sinks", "recomputed", "dense"]

    opened = open_run(folder / run, load_run_config(folder / run))
    text = held_out(run, opened)
    starts = [int(s) for s in np.linspace(0, len(text) - 41, 3)]
    tokens = np.stack([text[s : s + 41] for s in starts])
    for name, sinks in (("0 sinks", 0), ("2 sinks", 2)):
        model = streaming(opened.model, 6, sinks)
        losses = -np.asarray(stream_scores(model, opened.params, tokens).log_prob).mean(0)
        curve = curves[name]
        assert (curve["first"], curve["last"]) == (7, 40)
        assert curve["loss"] == pytest.approx(losses[6:].mean(), rel=1e-4)
        means = [losses[low - 1 : high].mean() for low, high in content["positions"]]
        assert curve["loss_by_position"] == pytest.approx(means, rel=1e-4)
    longer = dataclasses.replace(opened.model.config, length=20)
    apply = jax.jit(type(opened.model)(longer).apply)
    logits = apply({"params": opened.params}, tokens[:, :20])[0]
    log_p = np.asarray(logits) - np.log(np.exp(np.asarray(logits)).sum(-1, keepdims=True))
    own = -np.take_along_axis(log_p, tokens[:, 1:21, None], -1).mean()
    assert curves["dense"]["loss"] == pytest.approx(own, rel=1e-4)
    assert (curves["dense"]["last"], curves["dense"]["ratio"]) == (20, None)


def test_the_table_has_a_row_for_each_way(outcomes, folder):
    header, *rows = outcomes["text"].out.splitlines()
    assert header.split() == ["positions", "loss", "perplexity", "ratio"]
    assert [row[:10].strip() for row in rows] == ["0 sinks", "2 sinks", "recomputed", "dense"]
    ratios = [float(row.split()[-1]) for row in rows[:3]]
    assert min(ratios) == 1.0 and max(ratios) > 1.0
    content = json.loads((folder / "text-out" / "stream.json").read_text())
    for row, curve in zip(rows, content["curves"], strict=True):
        assert f"{curve['first']}-{curve['last']}  " in row
        assert f"{curve['loss']:.4f}" in row and f"{curve['perplexity']:.3f}" in row


def test_a_file_is_streamed_through_the_run_s_own_length(outcomes, folder):
    outcome = outcomes["file"]
    assert outcome.code == 0, outcome.err
    content = json.loads((folder / "text" / "stream.json").read_text())
    assert content["text"] == f"{folder}/long.txt" and content["pieces"] == 2
    assert content["window"] == 16 and [c["sinks"] for c in content["curves"]] == [1, -1]


def test_a_recurrent_state_streams_once(outcomes):
    outcome = outcomes["linear"]
    assert outcome.code == 0, outcome.err
    names = [row[:15].strip() for row in outcome.out.splitlines()[1:]]
    assert names == ["recurrent state", "dense"]
