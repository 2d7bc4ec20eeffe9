"""Lines of log-probabilities against the model itself."""

import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from research.decoding.continuation import continuation
from research.decoding.sampling import Sampling
from research.inspect.inputs import generation_subject
from research.inspect.inspecting import inspect
from research.inspect.token_probabilities import open_streaming, show_lines, show_scores
from research.models.registry import make_model
from research.tasks.text.tokenizer import load_tokenizer
from research.training.runs import load_best_params, load_run_config
from tests import small
from tests.commands import run_cases
from tests.random_runs import write_run

TEXT = "A rose\tby any other\nname “would” smell as sweet.\n"
STREAMED = ["--window=6", "--sinks=2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with random weights."""
    tmp = tmp_path_factory.mktemp("generate")
    (tmp / "text.txt").write_text(TEXT * 60, encoding="utf-8")
    write_run(tmp / "run", small.text(tmp / "text.txt", task__length=16, model__num_layers=1))
    return tmp / "run"


@pytest.fixture(scope="module")
def outcomes(run):
    workdir = f"--workdir={run}"
    cases = {
        "streamed": [workdir, f"--score={TEXT}", "--logprobs=json", *STREAMED],
        "long": [workdir, "--tokens=50", "--seed=3", *STREAMED],
        "attention": [
            workdir,
            "--prompt=A ro",
            "--tokens=8",
            "--logprobs=json",
            f"--attention={run}/attention.html",
        ],
        "attention of samples": [workdir, "--samples=2", "--attention=a.html"],
        "attention of a stream": [workdir, "--attention=a.html", *STREAMED],
        "no folder": [workdir, "--attention=none/a.html"],
        "too long": [workdir, f"--score={TEXT}"],
        "too short": [workdir, "--score=A"],
        "sinks alone": [workdir, "--sinks=2"],
        "too many sinks": [workdir, "--window=4", "--sinks=4"],
    }
    return dict(zip(cases, run_cases("research.generate", list(cases.values())), strict=True))


def own_log_probs(run, text):
    """Returns tokens and log p (T - 1, V) of a text that fits, by one forward pass."""
    config, tokenizer = load_run_config(run), load_tokenizer(run)
    params, _ = load_best_params(run)
    model = make_model(config.model, tokenizer.vocab_size, config.task.length)
    tokens = np.asarray(tokenizer.encode(text))
    logits, _ = jax.jit(model.apply)({"params": params}, tokens[None])
    return tokens, log_softmax(np.asarray(logits[0], np.float64), axis=-1)[:-1]


def test_lines_are_what_the_model_says(run, capsys):
    trained_run, model = open_streaming(run, 0, 0)
    tokenizer, params = trained_run.tokenizer, trained_run.params
    prompt = np.tile(tokenizer.encode("A rose"), (2, 1))
    greedy = Sampling(temperature=0.0)
    chunks = list(continuation(model, params, prompt, 8, greedy, jax.random.key(0)))
    show_lines(tokenizer, chunks, "tsv")
    header, *lines = capsys.readouterr().out.splitlines()
    show_lines(tokenizer, chunks, "json")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert header.split("\t") == ["sample", "token", "log_prob", "entropy", "rank"]
    assert len(rows) == len(lines) == 2 * 8
    for line, row in zip(lines, rows, strict=True):
        sample, token, log_prob, entropy, rank = line.split("\t")
        assert (int(sample), json.loads(token), int(rank)) == tuple(
            row[k] for k in ("sample", "token", "rank")
        )
        assert float(log_prob) == pytest.approx(row["log_prob"], abs=1e-6)
        assert float(entropy) == pytest.approx(row["entropy"], abs=1e-6)
    written = "".join(row["token"] for row in rows if row["sample"] == 1)
    assert len(written) == 8
    tokens, log_p = own_log_probs(run, "A rose" + written)
    for t, row in enumerate(rows[:8], 5):
        assert row["rank"] == 0, "the most probable token each time"
        assert row["log_prob"] == pytest.approx(log_p[t, tokens[t + 1]], abs=1e-4)
        assert row["entropy"] == pytest.approx(-(np.exp(log_p[t]) * log_p[t]).sum(), abs=1e-4)


def test_a_text_is_scored(run, capsys):
    trained_run, model = open_streaming(run, 0, 0)
    options = SimpleNamespace(score=TEXT[:16], window=0, logprobs="")
    show_scores(trained_run.tokenizer, model, trained_run.params, options)
    printed = capsys.readouterr()
    lines = [line.split("\t") for line in printed.out.splitlines()[1:]]
    assert "".join(json.loads(line[1]) for line in lines) == TEXT[1:16]
    tokens, log_p = own_log_probs(run, TEXT[:16])
    own = log_p[np.arange(15), tokens[1:]]
    np.testing.assert_allclose([float(line[2]) for line in lines], own, atol=1e-4)
    ranks = (log_p > own[:, None]).sum(-1)
    assert [int(line[4]) for line in lines] == ranks.tolist()
    assert f"{-own.mean():.4f} nats per token" in printed.err


def test_a_page_shows_the_attention_with_which_it_was_written(run, outcomes):
    outcome = outcomes["attention"]
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    written = "".join(row["token"] for row in rows)
    page = (run / "attention.html").read_text(encoding="utf-8")
    assert outcome.code == 0 and str(run / "attention.html") in outcome.err and len(written) == 8
    assert "Written: the last 8 tokens." in page
    trained_run, _ = open_streaming(run, 0, 0)
    encode = trained_run.tokenizer.encode
    shown = inspect(trained_run, generation_subject(trained_run, encode("A ro"), encode(written)))
    assert "".join(shown.tokens.input) == "A ro" + written
    # Written token by token from a cache, read anew at once: the same probabilities.
    read = shown.tokens.input_numbers["log-probability"][4:]
    np.testing.assert_allclose(read, [row["log_prob"] for row in rows], atol=1e-4)
    (map_, _) = shown.maps
    np.testing.assert_allclose(np.triu(map_.weights, 1), 0)
    np.testing.assert_allclose(map_.weights.sum(-1), 1, atol=1e-5)


def test_more_than_fits_is_shown_from_its_end(run):
    trained_run, _ = open_streaming(run, 0, 0)
    encode = trained_run.tokenizer.encode
    subject = generation_subject(trained_run, encode(TEXT[:9]), encode(TEXT[9:30]))
    assert "".join(subject.input) == TEXT[30 - 16 : 30]
    assert subject.lines[0] == "Written: the last 16 tokens."
    assert "here the last 16 tokens are one sequence" in subject.lines[1]


def test_a_rolling_cache_takes_any_length(outcomes):
    found = outcomes
    rows = [json.loads(line) for line in found["streamed"].out.splitlines()]
    assert "".join(row["token"] for row in rows) == TEXT[1:]
    assert all(math.isfinite(row["log_prob"]) and row["log_prob"] < 0 for row in rows)
    assert found["long"].code == 0 and len(found["long"].out) == len("\n") + 50 + len("\n")


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("too long", "has room for 17; a rolling cache takes them all: --window=16 --sinks=4"),
        ("too short", "--score takes at least two tokens"),
        ("attention of samples", "--attention shows one sample, not 2"),
        ("attention of a stream", "which a rolling cache (--window) does not"),
        ("no folder", "--attention=none/a.html: there is no such directory"),
        ("sinks alone", "--sinks=2 are of a rolling cache; give its size with --window"),
        ("too many sinks", "--sinks=4 must be at least 0 and less than --window=4"),
    ],
)
def test_mistakes_are_one_line(outcomes, case, message):
    outcome = outcomes[case]
    assert outcome.code == 2 and message in outcome.err
    assert outcome.err.count("\n") == 1 and not outcome.out
