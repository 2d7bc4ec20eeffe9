"""The command that looks inside, on a run of every kind of model, and its page in a browser."""

import jax
import numpy as np
import pytest
import soundfile

from research.configuration import to_plain
from research.inspect.inputs import text_subject
from research.interpret.capture import attention_records, record
from research.runs.store import CONFIG, RESULT, write_json
from research.training.runs import load_run_config, open_run
from tests import browser as chromium
from tests import small
from tests.commands import run_cases
from tests.inspect.test_inspect_payload import Page, blob, decode
from tests.random_runs import STEP, write_run

HOSTILE = "lovely </script><img src=x onerror=\"document.title='ran'\"> film \u202e"
GIVEN = ("--text=ein hund", "--target=a dog", "--kinds=cross")
SPEECH = {"model__listener": "transformer", "model__feedforward": 8}
DELTA = {"model__mixer": "gated_delta", "model__position": "none"}


def sound(path, seconds):
    time = np.arange(int(4000 * seconds)) / 4000
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 500 * time), 4000)


def write_runs(folder):
    """Writes a run of each kind of model, and those that cannot be opened."""
    (folder / "texts").mkdir()
    (folder / "text.txt").write_text("to be, or not to be: that is the question\n" * 40)
    pairs, labelled = small.corpus(folder / "texts"), small.labelled(folder)
    write_run(folder / "text", small.text(folder / "text.txt", **DELTA))
    write_run(folder / "recall", small.recall())
    write_run(folder / "translation", small.translation(pairs))
    write_run(folder / "transduction", small.transduction())
    write_run(folder / "speech", small.speech(**SPEECH))
    write_run(folder / "sentiment", small.sentiment(labelled))
    begun = folder / "begun"
    begun.mkdir()
    write_json(begun / CONFIG, to_plain(small.recall()))
    write_json(begun / "population.json", {"checkpoints": "checkpoints", "member": 0})
    (folder / "recall" / RESULT).unlink()
    sound(folder / "a.wav", 0.6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_runs(folder)
    return folder


@pytest.fixture(scope="module")
def outcomes(folder):
    cases = {
        "text": ("text", ["--text=to be, or not to be"]),
        "recall": ("recall", ["--index=2", "--split=test"]),
        "translation": ("translation", ["--text=ein hund läuft"]),
        "given": ("translation", [*GIVEN, f"--out={folder}/given.html"]),
        "transduction": ("transduction", ["--index=1", "--reference"]),
        "speech": ("speech", [f"--input={folder}/a.wav", f"--out={folder}/sound.html"]),
        "sentiment": ("sentiment", [f"--text={HOSTILE}"]),
        "picture": ("recall", ["--index=0", "--layers=1", "--heads=1", f"--png={folder}/a.png"]),
        "no run": (".", ["--text=a"]),
        "begun": ("begun", ["--index=0"]),
        "nothing": ("recall", []),
        "both": ("text", ["--text=a", "--index=0"]),
        "empty": ("text", ["--text= "]),
        "bytes": ("text", ["--text=\udcff"]),
        "unknown": ("text", ["--text=TO BE"]),
        "no text": ("recall", ["--text=a"]),
        "no sound": ("text", [f"--input={folder}/a.wav"]),
        "words": ("speech", ["--text=low"]),
        "index": ("recall", ["--index=8"]),
        "negative": ("recall", ["--index=-1"]),
        "split": ("recall", ["--index=0", "--split=tset"]),
        "layer": ("recall", ["--index=0", "--layers=0,2"]),
        "layers": ("recall", ["--index=0", "--layers=first"]),
        "target": ("recall", ["--index=0", "--target=3"]),
        "reference": ("translation", ["--text=ein", "--reference"]),
        "missing": ("speech", ["--input=missing.wav"]),
        "no folder": ("recall", ["--index=0", f"--out={folder}/none/a.html"]),
        "ending": ("recall", ["--index=0", "--out=a.pdf"]),
    }
    arguments = [[f"--workdir={folder / run}", *rest] for run, rest in cases.values()]
    found = run_cases("research.inspect", arguments)
    return dict(zip(cases, found, strict=True))


def page_of(outcome, path):
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{path}\n" and f"best step {STEP}" in outcome.err
    page = Page(path.read_text(encoding="utf-8"))
    return page, {one["name"]: one for one in page.data["maps"]}


def test_weights_on_the_page_are_those_of_the_model(outcomes, folder):
    page, maps = page_of(outcomes["text"], folder / "text" / "inspect.html")
    assert list(maps) == ["layer 0", "layer 1"]
    run = open_run(folder / "text", load_run_config(folder / "text"))
    subject = text_subject(run, "to be, or not to be"[:16])
    recorded = jax.jit(lambda params, batch: record(run.model, params, batch, ("weights",))[1])
    found = attention_records(recorded(run.params, subject.batch))
    for i, part in enumerate(found):
        weights = np.asarray(part.sites["weights"][0])
        shown = np.concatenate(
            [decode(blob(page, f"head-{i}-{j}"), 16, 16, maps[part.name]["signed"]) for j in (0, 1)]
        )
        greatest = np.abs(weights).max(-1, keepdims=True)
        # Weights of a delta rule have signs, which leaves 127 steps to each side.
        assert (np.abs(shown - weights) <= greatest / 127 + 1e-6).all()
    assert "cut to the 16" in outcomes["text"].err


@pytest.mark.parametrize(
    ("case", "maps", "numbers"),
    [
        ("recall", ["layer 0", "layer 1", "rollout"], {"log-probability of the answer"}),
        (
            "translation",
            ["decoder 0 cross", "encoder 0", "decoder 0", "encoder rollout"],
            {"log-probability", "entropy"},
        ),
        ("transduction", ["decoder 0 cross"], {"log-probability", "entropy"}),
        ("sentiment", ["pooling"], {"leave one out", "integrated gradients"}),
    ],
)
def test_every_model_has_its_maps_and_numbers(outcomes, folder, case, maps, numbers):
    page, found = page_of(outcomes[case], folder / case / "inspect.html")
    assert list(found) == maps
    axes = page.data["axes"]
    named = axes["output" if case.startswith("trans") else "input"]["numbers"]
    assert numbers <= named.keys()
    assert ("has not finished" in outcomes[case].err) == (case == "recall")


def test_a_target_can_be_given(outcomes, folder):
    page, maps = page_of(outcomes["given"], folder / "given.html")
    assert list(maps) == ["decoder 0 cross"]
    names = page.data["axes"]["output"]["names"]
    assert "".join(names) == "·a·dog</s>"


def test_hostile_text_stays_text(outcomes, folder):
    page, _ = page_of(outcomes["sentiment"], folder / "sentiment" / "inspect.html")
    assert "img" not in {tag for tag, _ in page.elements}
    assert "<" in page.data["axes"]["input"]["names"]
    html = (folder / "sentiment" / "inspect.html").read_text(encoding="utf-8")
    assert "\u202e" not in html


def test_sound_has_its_time_axis(outcomes, folder):
    page, maps = page_of(outcomes["speech"], folder / "sound.html")
    assert list(maps) == ["decoder 0 cross", "listener 0", "listener rollout"]
    audio = page.data["audio"]
    assert audio["frames"] == 60 and audio["state"] == pytest.approx(0.04)
    assert maps["decoder 0 cross"]["columns"] == "audio"
    assert maps["listener 0"]["shape"][1:] == [15, 15]


def test_a_picture_alone(outcomes, folder):
    outcome = outcomes["picture"]
    assert outcome.code == 0 and outcome.out == f"{folder}/a.png\n", outcome.err
    assert (folder / "a.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("no run", ["is not a run"]),
        ("begun", ["no checkpoints", "has not saved yet"]),
        ("nothing", ["--text", "--index=N", "--input"]),
        ("both", ["--text and --index", "one of them"]),
        ("empty", ["--text is empty"]),
        ("bytes", ["--text is not UTF-8"]),
        ("unknown", ["never saw", "'B'"]),
        ("no text", ["--text", "task.name='recall'", "--index=N"]),
        ("no sound", ["--input=", "task.name='text'"]),
        ("words", ["--text", "--input=FILE.wav"]),
        ("index", ["--index=8", "8 sequences", "0 to 7"]),
        ("negative", ["--index=-1"]),
        ("split", ["--split='tset'", "Did you mean 'test'"]),
        ("layer", ["--layers=2", "0, 1"]),
        ("layers", ["--layers=first", "numbers"]),
        ("target", ["--target", "model.name='decoder'"]),
        ("reference", ["--reference needs --index"]),
        ("missing", ["missing.wav does not exist"]),
        ("no folder", ["none/a.html", "no such directory"]),
        ("ending", ["--out=a.pdf", ".html"]),
    ],
)
def test_mistakes_are_one_line(outcomes, case, parts):
    done = outcomes[case]
    assert done.code == 2 and done.out == "", done.err
    lines = [line for line in done.err.splitlines() if not line.startswith("best step")]
    assert lines[-1].startswith("error: ") and "Traceback" not in done.err, done.err
    for part in parts:
        assert part in lines[-1]


@pytest.mark.skipif(not chromium.AVAILABLE, reason="needs chromium and chromedriver")
def test_the_page_in_a_browser(outcomes, folder):
    page_of(outcomes["sentiment"], folder / "sentiment" / "inspect.html")
    with chromium.browser() as window:
        for run in ("recall", "sentiment"):
            path = folder / run / "inspect.html"
            window.open(path)
            window.until("return performance.getEntriesByName('ready').length")
            assert window.console() == []
            assert window.run("return document.title") != "ran"
        window.open(folder / "recall" / "inspect.html")
        window.until("return performance.getEntriesByName('ready').length")
        window.run("document.querySelector('[aria-selected=true]').focus()")
        window.press("ArrowDown", "ArrowRight")
        chosen = "return document.getElementById('chosen').textContent"
        window.until(f"{chosen} === 'layer 1 · head 1'")
        assert window.console() == []
