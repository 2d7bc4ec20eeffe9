import jax
import numpy as np
import pytest

from research.tasks.speech.features import normalize
from research.tasks.speech.joining import QUIET, Plan, draw_plan, joined, masked, segments, stored
from research.tasks.task import BOS, EOS, PAD
from tests.compiled import compiled

FRAMES, MELS, ROOM, TOKENS = 3, 4, 40, 6


@pytest.fixture(scope="module")
def recordings():
    """Recordings of 3, 5, 4 and 2 frames, with one or two tokens each."""
    generator = np.random.default_rng(0)
    features = [generator.normal(5.0, 2.0, (n, MELS)).astype(np.float32) for n in (3, 5, 4, 2)]
    tokens = [np.array(t) for t in ([3], [4, 5], [6], [7, 8])]
    return features, tokens, jax.device_put(stored(features, tokens))


def plan_of(picks, number, pauses, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(picks))
    return Plan(*(np.array(a, np.int32) for a in (picks, number, pauses)), keys)


def batch_of(data, plan, frames=ROOM, tokens=TOKENS):
    batch = jax.jit(joined, static_argnums=(2, 3))(data, plan, frames, tokens)
    return {name: np.asarray(array) for name, array in batch.items()}


def test_recordings_follow_each_other_and_are_normalized_together(recordings):
    features, _, data = recordings
    plan = plan_of([[1, 3, 0]], [3], [[0, 0, 0, 0]])
    batch = batch_of(data, plan)
    expected = normalize(np.concatenate([features[i] for i in (1, 3, 0)]))
    assert batch["source_length"].tolist() == [10]
    np.testing.assert_allclose(batch["source"][0, :10], expected, atol=1e-5)
    assert not batch["source"][0, 10:].any()


def test_pauses_are_quiet_frames_of_the_recording_before(recordings):
    features, _, data = recordings
    plan = plan_of([[1, 2, 0]], [2], [[2, 3, 4, 9]])
    # Before normalization, whose mean and deviation depend on what the pauses are made of.
    raw = {**data, "frames": data["frames"]}
    batch = batch_of(raw, plan)
    total = 2 + 5 + 3 + 4 + 4
    assert batch["source_length"].tolist() == [total]
    source = batch["source"][0, :total]
    where = {"first": (slice(0, 2), 1), "second": (slice(7, 10), 1), "last": (slice(14, 18), 2)}
    speech = {1: source[2:7], 2: source[10:14]}
    for place, recording in where.values():
        quiet = np.argsort(features[recording].mean(1), kind="stable")[:QUIET]
        for frame in source[place]:
            distance = np.abs(speech[recording][quiet] - frame).max(1)
            assert distance.min() < 1e-5


def test_targets_and_their_spans(recordings):
    _, _, data = recordings
    batch = batch_of(data, plan_of([[1, 0, 3]], [2], [[2, 3, 1, 7]]))
    assert batch["targets"][0].tolist() == [4, 5, 3, EOS, -1, -1]
    assert batch["inputs"][0].tolist() == [BOS, 4, 5, 3, PAD, PAD]
    spans = [[2, 7], [2, 7], [10, 13], [14, 14], [0, 0], [0, 0]]
    assert batch["span"][0].tolist() == spans


def test_segments_of_strings_of_several_lengths(recordings):
    _, _, data = recordings
    plan = plan_of([[1, 0], [2, 2], [0, 0]], [2, 1, 0], [[1, 2, 3], [4, 5, 6], [1, 1, 1]])
    found = compiled(segments)(data["length"], plan).tolist()
    assert found == [[1, 5, 2, 3, 3], [4, 4, 5, 0, 0], [0, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("frames", "tokens", "counts"), [(12, 6, True), (11, 6, False), (12, 4, True), (12, 3, False)]
)
def test_strings_that_do_not_fit_count_for_nothing(recordings, frames, tokens, counts):
    _, _, data = recordings
    batch = batch_of(data, plan_of([[1, 0]], [2], [[1, 1, 2]]), frames, tokens)
    assert (batch["targets"] >= 0).any() == counts
    assert batch["source_length"][0] == min(frames, 12)


def test_a_row_of_no_recordings_counts_for_nothing(recordings):
    _, _, data = recordings
    batch = batch_of(data, plan_of([[1]], [0], [[3, 3]]))
    assert (batch["targets"] == -1).all()
    assert batch["source_length"].tolist() == [1]
    assert not batch["source"].any()


def test_a_string_has_one_speaker_and_every_recording_is_drawn():
    pools = ((0, 3), (3, 5), (8, 2))
    draw = jax.jit(draw_plan, static_argnums=(2, 3, 4))
    keys = jax.random.split(jax.random.key(1), 600)
    plan = draw(keys, np.full(600, 4), 4, pools, (2, 5))
    speaker = np.searchsorted([2, 7, 9], np.asarray(plan.picks))
    assert (speaker == speaker[:, :1]).all()
    part = np.bincount(speaker[:, 0]) / 600
    assert np.abs(part - 1 / 3).max() < 0.08
    assert set(np.asarray(plan.picks).ravel().tolist()) == set(range(10))
    assert set(np.asarray(plan.pauses).ravel().tolist()) == {2, 3, 4, 5}


def test_masks_are_of_the_asked_number_and_size():
    x = np.ones((64, 30, 16), np.float32)
    length = np.full(64, 20)
    keys = jax.random.split(jax.random.key(0), 64)
    found = np.asarray(jax.jit(masked, static_argnums=(3, 4))(x, length, keys, (1, 5), (1, 3)))
    frames, bands = (found == 0).all(2), (found == 0).all(1)
    for gone, most in ((frames, 5), (bands, 3)):
        for row in gone:
            places = np.flatnonzero(row)
            # One stretch of at most that many.
            assert len(places) <= most and (np.diff(places) == 1).all()
        assert set(gone.sum(1).tolist()) == set(range(most + 1))
    # Masks of time are where there are frames, and reach all of them.
    assert not frames[:, 20:].any() and frames[:, :20].any(0).all()
    unmasked = ~(frames[:, :, None] | bands[:, None, :])
    assert (found[unmasked] == 1).all()


def test_no_masks_change_nothing():
    x = np.random.default_rng(0).normal(size=(2, 9, 4)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 2)
    found = compiled(masked, 3, 4)(x, np.array([9, 4]), keys, (0, 5), (0, 3))
    np.testing.assert_array_equal(found, x)
