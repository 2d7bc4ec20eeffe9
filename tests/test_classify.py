"""The command that classifies, on a run whose weights are known."""

import functools
import io
import os
import pty
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.configuration import to_plain
from research.inspect import classified_lines
from research.inspect.classified_lines import show
from research.interpret.classification import Classified, TextClassifier, classify
from research.models.registry import make_model
from research.runs.store import CONFIG, write_json, write_text
from research.tasks.text.tokenizer import CORPUS, FILE, digest_of, open_words
from research.training.loop import POPULATION
from research.training.records.checkpoints import Checkpoints
from research.training.step import Best, State
from tests import small
from tests.commands import ROOT, run_cases

WORDS = ["awful", "film", "lovely", "the"]
LABELS = ["bad [red]", "good"]
# What each token says for the second label; padding and the unknown word nothing.
SAYS = {"awful": -2.0, "film": 0.25, "lovely": 1.5, "the": 0.0}
LENGTH = 6


def config_of(pooling):
    deltas = {"model__body": "none", "model__pooling": pooling, "task__length": LENGTH}
    return small.sentiment("texts/{split}.tsv", model__width=1, **deltas)


def write_run(run, pooling):
    """What a finished run leaves whose logit is the mean of what its words say, twice."""
    tokenizer = open_words(WORDS)
    model = make_model(config_of(pooling).model, tokenizer.vocab_size, LENGTH, classes=2)
    says = np.array([[0.0], [0.0]] + [[SAYS[word]] for word in WORDS], np.float32)
    params = {
        "embed": {"embedding": says},
        "head": np.array([[0.0, 2.0]], np.float32),
        "head_bias": np.zeros(2, np.float32),
    }
    if pooling == "attention":
        pool = {"matrix": np.ones((1, 1)), "matrix_bias": np.zeros(1), "vector": np.ones(1)}
        params["pool"] = jax.tree.map(lambda p: p.astype(np.float32), pool)
    stacked = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], params)
    best = Best(stacked, jnp.zeros(1), jnp.full(1, 7))
    with Checkpoints(run / "checkpoints", 1) as checkpoints:
        checkpoints.save(7, State(stacked, {"count": jnp.zeros(1)}, -jnp.ones(1), best))
    write_json(run / POPULATION, {"checkpoints": "checkpoints", "member": 0})
    write_json(run / CONFIG, to_plain(config_of(pooling)))
    write_text(run / FILE, tokenizer.to_json())
    write_json(run / CORPUS, {"labels": LABELS, "tokenizer": digest_of(tokenizer.to_json())})
    return TextClassifier(model, params, tokenizer, LABELS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "run", "mean")
    write_run(folder / "attention", "attention")
    (folder / "texts.txt").write_text("a lovely film\n" + "the " * 9 + "\n")
    (folder / "gap.txt").write_text("lovely\n\nfilm\n")
    (folder / "latin.txt").write_bytes("läuft\n".encode("latin-1"))
    other = folder / "other"
    other.mkdir()
    write_json(other / CONFIG, to_plain(small.recall()))
    for name in ("labels", "begun"):
        shutil.copytree(folder / "run", folder / name)
    known = {"labels": ["a", "b", "c"]}
    write_json(folder / "labels" / CORPUS, known)
    shutil.rmtree(folder / "begun" / "checkpoints")
    return folder


@pytest.fixture(scope="module")
def outcomes(folder):
    run, attention = f"--workdir={folder}/run", f"--workdir={folder}/attention"
    cases = {
        "texts": [run, "Lovely film", "awful, awful\x1b[31m"],
        "file": [run, f"--input={folder}/texts.txt"],
        "attention": [attention, "--by=attention", "lovely film"],
        "integrated": [run, "--by=integrated_gradients", "lovely film"],
        "product": [run, "--by=gradient_times_input", "lovely film"],
        "no attention": [run, "--by=attention", "lovely"],
        "method": [run, "--by=leave_one_in", "lovely"],
        "empty": [run, "lovely", " \t"],
        "gap": [run, f"--input={folder}/gap.txt"],
        "latin": [run, f"--input={folder}/latin.txt"],
        "both": [run, f"--input={folder}/texts.txt", "lovely"],
        "missing": [run, f"--input={folder}/missing.txt"],
        "another task": [f"--workdir={folder}/other", "lovely"],
        "no run": [f"--workdir={folder}", "lovely"],
        "labels": [f"--workdir={folder}/labels", "lovely"],
        "begun": [f"--workdir={folder}/begun", "lovely"],
    }
    found = run_cases("research.classify", list(cases.values()))
    return dict(zip(cases, found, strict=True))


def rows(outcome):
    assert outcome.code == 0, outcome.err
    assert "best step 7" in outcome.err
    return [line.split("\t") for line in outcome.out.removesuffix("\n").split("\n")]


def test_a_line_to_each_text(outcomes):
    first, second = rows(outcomes["texts"])
    assert first[0] == "good" and first[2] == "Lovely film"
    # The mean of 1.5 and 0.25, twice: log-odds of 1.75; without a word, half of the other one's.
    assert float(first[1]) == pytest.approx(1 / (1 + np.exp(-1.75)), abs=1e-4)
    assert first[3] == "Lovely:+1.5000 film:+0.2500"
    assert second[0] == "bad [red]" and second[2] == r"awful, awful\x1b[31m"
    words = second[3].split(" ")
    assert words[0].startswith("awful:+") and words[1] == ",:+0.0000"
    assert words[3] == r"\x1b:+0.0000"


def test_files_and_long_texts(outcomes):
    (first, _) = rows(outcomes["file"])
    assert first[3].startswith("a:+0.0000 lovely:")
    assert "cut to task.length = 6 tokens: 1 texts (2)" in outcomes["file"].err


def test_other_attributions(outcomes):
    attention = rows(outcomes["attention"])[0][3].split(" ")
    weights = [float(word.split(":")[1]) for word in attention]
    scores = np.exp(np.tanh([1.5, 0.25]))
    assert weights == pytest.approx(scores / scores.sum(), abs=1e-4)
    # The model is linear: every way but attention gives what the words say.
    for case in ("integrated", "product"):
        assert rows(outcomes[case])[0][3] == "lovely:+1.5000 film:+0.2500"


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("no attention", ["--by=attention", "'mean'", "leave_one_out"]),
        ("method", ["--by='leave_one_in'", "Did you mean 'leave_one_out'"]),
        ("empty", ["text 2 is empty"]),
        ("gap", ["gap.txt, line 2 is empty"]),
        ("latin", ["latin.txt, line 1", "UTF-8"]),
        ("both", ["--input and texts"]),
        ("missing", ["missing.txt", "no such file"]),
        ("another task", ["task.name='recall'", "'sentiment'"]),
        ("no run", ["is not a run"]),
        ("labels", ["3 labels", "another run"]),
        ("begun", ["no checkpoints"]),
    ],
)
def test_mistakes_are_one_line(outcomes, case, parts):
    done = outcomes[case]
    assert done.code == 2 and done.out == "", done.err
    assert done.err.startswith("error: ") and done.err.count("\n") == 1, done.err
    for part in parts:
        assert part in done.err


def test_attributions_of_the_right_label_have_the_right_sign(tmp_path):
    classifier = write_run(tmp_path, "mean")
    found = classify(classifier, "the awful lovely awful film")
    assert found.label == "bad [red]" and found.num_truncated == 0
    assert found.pieces == ["the", "awful", "lovely", "awful", "film"]
    assert [np.sign(round(a, 4)) for a in found.attributions] == [0, 1, -1, 1, -1]


def test_markup_and_controls_are_shown_as_text(monkeypatch):
    out, make = io.StringIO(), classified_lines.Console
    terminal = functools.partial(make, file=out, force_terminal=True)
    monkeypatch.setattr(classified_lines, "Console", terminal)
    pieces = ["[bold]", "\x1b[31m", "\u202e", ":smile:", "plain"]
    show(Classified("[red]x", 0.5, pieces, [1.0, -1.0, 0.5, 0.0, 0.0], 0), "attention")
    shown = out.getvalue()
    for text in ("[red]x", "[bold]", r"\x1b[31m", r"\u202e", ":smile:"):
        assert text in shown
    assert "\x1b[31m" not in shown and "\u202e" not in shown


@pytest.mark.slow
def test_a_terminal_gets_colours(folder):
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "research.classify", f"--workdir={folder}/run", "lovely film"]
    done = subprocess.run(command, stdout=slave, stderr=subprocess.PIPE, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    shown = os.read(master, 10_000).decode()
    assert "good 85.2%" in shown and "\x1b[" in shown and "lovely +1.50" in shown
