"""The command that translates, on a run whose weights are random."""

import os
import pty
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.configuration import apply_deltas, load_config, to_plain
from research.decoding.sampling import Sampling
from research.decoding.search import Search
from research.decoding.translation import Translator, as_lines, read_lines, translate
from research.errors import UserError
from research.models.registry import make_model
from research.runs.store import CONFIG, write_json, write_text
from research.tasks.text.tokenizer import CORPUS, FILE, SENTENCE, digest_of, make_tokenizer
from research.training.loop import POPULATION
from research.training.records.checkpoints import Checkpoints
from research.training.step import Best, State
from tests import small
from tests.commands import ROOT, run_cases
from tests.decoding.toy import make_toy

SENTENCES = ["Ein Hund läuft.", "Zwei kleine Hunde.", "Die Frau schläft im Haus."]
LENGTH = 24
MODEL = {
    "task.name": "translation",
    "task.length": LENGTH,
    "model.name": "recurrent",
    "model.width": 8,
    "model.num_layers": 1,
    "model.num_heads": 1,
    "model.init_stddev": 0.5,
    "model.embedding_stddev": 1.0,
}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer("bpe", SENTENCES * 20, SENTENCE, vocab_size=300)


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory, tokenizer):
    """What a finished run leaves, with the weights it would start from."""
    run = tmp_path_factory.mktemp("runs") / "run"
    config = apply_deltas(load_config(small.BASE), MODEL | {"task.target_language": "zh"})
    model = make_model(config.model, tokenizer.vocab_size, LENGTH)
    tokens = jnp.ones((1, 2), jnp.int32)
    batch = {"source": tokens, "source_length": jnp.array([2]), "inputs": tokens}
    params = jax.jit(lambda key: model.init(key, batch, method="forward"))(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf[None], params["params"])
    best = Best(params, jnp.zeros(1), jnp.full(1, 7))
    with Checkpoints(run / "checkpoints", 1) as checkpoints:
        checkpoints.save(7, State(params, {"count": jnp.zeros(1)}, -jnp.ones(1), best))
    write_json(run / POPULATION, {"checkpoints": "checkpoints", "member": 0})
    write_json(run / CONFIG, to_plain(config))
    write_text(run / FILE, tokenizer.to_json())
    return run


@pytest.fixture(scope="module")
def outcomes(run_directory, tokenizer, tmp_path_factory):
    """Outcomes by name; files of the cases are in the directory of the run's parent."""
    folder = run_directory.parent
    (folder / "source.txt").write_text(
        "\n".join([SENTENCES[0], "", SENTENCES[1], "x " * 40]) + "\n"
    )
    (folder / "latin.txt").write_bytes("Ein\nläuft\n".encode("latin-1"))
    (folder / "short.txt").write_text("a\n")
    (folder / "reference.txt").write_text("a\n\nb\nc\n")
    other = folder / "other"
    other.mkdir()
    write_json(other / CONFIG, to_plain(load_config(small.BASE)))
    wrong = folder / "wrong"
    wrong.mkdir()
    for name in (CONFIG, POPULATION):
        (wrong / name).write_bytes((run_directory / name).read_bytes())
    (wrong / "checkpoints").symlink_to(run_directory / "checkpoints")
    write_text(wrong / FILE, make_tokenizer("bpe", SENTENCES, SENTENCE, vocab_size=259).to_json())
    swapped, damaged = folder / "swapped", folder / "damaged"
    for name in (swapped, damaged):
        shutil.copytree(wrong, name, symlinks=True)
    write_text(swapped / FILE, tokenizer.to_json())
    write_json(swapped / CORPUS, {"tokenizer": digest_of("another of the same size")})
    write_text(damaged / FILE, tokenizer.to_json()[:99])
    source = f"--input={folder}/source.txt"
    cases = {
        "file": [source, f"--reference={folder}/reference.txt"],
        "n-best": [source, "--beam=3", "--nbest=2", "--length_penalty=0.6"],
        "drawn": [source, "--temperature=0.8", "--nbest=2", "--seed=3"],
        "drawn again": [source, "--temperature=0.8", "--nbest=2", "--seed=3", "--batch_size=1"],
        "picture": [f"--text={SENTENCES[0]}", f"--alignment={folder}/picture.png"],
        "head": [f"--text={SENTENCES[0]}", f"--alignment={folder}/x.png", "--alignment_head=1.0"],
        "two sentences": [source, f"--alignment={folder}/x.png"],
        "latin": [f"--input={folder}/latin.txt"],
        "reference": [source, f"--reference={folder}/short.txt"],
        "missing": [f"--input={folder}/missing.txt"],
        "beam": ["--text=a", "--beam=0"],
        "nbest": ["--text=a", "--nbest=3", "--beam=2"],
        "both": ["--text=a", "--beam=2", "--temperature=1"],
        "limit": ["--text=a", "--max_length=100"],
        "empty": ["--text="],
        "bytes": ["--text=\udcff Hund"],
        "not drawn": ["--text=a", "--top_k=5"],
        "no folder": ["--text=a", f"--alignment={folder}/none/x.png"],
    }
    arguments = [[f"--workdir={run_directory}", *case] for case in cases.values()]
    runs = {
        "another task": other,
        "another tokenizer": wrong,
        "swapped": swapped,
        "damaged": damaged,
    }
    cases |= dict.fromkeys(runs, [])
    arguments += [[f"--workdir={run}", "--text=a"] for run in runs.values()]
    found = run_cases("research.translate", arguments)
    assert not (folder / "x.png").exists()
    return dict(zip(cases, found, strict=True))


def test_a_line_to_each_line(outcomes):
    done = outcomes["file"]
    assert done.code == 0, done.err
    lines = done.out.split("\n")
    assert len(lines) == 5 and lines[4] == ""
    assert lines[1] == "" and lines[0] and lines[2] and lines[0] != lines[2]
    assert "best step 7" in done.err and "4 lines in" in done.err
    assert f"cut to task.length = {LENGTH} tokens: 1 lines (4)" in done.err
    assert "BLEU " in done.err and "tok:zh" in done.err and "chrF2 " in done.err


def test_n_best_lists(outcomes):
    done = outcomes["n-best"]
    assert done.code == 0, done.err
    rows = [line.split(" ||| ") for line in done.out.splitlines()]
    assert [row[0] for row in rows] == ["0", "0", "1", "2", "2", "3", "3"]
    assert rows[2] == ["1", "", "0.0000"]
    assert len({row[1] for row in rows}) > 4
    for first, second in ((0, 1), (3, 4), (5, 6)):
        assert float(rows[first][2]) >= float(rows[second][2])


DRAWN = ("drawn", "drawn again")


def test_what_is_drawn_depends_on_the_seed_alone(outcomes):
    assert outcomes["drawn"].code == 0, outcomes["drawn"].err
    assert "seed 3" in outcomes["drawn"].err
    text = [[x.split(" ||| ")[1] for x in outcomes[n].out.split("\n")[:-1]] for n in DRAWN]
    assert text[0] == text[1] and len(set(text[0])) > 4


def test_a_picture_of_one_sentence(outcomes, run_directory):
    assert outcomes["picture"].code == 0, outcomes["picture"].err
    assert (run_directory.parent / "picture.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("head", ["--alignment_head='1.0'", "0.0"]),
        ("two sentences", ["--alignment", "--text"]),
        ("latin", ["latin.txt, line 2", "byte 2 (0xe4)", "UTF-8"]),
        ("reference", ["--reference=", "1 lines", "4 lines"]),
        ("missing", ["--input=", "missing.txt"]),
        ("beam", ["--beam=0"]),
        ("nbest", ["--nbest=3", "--beam=2"]),
        ("both", ["--beam=2", "--temperature=1.0"]),
        ("limit", ["--max_length=100", f"{LENGTH}"]),
        ("empty", ["--text is empty"]),
        ("another task", ["task.name='recall'", "'translation'"]),
        ("another tokenizer", ["tokenizer.json has 259 tokens", "another run"]),
        ("swapped", ["tokenizer.json is not the tokenizer", "was trained with"]),
        ("damaged", ["tokenizer.json is damaged"]),
        ("bytes", ["--text, line 1", "0xff", "UTF-8"]),
        ("not drawn", ["--top_k", "--temperature"]),
        ("no folder", ["none/x.png", "no such directory"]),
    ],
)
def test_mistakes_are_one_line(outcomes, case, parts):
    done = outcomes[case]
    assert done.code == 2, done.err
    error = done.err.splitlines()[-1]
    assert error.startswith("error: ") and "Traceback" not in done.err, done.err
    # Heads are known only once the sentence is translated, and tokens once the run is open.
    assert case == "head" or done.out == ""
    assert case in ("head", "another tokenizer") or done.err == error + "\n"
    for part in parts:
        assert part in error


@pytest.mark.slow
def test_a_conversation(run_directory):
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "research.translate", f"--workdir={run_directory}"]
    with subprocess.Popen(
        command, stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        os.write(master, f"{SENTENCES[0]}\n\n{SENTENCES[1]}\n\x04".encode())
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert len(out.splitlines()) == 3 and out.splitlines()[1] == ""
    assert err.count("> ") == 4


def test_lines_are_read_as_they_are():
    assert read_lines(b"", "x") == []
    assert read_lines(b"\n", "x") == [""]
    assert read_lines("\ufeffe\u0301\r\nb\u2028c\n\nd".encode(), "x") == ["é", "b\u2028c", "", "d"]
    with pytest.raises(UserError, match=r"x, line 2: byte 3 \(0xff\)"):
        read_lines(b"a\nbc\xff\n", "x")


def test_translations_stay_on_their_line(tokenizer):
    model, params = make_toy(0, vocab_size=tokenizer.vocab_size, length=16)
    search = Search(nbest=40, sampling=Sampling())
    translator = Translator(model, params, tokenizer, search)
    results, cut = translate(translator, ["Ein Hund", " ", "Ein"], with_weights=True)
    assert cut == [] and [len(row) for row in results] == [40, 1, 40]
    lines = as_lines(results, 40)
    assert len(lines) == 81 and not any("\n" in line or "\r" in line for line in lines)
    for translation in results[0]:
        assert translation.weights.shape[1:] == (len(translation.target), len(translation.source))
    np.testing.assert_array_equal([t.score <= 0 for t in results[0]], True)
