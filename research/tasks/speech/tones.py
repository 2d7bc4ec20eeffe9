"""Synthesizes recordings of an artificial language of tones, for speech without a download.

Each of ten words is three tones out of five, without immediate repetition. A speaker has a pitch, a
speed and a timbre, and every recording varies a little in all of these and in loudness. This is
easier than real speech, but has its essential difficulties: varying tempo, speakers and pauses.
"""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

SPEAKERS = ("alto", "bass", "tenor", "treble")
WORDS = ("ba", "da", "fa", "ga", "ka", "la", "ma", "na", "pa", "ta")
VARIANTS = {"train": 32, "validation": 4, "test": 4}
"""{split: number of recordings of each word by each speaker}."""

_STEPS = 2.0 ** (np.array([0, 3, 6, 9, 12]) / 12.0)  # a third apart
_PITCH = {"alto": 420.0, "bass": 260.0, "tenor": 330.0, "treble": 540.0}
_SPEED = {"alto": 1.0, "bass": 0.8, "tenor": 1.2, "treble": 1.1}
_HARMONICS = {"alto": (1.0, 0.5), "bass": (1.0, 0.3, 0.3), "tenor": (1.0,), "treble": (1.0, 0.2)}
_TONE_SECONDS = 0.09


class Tone(NamedTuple):
    """A recording: samples with full scale 1, the word, the speaker, and the split."""

    samples: Float[np.ndarray, "N"]
    text: str
    speaker: str
    split: str


def melodies() -> dict[str, tuple[int, ...]]:
    """Returns the tones of each word, as indices of steps above the speaker's pitch."""
    every = [m for m in itertools.product(range(len(_STEPS)), repeat=3) if m[0] != m[1] != m[2]]
    # Take every eighth melody: neighbours in this order differ only in their last tone.
    return dict(zip(WORDS, every[::8], strict=False))


def sing(word: str, speaker: str, rate: int, generator: np.random.RandomState) -> np.ndarray:
    """Synthesizes one recording of a word, float32.

    Args:
      word: one of `WORDS`.
      speaker: one of `SPEAKERS`.
      rate: samples per second.
      generator: source of the random variation between recordings.
    """
    pitch = _PITCH[speaker] * (1.0 + 0.02 * generator.standard_normal())
    tones = []
    for step in melodies()[word]:
        speed = _SPEED[speaker] * generator.uniform(0.8, 1.25)
        time = np.arange(int(_TONE_SECONDS / speed * rate)) / rate
        frequency = pitch * _STEPS[step] * (1.0 + 0.01 * generator.standard_normal())
        sound = sum(
            strength * np.sin(2 * np.pi * (i + 1) * frequency * time)
            for i, strength in enumerate(_HARMONICS[speaker])
        )
        tones.append(sound * np.hanning(len(time)))
    loudness = generator.uniform(0.1, 0.5)
    samples = loudness * np.concatenate(tones)
    return (samples + 1e-3 * generator.standard_normal(len(samples))).astype(np.float32)


def tones(rate: int) -> list[Tone]:
    """Returns all 1,600 recordings, ordered by split, speaker and word, always the same."""
    found = []
    for split, speaker in itertools.product(VARIANTS, SPEAKERS):
        for number, word in enumerate(WORDS):
            # The stream of RandomState is frozen (NEP 19); a Generator's may change with NumPy.
            seed = [list(VARIANTS).index(split), SPEAKERS.index(speaker), number]
            generator = np.random.RandomState(seed)
            for _ in range(VARIANTS[split]):
                found.append(Tone(sing(word, speaker, rate, generator), word, speaker, split))
    return found
