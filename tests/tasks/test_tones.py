import itertools

import numpy as np
import pytest

from research.tasks.speech.tones import SPEAKERS, VARIANTS, WORDS, melodies, sing, tones


@pytest.fixture(scope="module")
def found():
    return tones(8000)


def test_every_speaker_says_every_word_in_every_split(found):
    counts = {}
    for tone in found:
        key = tone.split, tone.speaker, tone.text
        counts[key] = counts.get(key, 0) + 1
    expected = itertools.product(VARIANTS, SPEAKERS, WORDS)
    assert counts == {key: VARIANTS[key[0]] for key in expected}


def test_recordings_are_the_same_every_time_and_all_different(found):
    again = tones(8000)
    for one, other in zip(found, again, strict=True):
        np.testing.assert_array_equal(one.samples, other.samples)
    assert len({tone.samples.tobytes() for tone in found}) == len(found)


def test_samples_are_within_full_scale(found):
    peaks = [np.abs(tone.samples).max() for tone in found]
    assert 0.05 < min(peaks) and max(peaks) < 1.0


def test_words_are_different_melodies_without_repeated_tones():
    found = melodies()
    assert len(set(found.values())) == len(found) == len(WORDS)
    assert all(a != b for m in found.values() for a, b in itertools.pairwise(m))


@pytest.mark.parametrize("rate", [8000, 16000])
def test_the_tones_are_those_of_the_melody(rate):
    """The strongest frequency of each third, against the first, without the variation."""

    class Still(np.random.RandomState):
        def standard_normal(self, size=None):
            return 0.0 if size is None else np.zeros(size)

        def uniform(self, low, high):
            return 1.0 if low < 1.0 < high else 0.3

    samples = sing("da", "tenor", rate, Still(0))
    thirds = np.array_split(samples, 3)
    peaks = []
    for part in thirds:
        spectrum = np.abs(np.fft.rfft(part, 8 * rate))
        peaks.append(spectrum.argmax() / 8)
    steps = [3 * step for step in melodies()["da"]]
    semitones = 12 * np.log2(np.array(peaks) / 330.0)
    np.testing.assert_allclose(semitones, steps, atol=0.2)
