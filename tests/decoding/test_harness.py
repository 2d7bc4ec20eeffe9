"""Answers to lm-eval against the model itself, and through the package if it is installed."""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from research.decoding.harness import (
    Reader,
    adapter,
    continuation_log_probs,
    encoded_pair,
    rolling_pairs,
    text_log_probs,
    writing,
    written,
)
from research.decoding.sampling import Sampling
from research.decoding.streaming import streaming
from research.errors import UserError
from research.models.registry import make_model
from research.tasks.text.tokenizer import characters
from tests import small
from tests.commands import run_cases
from tests.compiled import compiled
from tests.random_runs import write_run

ALPHABET = "\n abcdefgh.?"
LENGTH = 24
PREFIX = 0
GREEDY = {"until": [], "max_gen_toks": 9}


@pytest.fixture(scope="module")
def reader():
    model = make_model(small.recall().model, len(ALPHABET), LENGTH)
    params = compiled(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    params = jax.tree.map(lambda a: jnp.asarray(5 * a), params)
    return Reader(model, params, characters(ALPHABET), PREFIX)


@functools.cache
def applied(model):
    return compiled(model.apply)


def log_p_after(reader, tokens):
    """Returns log p of the token after each of some tokens, (T, V)."""
    padded = jnp.asarray([*tokens, *[0] * (LENGTH - len(tokens))])[None]
    logits = applied(reader.model)({"params": reader.params}, padded)[0]
    return log_softmax(np.asarray(logits[0], np.float64), axis=-1)[: len(tokens)]


def greedy(reader, tokens, number):
    """Returns the text that greedy decoding writes, each token by a pass over all before."""
    tokens = list(tokens)
    for _ in range(number):
        tokens.append(int(log_p_after(reader, tokens)[-1].argmax()))
    return reader.tokenizer.decode(tokens[len(tokens) - number :])


def test_continuations_have_the_probability_that_the_model_says(reader):
    own = greedy(reader, reader.tokenizer.encode("abba"), 4)
    requests = [
        ("abba", own),
        ("abba", own[:-1] + "?"),
        ("", "bad"),
        ("b" * 40, " cab"),
        ("a ", "b"),
    ]
    found = continuation_log_probs(reader, requests)
    for (context, continuation), (log_prob, is_greedy) in zip(requests, found, strict=True):
        tokens = reader.tokenizer.encode(context + continuation).tolist()
        number = len(continuation) + (context == "a ")  # the space is predicted, too
        tokens = ([PREFIX] * (not context) + tokens)[-(LENGTH + 1) :]
        log_p = log_p_after(reader, tokens[:-1])[-number:]
        assert log_prob == pytest.approx(log_p[range(number), tokens[-number:]].sum(), rel=1e-4)
        assert is_greedy == (log_p.argmax(-1).tolist() == tokens[-number:])
    assert found[0][1] and not found[1][1]


def test_pairs_are_split_where_the_context_ends(reader):
    encode = lambda text: reader.tokenizer.encode(text).tolist()  # noqa: E731
    assert encoded_pair(reader, "ab", " c") == (encode("ab"), encode(" c"))
    assert encoded_pair(reader, "ab \n", "c") == (encode("ab"), encode(" \nc"))
    assert encoded_pair(reader, "", "ab") == ([PREFIX], encode("ab"))
    # A continuation that begins with the prefix, the end of a line, is predicted from there on.
    assert encoded_pair(reader, "", "\nab") == ([PREFIX], encode("ab"))


def test_whole_texts_are_read_in_windows(reader):
    texts = ["abcab.", "", "bad cab? " * 8]
    found = text_log_probs(reader, texts)
    assert found[1] == 0
    for text, log_prob in zip(texts, found, strict=True):
        tokens = reader.tokenizer.encode(text).tolist()
        total = 0.0
        for start in range(0, len(tokens), LENGTH):
            # The first window follows the prefix; the last one is as full as the others.
            stop = min(start + LENGTH, len(tokens))
            window = [PREFIX, *tokens][max(0, stop - LENGTH) : stop]
            log_p = log_p_after(reader, window)[-(stop - start) :]
            total += log_p[range(stop - start), tokens[start:stop]].sum()
        assert log_prob == pytest.approx(total, rel=1e-4)


def test_a_rolling_cache_reads_whole_texts_at_once(reader):
    wide = reader._replace(model=streaming(reader.model, LENGTH, 0), streams=True)
    (found,) = text_log_probs(wide, ["bad cab? bee."])
    assert found == pytest.approx(text_log_probs(reader, ["bad cab? bee."])[0], rel=1e-4)
    long = "bad cab? " * 6
    ((log_prob, _),) = continuation_log_probs(wide, [("b", long)])
    assert np.isfinite(log_prob)


def test_what_is_written_is_greedy_and_ends(reader):
    contexts = ["abba", "cede", "bad", "f" * 40, ""]
    texts = written(reader, [(context, GREEDY) for context in contexts])
    for context, text in zip(contexts, texts, strict=True):
        tokens = reader.tokenizer.encode(context).tolist() or [PREFIX]
        assert text == greedy(reader, tokens[-(LENGTH - 9) :], 9)
    until = texts[0][4:6]
    (cut,) = written(reader, [("abba", {"until": until, "max_gen_toks": 9})])
    assert cut == texts[0].split(until)[0]
    end = reader.tokenizer.encode(texts[0][3]).tolist()
    (ended,) = written(reader._replace(ends=end), [("abba", GREEDY)])
    assert ended == texts[0].split(texts[0][3])[0]


def test_settings_of_writing():
    assert writing({}, 24) == writing({"do_sample": False, "temperature": 0.7}, 24)
    assert writing({}, 24).tokens == 12 and writing({}, 0).tokens == 256
    own = writing({"until": "\n", "max_new_tokens": 3, "temperature": 0.7, "top_k": 5}, 24)
    assert own == (("\n",), 3, Sampling(0.7, 5, 1.0))
    assert writing({"do_sample": True}, 24).sampling.temperature == 1
    with pytest.raises(UserError, match="setting='num_beams' is unknown"):
        writing({"num_beams": 4}, 24)
    with pytest.raises(UserError, match="max_gen_toks=24 must be less than the 24"):
        writing({"max_gen_toks": 24}, 24)


def test_windows_are_those_of_lm_eval():
    utils = pytest.importorskip("lm_eval.utils")
    for number in (0, 1, 5, 6, 7, 12, 13, 17):
        tokens = list(range(100, 100 + number))
        theirs = map(
            utils.make_disjoint_window, utils.get_rolling_token_windows(tokens, PREFIX, 6, 1)
        )
        assert rolling_pairs(tokens, PREFIX, 6) == list(theirs)


def test_pairs_are_those_of_lm_eval(reader):
    model = pytest.importorskip("lm_eval.api.model")

    class Theirs(model.TemplateLM):
        eot_token_id = PREFIX
        _loglikelihood_tokens = loglikelihood_rolling = generate_until = None

        def tok_encode(self, string, add_special_tokens=None, **_):
            return reader.tokenizer.encode(string).tolist()

    for context, continuation in (("ab", " c"), ("ab \n", "c?"), ("a b. ", " b"), ("c", "d")):
        theirs = Theirs()._encode_pair(context, continuation)
        assert encoded_pair(reader, context, continuation) == theirs


CHOICES = """task: mine
custom_dataset: !function docs.choices
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
PERPLEXITY = """task: whole
custom_dataset: !function docs.choices
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: byte_perplexity}]
"""
WRITTEN = """task: written
custom_dataset: !function docs.choices
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{greedy}}"
generation_kwargs: {until: ["?"], max_gen_toks: 6}
metric_list: [{metric: exact_match}]
"""
DOCS = """import json
from pathlib import Path

from datasets import Dataset, DatasetDict


def choices(**_):
    rows = json.loads((Path(__file__).parent / "rows.json").read_text())
    return DatasetDict({"test": Dataset.from_list(rows)})
"""


def write_tasks(folder, reader):
    """Writes three tasks over five questions: choices, perplexity, and what greedy writes."""
    folder.mkdir(parents=True)
    (folder / "docs.py").write_text(DOCS)
    for name, task in (("mine", CHOICES), ("whole", PERPLEXITY), ("written", WRITTEN)):
        (folder / f"{name}.yaml").write_text(task)
    rows = []
    for question in ("abba", "bead", "cab. bad", "deed?", "face"):
        text = greedy(reader, reader.tokenizer.encode(question), 6).split("?")[0]
        choices = [" a", " bad", " cab."]
        rows.append({"question": question, "choices": choices, "answer": 1, "greedy": text})
    (folder / "rows.json").write_text(json.dumps(rows))
    return rows


@pytest.mark.slow
def test_lm_eval_gets_the_same(reader, tmp_path):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    rows = write_tasks(tmp_path / "tasks", reader)
    found = lm_eval.simple_evaluate(
        model=adapter(reader),
        tasks=["mine", "whole", "written"],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        bootstrap_iters=0,
    )["results"]
    scores = [
        [
            p
            for p, _ in continuation_log_probs(
                reader, [(row["question"], c) for c in row["choices"]]
            )
        ]
        for row in rows
    ]
    assert found["mine"]["acc,none"] == np.mean([np.argmax(s) == 1 for s in scores])
    nats = -sum(text_log_probs(reader, [row["question"] for row in rows]))
    perplexity = np.exp(nats / sum(len(row["question"]) for row in rows))
    assert found["whole"]["byte_perplexity,none"] == pytest.approx(perplexity)
    assert found["written"]["exact_match,none"] == 1


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("harness")
    (home / "text.txt").write_text((ALPHABET + "abcab fed. bad? ") * 60)
    write_run(home / "run", small.text(home / "text.txt", task__length=24, model__num_layers=1))
    return home


@pytest.mark.slow
def test_the_command(home, reader):
    pytest.importorskip("lm_eval")
    write_tasks(home / "tasks", reader)
    given = [f"--workdir={home}/run", f"--include_path={home}/tasks"]
    done, wrong = run_cases(
        "research.lm_evaluation", [[*given, "--tasks=mine,whole"], [*given, "--tasks=mien"]]
    )
    assert done.code == 0, done.err
    header, *lines = (line.split("\t") for line in done.out.splitlines())
    assert header == ["task", "metric", "value", "stderr"]
    assert [line[:2] for line in lines] == [
        ["mine", "acc"], ["mine", "acc_norm"], ["whole", "byte_perplexity"],
    ]  # fmt: skip
    content = json.loads((home / "run" / "lm_evaluation.json").read_text())
    assert content["results"][0]["value"] == pytest.approx(float(lines[0][2]), rel=1e-4)
    assert wrong.code == 2 and "--tasks='mien' is unknown. Did you mean 'mine'" in wrong.err


def test_without_the_package_it_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(UserError, match="lm-eval, which is not installed: pip install"):
        adapter(None)
