"""The command that transcribes, on runs whose weights are random, and what it is made of."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from research.configuration import apply_deltas, load_config, to_plain
from research.decoding.decode import Hypothesis
from research.decoding.search import Search
from research.decoding.transcription import (
    SHORTEST,
    Transcriber,
    confidence,
    frame_lengths,
    label_posteriors,
    read_features,
    transcribe,
)
from research.errors import UserError
from research.models.registry import make_model
from research.runs.store import CONFIG, write_json, write_text
from research.tasks.text.tokenizer import CORPUS, FILE, SENTENCE, digest_of, make_tokenizer
from research.training.loop import POPULATION
from research.training.records.checkpoints import Checkpoints
from research.training.step import Best, State
from tests import small
from tests.commands import run_cases
from tests.decoding.toy import WIDTH, make_listening

RATE, MELS, LENGTH, LONGEST = 8000, 8, 6, 60
MODEL = {
    "task.name": "speech",
    "task.length": LENGTH,
    "task.num_mels": MELS,
    "task.sample_rate": RATE,
    "task.max_seconds": 2.0,
    "model.name": "speech",
    "model.width": 8,
    "model.num_layers": 1,
    "model.num_heads": 1,
    "model.levels": 1,
    "model.ctc_weight": 0.5,
    "model.init_stddev": 0.7,
    "model.embedding_stddev": 1.0,
}
WORDS = ["zero one two", "three four"]


def tokenizer_of(words=WORDS, kind="word"):
    return make_tokenizer(kind, words, SENTENCE)


def make_run(run, deltas, tokenizer):
    """Writes what a finished run leaves, with the weights it would start from."""
    config = apply_deltas(load_config(small.BASE), MODEL | deltas)
    model = make_model(config.model, tokenizer.vocab_size, LENGTH)
    row = jnp.ones((1, 2), jnp.int32)
    batch = {"source": jnp.zeros((1, 16, MELS)), "source_length": jnp.array([16])}
    batch |= {"inputs": row, "targets": row}
    params = jax.jit(lambda key: model.init(key, batch, method="forward"))(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf[None], params["params"])
    best = Best(params, jnp.zeros(1), jnp.full(1, 7))
    with Checkpoints(run / "checkpoints", 1) as checkpoints:
        checkpoints.save(7, State(params, {"count": jnp.zeros(1)}, -jnp.ones(1), best))
    write_json(run / POPULATION, {"checkpoints": "checkpoints", "member": 0})
    write_json(run / CONFIG, to_plain(config))
    write_text(run / FILE, tokenizer.to_json())
    known = {"tokenizer": digest_of(tokenizer.to_json()), "longest_frames": LONGEST}
    write_json(run / CORPUS, known)


def sound(seconds, seed=0, rate=RATE):
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    pitch = 300 + 900 * np.abs(np.sin(2 * np.pi * time * random.uniform(1, 4)))
    noise = random.normal(0, 0.01, len(time))
    return 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / rate) + noise


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Outcomes by name, and the folder of the runs and files."""
    folder = tmp_path_factory.mktemp("speech")
    make_run(folder / "run", {}, tokenizer_of())
    make_run(folder / "alone", {"model.ctc_weight": 1.0}, tokenizer_of())
    other = folder / "other"
    other.mkdir()
    write_json(other / CONFIG, to_plain(load_config(small.BASE)))
    wrong = folder / "wrong"
    wrong.mkdir()
    for name in (CONFIG, POPULATION):
        (wrong / name).write_bytes((folder / "run" / name).read_bytes())
    (wrong / "checkpoints").symlink_to(folder / "run" / "checkpoints")
    write_text(wrong / FILE, tokenizer_of(["nought one"]).to_json())
    for name, seconds in (("a", 0.5), ("b", 0.4), ("tiny", 0.003), ("long", 1.3), ("over", 2.5)):
        soundfile.write(folder / f"{name}.wav", sound(seconds, len(name)), RATE)
    stereo = np.stack([sound(0.45, 3, 16000)] * 2, axis=1)
    soundfile.write(folder / "stereo.flac", stereo, 16000)
    (folder / "text.wav").write_text("no sound")
    a, b, tiny, long, over, text, missing = (
        str(folder / f"{n}.wav") for n in ("a", "b", "tiny", "long", "over", "text", "missing")
    )
    picture = f"--alignment={folder}/a.png"
    cases = {
        "files": ("run", ["--beam=2", long, a, str(folder / "stereo.flac"), a, tiny]),
        "n-best": ("run", ["--beam=3", "--nbest=2", "--ctc_weight=0.4", "--batch_size=2", a, b]),
        "some fail": ("run", [missing, a, text, over]),
        "picture": ("run", [a, picture]),
        "labels": ("alone", [a, f"--alignment={folder}/labels.png"]),
        "no files": ("run", []),
        "two files": ("run", [a, b, picture]),
        "ending": ("run", [a, f"--alignment={folder}/a.pdf"]),
        "no folder": ("run", [a, f"--alignment={folder}/none/a.png"]),
        "nbest": ("run", [a, "--nbest=3", "--beam=2"]),
        "weight": ("run", [a, "--ctc_weight=1.5"]),
        "another task": ("other", [a]),
        "another tokenizer": ("wrong", [a]),
        "flag": ("run", [a, "--beem=2"]),
    }
    arguments = [[f"--workdir={folder / run}", *rest] for run, rest in cases.values()]
    found = run_cases("research.transcribe", arguments)
    return dict(zip(cases, found, strict=True)), folder


def rows_of(done):
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert all(len(row) == 3 and 0 <= float(row[2]) <= 1 for row in rows), done.out
    assert {word for row in rows for word in row[1].split()} <= set(" ".join(WORDS).split())
    return rows


def test_a_line_to_each_file(outcomes):
    found, folder = outcomes
    done = found["files"]
    assert done.code == 0, done.err
    rows = rows_of(done)
    names = ["long.wav", "a.wav", "stereo.flac", "a.wav", "tiny.wav"]
    assert [row[0] for row in rows] == [str(folder / name) for name in names]
    assert rows[1] == rows[3]
    assert "best step 7" in done.err and "5 files, 2.8 s of audio" in done.err
    assert f"long.wav: 1.30 s, longer than anything in training ({LONGEST / 100:.2f} s)" in done.err
    assert done.err.count("longer than") == 1


def test_n_best_transcripts(outcomes):
    found, folder = outcomes
    done = found["n-best"]
    assert done.code == 0, done.err
    rows = rows_of(done)
    assert [row[0] for row in rows] == [str(folder / f"{n}.wav") for n in "aabb"]
    assert rows[0][1] != rows[1][1] and rows[2][1] != rows[3][1]


def test_files_that_cannot_be_read_do_not_stop_the_others(outcomes):
    found, folder = outcomes
    done = found["some fail"]
    assert done.code == 2 and "Traceback" not in done.err, done.err
    assert [row[0] for row in rows_of(done)] == [str(folder / "a.wav")]
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    for line, part in zip(
        errors,
        ["missing.wav does not exist", "text.wav is damaged", "over.wav lasts 2.50 s", "3 of 4"],
        strict=True,
    ):
        assert part in line


def test_pictures(outcomes):
    found, folder = outcomes
    for case, name in (("picture", "a.png"), ("labels", "labels.png")):
        assert found[case].code == 0, found[case].err
        assert (folder / name).read_bytes()[:4] == b"\x89PNG"
        assert len(rows_of(found[case])) == 1


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("no files", ["no files", "FILE.wav"]),
        ("two files", ["--alignment", "one file, not 2"]),
        ("ending", ["--alignment=", ".png"]),
        ("no folder", ["none/a.png", "no such directory"]),
        ("nbest", ["--nbest=3", "--beam=2"]),
        ("weight", ["--ctc_weight=1.5", "from 0 to 1"]),
        ("another task", ["task.name='recall'", "'speech'"]),
        ("another tokenizer", ["tokenizer.json has 5 tokens", "another run"]),
        ("flag", ["beem"]),
    ],
)
def test_mistakes_are_one_line(outcomes, case, parts):
    done = outcomes[0][case]
    assert done.code == 2 and done.out == "", done.err
    (error,) = done.err.splitlines()
    assert error.startswith("error: ")
    for part in parts:
        assert part in error


def test_few_numbers_of_frames():
    assert frame_lengths(1) == [SHORTEST]
    assert frame_lengths(600) == [128, 192, 256, 384, 512, 768]
    assert frame_lengths(768)[-1] == 768 and frame_lengths(769)[-1] == 1024


def test_confidence_is_the_mean_probability_of_a_token():
    log_prob = math.log(0.5) + math.log(0.25) + math.log(0.125)
    found = confidence(Hypothesis([3, 4], log_prob / 2.0, log_prob, None))
    assert found == pytest.approx((0.5 * 0.25 * 0.125) ** (1 / 3))
    assert confidence(Hypothesis([], -math.inf, -math.inf, None)) == 0.0
    assert confidence(Hypothesis([3], 1e-6, 1e-6, None)) == 1.0


def toy_transcriber(search, **config):
    tokenizer = tokenizer_of(["\t\n abc"], "char")
    config = {"vocab_size": tokenizer.vocab_size, "length": LENGTH} | config
    return Transcriber(*make_listening(3, **config), tokenizer, search, 4)


def test_transcripts_stay_on_their_line_and_say_when_they_were_cut():
    transcriber = toy_transcriber(Search(beam=4, nbest=4))
    random = np.random.default_rng(0)
    features = [
        random.normal(0, 2, (n, WIDTH)).astype(np.float32) for n in (5, 190, 40, 1, 130, 33)
    ]
    found = transcribe(transcriber, features, with_weights=True)
    assert transcribe(transcriber, []) == [] and len(found) == 6
    every = [t for row in found for t in row]
    assert any("\n" in "".join(t.pieces) or "\t" in "".join(t.pieces) for t in every)
    assert {t.complete for t in every} == {True, False}
    for frames, row in zip(features, found, strict=True):
        for t in row:
            assert "\n" not in t.text and "\t" not in t.text and 0 < t.confidence <= 1
            assert t.pieces[-1] == "</s>" and t.complete == (len(t.pieces) < LENGTH)
            assert t.weights.shape == (2, len(t.pieces), (len(frames) + 1) // 2)


def test_posteriors_are_those_of_the_recordings_frames():
    transcriber = toy_transcriber(Search(), ctc_weight=1.0)
    features = np.random.default_rng(0).normal(0, 2, (31, WIDTH)).astype(np.float32)
    found = label_posteriors(transcriber, features)
    assert found.shape == (16, transcriber.tokenizer.vocab_size)
    np.testing.assert_allclose(found.sum(1), 1.0, rtol=1e-5)
    assert not found[:, 1:3].any()
    (best,) = transcribe(transcriber, [features])[0]
    labels = [
        t for i, t in enumerate(found.argmax(1)) if t and (not i or t != found.argmax(1)[i - 1])
    ]
    assert best.pieces[:-1] == transcriber.tokenizer.pieces(labels[: LENGTH - 1])


def test_features_are_read_as_the_task_reads_them(tmp_path):
    task = apply_deltas(load_config(small.BASE), MODEL).task
    soundfile.write(tmp_path / "a.wav", sound(0.5), RATE)
    found = read_features(tmp_path / "a.wav", task)
    assert found.shape == (50, MELS) and found.dtype == np.float32
    np.testing.assert_allclose(found.mean(0), 0.0, atol=1e-5)
    soundfile.write(tmp_path / "b.wav", sound(2.1), RATE)
    with pytest.raises(UserError, match="task.max_seconds=2 "):
        read_features(tmp_path / "b.wav", task)
