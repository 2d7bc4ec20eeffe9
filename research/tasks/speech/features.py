"""Computes log-mel filterbank features of recordings, as defined by Kaldi."""

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import kaldi_native_fbank
import numpy as np
from jaxtyping import Float

from research.errors import UserError
from research.messages import progress_of, tell
from research.runs.store import write_bytes
from research.tasks.corpora import cache_directory
from research.tasks.digests import file_digest
from research.tasks.speech.audio import GREATEST_RATE, LEAST_RATE, read_audio
from research.tasks.speech.manifest import Utterance

FRAME_SECONDS, SHIFT_SECONDS = 0.025, 0.010
LOW_HZ = 20.0
HIGH = 0.95
"""Upper edge of the highest band as a fraction of half the sample rate: 3,800 Hz at 8 kHz."""

FULL_SCALE = 32768.0
"""Factor applied to samples with full scale 1, because Kaldi's features assume 16-bit integers."""

LOG_FLOOR = 0.0
"""Lower bound on the log energy of a band, about that of 16-bit rounding noise.

Kaldi's floor is -15.9 and relies on dither. Without dither, a stretch of digital zeros would be
farther from a silent room than the room is from speech, and would dominate `normalize`.
"""

LEAST_DEVIATION = 1e-2
"""Lower bound on the standard deviation that `normalize` divides by."""

_VERSION = 1  # of the cached features; raise it when the computation changes


def num_frames(samples: int, rate: int) -> int:
    """Returns F, the number of frames: one for each 10 ms, rounded, and at least one."""
    shift = int(rate * SHIFT_SECONDS)
    return max(1, (samples + shift // 2) // shift)


def log_mel(samples: Float[np.ndarray, "N"], rate: int, num_mels: int = 40) -> np.ndarray:
    """Returns (F, num_mels) float32: natural logarithms of the energy in mel-spaced bands.

    Kaldi's compute-fbank-feats without dither, hence deterministic (Povey et al. 2011, "The Kaldi
    speech recognition toolkit"; feature-window.cc, mel-computations.cc): frames of 25 ms every 10
    ms, mean removed, pre-emphasis 0.97, Povey window, power spectrum of the next power of two,
    triangular filters between 20 Hz and 0.95 of half the rate that are equally wide in
    mel = 1127 ln(1 + f / 700), and log energies of at least `LOG_FLOOR`.

    Frame i is centred on sample (i + 1/2) * shift, and the signal is mirrored at its ends
    (`snip_edges=false`), so that even a recording shorter than one frame has one:
    F = `num_frames(N, rate)`. A recording of less than 5 ms is padded with zeros.

    Args:
      samples: samples with full scale 1, N > 0.
      rate: samples per second.
      num_mels: number of bands; each must contain a point of the spectrum.

    Raises UserError for an invalid rate or number of bands.
    """
    if not LEAST_RATE <= rate <= GREATEST_RATE:
        raise UserError(
            f"task.sample_rate={rate} must be between {LEAST_RATE:,} and {GREATEST_RATE:,}."
        )
    if num_mels < 1:
        raise UserError(f"task.num_mels={num_mels} must be at least 1.")
    try:
        online = kaldi_native_fbank.OnlineFbank(_options(rate, num_mels))
    except ValueError:  # a filter that contains no point of the spectrum
        raise UserError(
            f"task.num_mels={num_mels} are too many bands for {rate:,} samples a second."
        ) from None
    least = (int(rate * SHIFT_SECONDS) + 1) // 2
    samples = np.pad(samples, (0, max(0, least - len(samples)))) * np.float32(FULL_SCALE)
    online.accept_waveform(rate, samples.tolist())
    online.input_finished()
    frames = np.stack([online.get_frame(i) for i in range(online.num_frames_ready)])
    return np.maximum(frames, np.float32(LOG_FLOOR))


def _options(rate: int, num_mels: int) -> kaldi_native_fbank.FbankOptions:
    """Returns Kaldi's defaults, except for dither, frames at the edges and the frequency range."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = rate
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = num_mels
    options.mel_opts.low_freq = LOW_HZ
    options.mel_opts.high_freq = HIGH * rate / 2
    return options


def normalize(features: Float[np.ndarray, "F num_mels"]) -> Float[np.ndarray, "F num_mels"]:
    """Normalizes each band of one recording to mean 0 and variance 1 over frames, float32.

    This removes the loudness and the microphone's frequency response. A band that hardly varies, as
    in silence, is divided by `LEAST_DEVIATION`.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    deviation = features.std(axis=0, dtype=np.float64)
    return ((features - mean) / np.maximum(deviation, LEAST_DEVIATION)).astype(np.float32)


def load_features(
    utterances: Sequence[Utterance],
    rate: int,
    num_mels: int = 40,
    max_seconds: float = 30.0,
    cache: Path | None = None,
) -> list[np.ndarray]:
    """Returns `log_mel` of every recording, not normalized: (F, num_mels) float32 each.

    Keeps all of them in memory, and caches them in a file named by a hash of the recordings'
    content and of everything else that the features depend on. Shows progress on stderr.

    Args:
      utterances: the recordings; only their paths are used.
      rate, num_mels: see `log_mel`; recordings at other rates are resampled.
      max_seconds: maximum duration; longer recordings raise an error.
      cache: cache directory; default: "features" in `cache_directory()`.

    Raises UserError for a recording that cannot be read; see `read_audio`.
    """
    settings = {
        "version": _VERSION,
        "kaldi_native_fbank": version("kaldi-native-fbank"),
        "rate": rate,
        "num_mels": num_mels,
        "max_seconds": max_seconds,
        "recordings": [_digest(utterance.path) for utterance in utterances],
    }
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
    path = (cache or cache_directory() / "features") / f"{name}.npz"
    found = _read(path)
    if found is not None:
        return found
    report = progress_of(len(utterances), "recordings")
    features = []
    for utterance in utterances:
        features.append(log_mel(read_audio(utterance.path, rate, max_seconds), rate, num_mels))
        report(len(features))
    _write(path, features)
    return features


def _digest(path: Path) -> str:
    """Returns the sha256 of a file, or "" if it cannot be read; `read_audio` reports the error."""
    try:
        return file_digest(path)
    except OSError:
        return ""


def _read(path: Path) -> list[np.ndarray] | None:
    """Returns features from the cache, or None if they are missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            frames, lengths = arrays["frames"], arrays["lengths"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None
    return np.split(frames, np.cumsum(lengths)[:-1])


def _write(path: Path, features: Sequence[np.ndarray]) -> None:
    """Writes features to the cache; on a disk error only prints a message."""
    if not features:
        return
    content = io.BytesIO()
    lengths = np.array([len(f) for f in features], np.int64)
    np.savez(content, frames=np.concatenate(features), lengths=lengths)
    try:
        write_bytes(path, content.getvalue())
    except OSError as error:
        tell(f"features are not cached: {error}")
