"""Speech: what a batch holds, that evaluation covers its split once, and what is measured."""

import json

import jax
import numpy as np
import optax
import pytest
import scipy.special
import soundfile

from research.configuration import apply_deltas, load_config
from research.errors import UserError
from research.tasks.registry import make_task
from research.tasks.speech.recognition import ctc_losses
from research.tasks.speech.recognition_scores import SpeechOutputs
from research.tasks.speech.tones import sing
from research.tasks.task import EOS, PAD
from research.tasks.text.tokenizer import load_tokenizer
from research.training.step import batch_shapes
from tests import small
from tests.compiled import compiled

RATE = 8000
"""Hz of the recordings."""
SPOKEN = ("ba da", "ga", "ka la ma")


def config(path, **deltas):
    base = load_config(small.BASE)
    mine = {
        "task.name": "speech",
        "task.path": str(path),
        "task.length": 13,
        "task.batch_size": 4,
        "task.num_mels": 8,
        "task.join": (1, 2, 3),
        "task.buckets": 2,
        "task.test_lengths": (1, 3, 4),
        "task.test_sequences": 5,
        "task.tokenizer": "word",
    }
    return apply_deltas(base, mine | {f"task.{key}": value for key, value in deltas.items()}).task


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Recordings of one to three words by two speakers, with splits."""
    folder = tmp_path_factory.mktemp("recordings")
    lines = ["path\ttranscript\tspeaker\tsplit"]
    generator = np.random.RandomState(0)
    splits = {"train": 4, "validation": 2, "test": 2}
    for split, number in splits.items():
        for speaker in ("bass", "treble"):
            for i in range(number):
                text = SPOKEN[i % len(SPOKEN)]
                sounds = [sing(word, speaker, RATE, generator) for word in text.split()]
                name = f"{split}_{speaker}_{i}.wav"
                soundfile.write(folder / name, np.concatenate(sounds), RATE)
                lines.append(f"{name}\t{text}\t{speaker}\t{split}")
    path = folder / "manifest.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def strings(manifest):
    return make_task(config(manifest))


@pytest.fixture(scope="module")
def whole(manifest):
    return make_task(config(manifest, join=(), tokenizer="char"))


def texts_of(task, targets):
    rows = [[t for t in row.tolist() if t >= 0] for row in np.asarray(targets)]
    return [task.tokenizer.decode(row) for row in rows if row]


@pytest.fixture(scope="module", params=["strings", "whole"])
def task(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def evaluated(task):
    """Batches of each split: [(bucket, index, batch)]."""
    evaluation = compiled(task.evaluation, 1, 3, 4)
    return {
        split: [
            (bucket, index, evaluation(task.data, split, index, number, bucket))
            for bucket, number in enumerate(task.evaluation_batches(split, 99))
            for index in range(number)
        ]
        for split in task.splits
    }


def test_evaluation_has_each_row_of_a_split_once_and_its_transcript(task, evaluated):
    for split in task.splits:
        texts = [texts_of(task, batch["targets"]) for _, _, batch in evaluated[split]]
        assert sorted(sum(texts, [])) == sorted(task.references[split])


def test_what_is_decoded_is_what_is_evaluated(task, evaluated):
    sources = task.sources("test")
    number = len(task.references["test"])
    assert len(sources["source"]) == len(sources["source_length"]) == number
    order = [np.asarray(o) for o in task.data["order"]["test"]]
    for bucket, index, batch in evaluated["test"]:
        for i, row in enumerate(order[bucket][4 * index : 4 * index + 4]):
            if row < 0:
                continue
            length = sources["source_length"][row]
            assert length == batch["source_length"][i]
            np.testing.assert_allclose(
                sources["source"][row, :length], batch["source"][i, :length], atol=1e-4
            )
            assert not sources["source"][row, length:].any()
            assert texts_of(task, batch["targets"][i : i + 1]) == [task.references["test"][row]]


def test_a_batch_depends_on_the_key_and_the_step(strings):
    make = jax.jit(lambda key, step: strings.batch(strings.data, key, step, 1)["source"])
    one = make(jax.random.key(0), 0)
    np.testing.assert_array_equal(one, make(jax.random.key(0), 0))
    others = make(jax.random.key(0), 1), make(jax.random.key(1), 0)
    assert not any(np.array_equal(one, other) for other in others)


def of_lines(folder, lines, **deltas):
    """A task of one recording to each line of transcript, speaker and split."""
    sound = sing("ba", "tenor", RATE, np.random.RandomState(0))
    rows = []
    for i, line in enumerate(lines):
        # No file is listed twice.
        soundfile.write(folder / f"{i}.wav", np.roll(sound, i), RATE)
        rows.append("\t".join((f"{i}.wav", *line)))
    path = folder / "manifest.tsv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return make_task(config(path, **deltas))


def test_the_speaker_says_nothing_about_the_number_of_recordings(tmp_path):
    lines = [(f"word{s}", f"speaker{s}", split) for s in "ab" for split in ("train", "validation")]
    task = of_lines(tmp_path, lines, join=(1, 2), buckets=1, batch_size=64)
    make = jax.jit(lambda step: task.batch(task.data, jax.random.key(0), step, 0)["targets"])
    pairs = np.zeros((2, 2))
    for step in range(20):
        targets = np.asarray(make(step))
        words = (targets > EOS).sum(1)
        np.add.at(pairs, (targets[words > 0, 0] - 3, words[words > 0] - 1), 1)
    np.testing.assert_allclose(pairs / pairs.sum(), 0.25, atol=0.04)


def test_transcripts_that_do_not_fit_are_counted(tmp_path, capsys):
    lines = [("a b", "x", "train")] * 5 + [("a", "x", "validation"), ("a b a b", "x", "validation")]
    task = of_lines(tmp_path, lines, join=(), length=3)
    assert task.corpus["too_long"] == {"train": 0.0, "validation": 0.5}
    assert "50.0% of validation" in capsys.readouterr().err
    with pytest.raises(UserError, match="task.length=2: no transcript for validation"):
        of_lines(tmp_path, [("a", "x", "train")] * 5 + lines[-1:], join=(), length=2)


def test_alignments_are_of_all_rows(strings, whole):
    for task in (strings, whole):
        for split in task.splits:
            targets = np.asarray(task.alignments(split)["targets"])
            number = min(task.batch_size, len(task.references[split]))
            assert (targets >= 0).any(1).sum() == number


def test_training_strings_have_the_lengths_of_their_bucket(strings):
    assert strings.join == ((1, 2), (3,))
    np.testing.assert_allclose(strings.frequencies, (2 / 3, 1 / 3))
    part = np.bincount(compiled(jax.vmap(strings.bucket))(np.arange(600))) / 600
    np.testing.assert_allclose(part, strings.frequencies, atol=0.06)
    bounds = strings.bounds["train"]
    batches = [batch_shapes(strings, bucket=bucket) for bucket in (0, 1)]
    shapes = [batch["source"].shape for batch in batches]
    assert [s[1] for s in shapes] == [frames for frames, _ in bounds]
    assert all(frames % 8 == 0 for frames, _ in bounds)


def test_recordings_of_a_split_stay_in_it(strings):
    splits = np.repeat(["train", "validation", "test"], [8, 4, 4])
    for split in strings.splits:
        picks = compiled(lambda split, rows: strings.plan(split, rows).picks, 0)
        assert (splits[picks(split, np.arange(5))] == split).all()


def test_a_held_out_speaker_is_the_test_and_nothing_else(manifest):
    task = make_task(config(manifest, held_out_speaker="bass", join=()))
    assert task.corpus["speakers"] == {
        "train": ["treble"],
        "validation": ["treble"],
        "test": ["bass"],
    }
    assert task.corpus["recordings"]["test"] == 8


def test_tones_have_speakers_too():
    task = make_task(config("tones", held_out_speaker="alto"))
    assert task.corpus["speakers"]["test"] == ["alto"]
    assert "alto" not in task.corpus["speakers"]["train"]
    assert [label for label, _ in task.word_bins] == [1, 2, 3, 4]


def test_an_epoch_has_every_recording_once(whole):
    seen, batch_of = [], compiled(whole.batch, 3)
    buckets = compiled(jax.vmap(whole.bucket))(np.arange(sum(whole.epochs.batches)))
    for step, bucket in enumerate(buckets.tolist()):
        batch = batch_of(whole.data, jax.random.key(3), step, bucket)
        seen += batch["source_length"].tolist()
    assert sorted(seen) == sorted(np.asarray(whole.data["length"])[:8].tolist())


def outputs_of(task, batch, weight=0.25, seed=0):
    generator = np.random.default_rng(seed)
    rows, length = batch["targets"].shape
    frames = batch["source"].shape[1] // 2
    make = lambda *shape: generator.normal(size=shape).astype(np.float32)  # noqa: E731
    return SpeechOutputs(
        logits=make(rows, length, task.vocab_size),
        ctc=make(rows, frames, task.vocab_size),
        ctc_length=(batch["source_length"] + 1) // 2,
        ctc_weight=np.float32(weight),
        labelling=None,
    )


def test_the_objective_weighs_attention_and_ctc(strings):
    torch = pytest.importorskip("torch")
    batch = compiled(strings.batch, 3)(strings.data, jax.random.key(0), 0, 1)
    outputs = outputs_of(strings, batch)
    sums = compiled(strings.metrics)(outputs, batch)
    targets = batch["targets"]
    log_p = scipy.special.log_softmax(outputs.logits, axis=-1)
    at = np.nonzero(targets >= 0)
    attention = -log_p[(*at, targets[at])].sum()
    ctc = 0.0
    for row, target in enumerate(targets):
        labels = [int(t) for t in target if t > EOS]
        ctc += torch.nn.functional.ctc_loss(
            torch.log_softmax(torch.tensor(outputs.ctc[row]), -1)[:, None],
            torch.tensor([labels]),
            [int(outputs.ctc_length[row])],
            [len(labels)],
            reduction="sum",
        ).item()
    assert float(sums["loss"].total) == pytest.approx(attention, rel=1e-4)
    assert float(sums["ctc_loss"].total) == pytest.approx(ctc, rel=1e-4)
    expected = 0.75 * attention + 0.25 * ctc
    assert float(sums["objective"].total) == pytest.approx(expected, rel=1e-4)
    assert float(sums["ctc_too_short"].total) == 0


def test_error_rates_of_greedy_decoding(strings):
    batch = compiled(strings.evaluation, 1, 3, 4)(strings.data, "test", 0, 1, 1)
    targets = batch["targets"]
    labels = np.where(targets > EOS, targets, PAD)
    wrong = labels.copy()
    wrong[0, 0] = 3 + (wrong[0, 0] - 2) % 5
    outputs = outputs_of(strings, batch)._replace(labelling=wrong)
    found = compiled(strings.metrics)(outputs, batch)
    sums = found["error_rate"]
    assert (float(sums.total), float(sums.count)) == (1.0, (labels > 0).sum())
    by_words = found["error_rate_by_words"]
    assert float(by_words.total.sum()) == pytest.approx(1.0)
    assert float(by_words.count.sum()) == (labels > 0).sum()


def test_strings_with_more_labels_than_frames_have_no_ctc_loss():
    labels = np.array([[3, 3, 4], [3, 4, 5], [0, 0, 0], [3, 3, 4]])
    logits = np.random.default_rng(0).normal(size=(4, 4, 6)).astype(np.float32)
    lengths = np.array([3, 3, 4, 4])

    def total(logits):
        losses, fits = ctc_losses(logits, lengths, labels)
        return losses.sum(), (losses, fits)

    slope, (losses, fits) = compiled(jax.grad(total, has_aux=True))(logits)
    # 3 3 4 needs a blank between its threes.
    assert fits.tolist() == [False, True, False, True]
    assert losses[0] == losses[2] == 0
    np.testing.assert_allclose(
        losses[3:],
        compiled(optax.ctc_loss)(logits[3:], np.zeros((1, 4)), labels[3:], np.zeros((1, 3))),
        rtol=1e-6,
    )
    assert np.isfinite(slope).all() and not slope[0].any()


def test_scores_by_the_number_of_words(strings):
    encode = strings.tokenizer.encode
    right = [encode(text).tolist() for text in strings.references["test"]]
    scored = strings.score("test", right)
    assert scored.metrics["wer"] == scored.metrics["cer"] == 0
    worse = [row[:-1] for row in right]
    scored = strings.score("test", worse)
    words = sum(len(r.split()) for r in strings.references["test"])
    assert scored.metrics["deletions"] == pytest.approx(len(right) / words)
    assert scored.metrics["wer"] == scored.metrics["deletions"]
    for name, values in scored.slices.items():
        assert len(values) == len(strings.slices[name])
    lines = scored.files["test.references.txt"].splitlines()
    assert lines == list(strings.references["test"])


@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
def test_a_run_keeps_its_tokenizer(manifest, kind, tmp_path):
    task = make_task(config(manifest, tokenizer=kind, length=40, bpe_vocab_size=280))
    for name, text in task.artifacts().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    loaded = load_tokenizer(tmp_path)
    for text in task.references["test"]:
        tokens = loaded.encode(text)
        assert tokens.tolist() == task.tokenizer.encode(text).tolist()
        assert loaded.decode(tokens.tolist()) == text
    known = json.loads(task.artifacts()["corpus.json"])
    assert known["longest_frames"] == max(f for f, _ in task.bounds["train"])


@pytest.mark.parametrize(
    ("deltas", "message"),
    [
        ({"length": 9}, "task.length=9 is too short for 4 recordings of up to 3 tokens"),
        ({"join": (2, 1)}, "task.join=(2, 1): give positive numbers"),
        ({"gap": (0.3, 0.1)}, "task.gap=(0.3, 0.1): give the shortest"),
        ({"speakers": "two"}, "task.speakers='two' is unknown"),
        ({"tokenizer": "chars"}, "task.tokenizer='chars' is unknown"),
        ({"test_lengths": ()}, "task.test_lengths=()"),
        ({"held_out_speaker": "bas"}, "Did you mean 'bass'?"),
        ({"time_masks": -1}, "task.time_masks=-1"),
        ({"path": "fsd"}, "Did you mean 'fsdd'?"),
        ({"join": (), "batch_size": 20}, "task.batch_size=20 is too large"),
    ],
)
def test_what_does_not_fit_is_said(manifest, deltas, message):
    with pytest.raises(UserError) as error:
        make_task(config(deltas.pop("path", manifest), **deltas))
    assert message in str(error.value)
