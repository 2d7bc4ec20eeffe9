"""Log-mel features against Kaldi's definition written down once more, and their cache."""

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from research import messages
from research.errors import UserError
from research.tasks.corpora import data_directory
from research.tasks.speech import features as module
from research.tasks.speech.features import load_features, log_mel, normalize, num_frames
from research.tasks.speech.manifest import Utterance

RATE = 8000


def noise(samples, seed=0, scale=0.1):
    return np.random.default_rng(seed).normal(size=samples).astype(np.float32) * np.float32(scale)


def mirrored(index, length):
    """Returns where a signal that is mirrored at its ends again and again is read."""
    index = np.mod(index, 2 * length)
    return np.minimum(index, 2 * length - 1 - index)


def mel(hertz):
    return 1127 * np.log(1 + hertz / 700)


def triangles(rate, padded, bands, low, high):
    """Returns (points, bands): how much of each point of the spectrum falls into each band."""
    edges = np.linspace(mel(low), mel(high), bands + 2)
    points = mel(np.arange(padded // 2) * rate / padded)[:, None]
    rising = (points - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - points) / np.diff(edges)[1:]
    return np.clip(np.minimum(rising, falling), 0, None)


def reference(samples, rate, bands):
    """Kaldi's filterbank in numpy and float64, from the formulas of its documentation."""
    window, shift = int(rate * 0.025), int(rate * 0.01)
    count = (len(samples) + shift // 2) // shift
    starts = np.arange(count) * shift + shift // 2 - window // 2
    where = mirrored(starts[:, None] + np.arange(window), len(samples))
    frames = samples.astype(np.float64)[where] * 32768
    frames -= frames.mean(1, keepdims=True)
    frames -= 0.97 * np.concatenate([frames[:, :1], frames[:, :-1]], 1)
    frames *= (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / (window - 1))) ** 0.85
    padded = 2 ** int(np.ceil(np.log2(window)))
    power = np.abs(np.fft.rfft(frames, padded)[:, :-1]) ** 2
    return np.log(np.maximum(power @ triangles(rate, padded, bands, 20, 0.95 * rate / 2), 1.0))


@pytest.mark.parametrize(("rate", "bands"), [(8000, 40), (8000, 23), (16000, 80), (11025, 40)])
@pytest.mark.parametrize("samples", [90, 199, 1148, 5003])
def test_features_are_those_of_kaldi_s_definition(rate, bands, samples):
    signal = noise(samples) + np.float32(0.2)  # an offset that must go
    found = log_mel(signal, rate, bands)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, reference(signal, rate, bands), atol=1e-3)


def test_features_of_speech_are_those_of_kaldi_s_definition():
    path = data_directory() / "fsdd/recordings/7_theo_36.wav"
    if not path.is_file():
        pytest.skip("the Free Spoken Digit Dataset is not under DATA_DIR")
    signal, rate = soundfile.read(path, dtype="float32")
    expected = reference(signal, rate, 40)
    np.testing.assert_allclose(log_mel(signal, rate), expected, atol=2e-3)
    assert expected.std() > 1


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 700), st.sampled_from([8000, 11025, 16000]))
def test_every_recording_has_the_frames_that_are_promised(samples, rate):
    found = log_mel(noise(samples), rate, 20)
    assert found.shape == (num_frames(samples, rate), 20)
    assert len(found) == max(1, round(samples / int(rate / 100) + 1e-9))
    assert np.isfinite(found).all()


def test_the_same_samples_have_the_same_features():
    np.testing.assert_array_equal(log_mel(noise(4000), RATE), log_mel(noise(4000), RATE))


def test_a_tone_is_in_the_band_at_its_frequency():
    low, high = mel(20), mel(3800)
    for frequency in (300, 1000, 3000):
        signal = 0.5 * np.sin(2 * np.pi * frequency / RATE * np.arange(RATE)).astype(np.float32)
        band = round(float((mel(frequency) - low) / (high - low) * 41)) - 1
        assert (np.abs(log_mel(signal, RATE).argmax(1)[2:-2] - band) <= 1).all()


def test_silence_is_at_the_floor_and_rounding_noise_about_there():
    silence = log_mel(np.zeros(4000, np.float32), RATE)
    assert (silence == module.LOG_FLOOR).all()
    np.testing.assert_array_equal(normalize(silence), np.zeros_like(silence))
    rounding = np.random.default_rng(0).uniform(-0.5, 0.5, 4000).astype(np.float32) / 32768
    bands = log_mel(rounding, RATE).mean(0)
    assert bands.min() < module.LOG_FLOOR + 1 < np.median(bands) < module.LOG_FLOOR + 5


@pytest.mark.parametrize(
    ("rate", "bands", "match"),
    [
        (8000, 0, "num_mels=0 must be at least 1"),
        (8000, 120, "num_mels=120 are too many bands for 8,000"),
        (10, 40, "sample_rate=10 must be between 4,000"),
        (10**6, 40, "sample_rate=1000000 must be between"),
    ],
)
def test_what_cannot_be_is_refused(rate, bands, match):
    with pytest.raises(UserError, match=match):
        log_mel(noise(4000), rate, bands)


def test_normalized_features_have_mean_zero_and_variance_one():
    found = normalize(log_mel(noise(8000), RATE))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(0), 1, atol=1e-4)


def test_normalized_features_do_not_know_the_loudness():
    signal = noise(8000) * np.linspace(0.2, 1, 8000, dtype=np.float32)
    loud, soft = (log_mel(signal * np.float32(gain), RATE) for gain in (3, 0.05))
    assert np.abs(loud - soft).min() > 5
    np.testing.assert_allclose(normalize(loud), normalize(soft), atol=2e-3)


def test_a_band_that_hardly_varies_is_not_blown_up():
    features = np.full((50, 2), 20, np.float32)
    features[:, 0] += np.float32(1e-5) * np.random.default_rng(0).normal(size=50)
    assert np.abs(normalize(features)).max() < 1e-2
    np.testing.assert_array_equal(normalize(features[:1]), np.zeros((1, 2)))


@pytest.fixture
def utterances(tmp_path):
    """Three recordings, one of another rate."""
    found = []
    for i, (samples, rate) in enumerate([(1000, RATE), (50, RATE), (6000, 16000)]):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, noise(samples, i), rate)
        found.append(Utterance(path=path, text="one"))
    return found


def equal(first, second):
    return len(first) == len(second) and all(map(np.array_equal, first, second))


def test_features_are_loaded_in_order_and_cached(tmp_path, utterances, monkeypatch):
    cache = tmp_path / "cache"
    found = load_features(utterances, RATE, 20, cache=cache)
    assert [f.shape for f in found] == [(13, 20), (1, 20), (38, 20)]
    samples, _ = soundfile.read(utterances[0].path, dtype="float32")
    np.testing.assert_array_equal(found[0], log_mel(samples, RATE, 20))
    monkeypatch.setattr(module, "log_mel", None)  # nothing is computed again
    again = load_features(utterances, RATE, 20, cache=cache)
    assert equal(again, found) and all(f.dtype == np.float32 for f in again)
    # It is the content that counts: files may move.
    moved = [
        Utterance(path=u.path.rename(tmp_path / f"new{u.path.name}"), text="") for u in utterances
    ]
    assert equal(load_features(moved, RATE, 20, cache=cache), found)
    assert len(list(cache.iterdir())) == 1


def test_the_cache_is_keyed_by_everything_that_counts(tmp_path, utterances):
    cache = tmp_path / "cache"
    first = load_features(utterances, RATE, 20, cache=cache)
    assert load_features(utterances, RATE, 10, cache=cache)[0].shape == (13, 10)
    assert load_features(utterances, 16000, 20, cache=cache)[0].shape == (13, 20)
    assert equal(load_features(utterances[::-1], RATE, 20, cache=cache), first[::-1])
    soundfile.write(utterances[0].path, noise(1000, 9), RATE)
    changed = load_features(utterances, RATE, 20, cache=cache)
    assert not equal(changed[:1], first[:1]) and equal(changed[1:], first[1:])
    assert len(list(cache.iterdir())) == 5
    # What is in the cache must not let a recording through that is too long now.
    with pytest.raises(UserError, match="max_seconds=0.1 "):
        load_features(utterances, RATE, 20, max_seconds=0.1, cache=cache)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * 99])
def test_a_damaged_cache_is_made_anew(tmp_path, utterances, damage):
    cache = tmp_path / "cache"
    found = load_features(utterances, RATE, 20, cache=cache)
    (path,) = cache.iterdir()
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert equal(load_features(utterances, RATE, 20, cache=cache), found)
    assert len(path.read_bytes()) == len(content)


def test_a_cache_that_cannot_be_written_is_none(tmp_path, utterances, capsys):
    # A file in the place of the folder refuses root as well.
    (tmp_path / "cache").write_text("")
    assert len(load_features(utterances, RATE, 20, cache=tmp_path / "cache")) == 3
    assert "not cached" in capsys.readouterr().err


def test_nothing_to_load_is_nothing(tmp_path):
    assert load_features([], RATE, cache=tmp_path) == []


def test_a_recording_that_is_missing_is_named(tmp_path, utterances):
    utterances[1].path.unlink()
    with pytest.raises(UserError, match="1.wav does not exist"):
        load_features(utterances, RATE, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_long_work_says_how_far_it_is(tmp_path, utterances, monkeypatch, capsys):
    load_features(utterances, RATE, cache=tmp_path / "first")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(messages, "PLAIN_SECONDS", 0)
    load_features(utterances, RATE, cache=tmp_path / "second")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[1].startswith("2/3 recordings, ")
