"""Reads audio files as samples of one channel at a given rate."""

import os
import struct
from math import gcd
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float

from research.errors import UserError

FORMATS = ("WAV", "WAVEX", "FLAC")
"""Accepted formats, as named by libsndfile: those for which truncated files are detected."""

LEAST_RATE, GREATEST_RATE = 4_000, 384_000
"""Accepted sample rates in Hz: lower ones carry no speech, higher ones mean a broken header."""

GREATEST_SAMPLE = 2.0**31
"""Largest accepted sample (full scale is 1): float files may hold integers of up to 32 bits."""

_UNKNOWN_LENGTH = 0x7FFF_F000
"""Lengths from here on are placeholders of programs that stream and cannot rewrite the header."""


def read_audio(path: Path, rate: int, max_seconds: float = 30.0) -> Float[np.ndarray, "N"]:
    """Returns the samples of a WAV or FLAC file, float32, full scale 1.

    Averages the channels. Files at other rates are resampled with scipy's polyphase anti-aliasing
    filter (a Kaiser-windowed sinc); N is then the number of samples * rate / the file's rate,
    rounded up. Integers are divided by their full scale, so they are in [-1, 1). Float files may
    have peaks above 1, which are kept: clipping would distort, and rescaling would make the
    loudness depend on the peak. Resampling may overshoot peaks, too.

    Args:
      path: WAV (any sample format of libsndfile: integers of 8 to 32 bits, floats, A-law, mu-law,
        ADPCM, GSM) or FLAC, recognized by content, whatever the file's name.
      rate: requested samples per second.
      max_seconds: maximum duration; checked from the header before reading samples.

    Raises UserError if the file is missing, not audio, empty, too long, truncated or damaged, or
    has samples that are not finite numbers.
    """
    if not os.path.isfile(path):
        what = "is a directory" if os.path.isdir(path) else "does not exist"
        raise UserError(f"{path} {what}; a WAV or FLAC file is needed.")
    try:
        # Pass a file descriptor, because soundfile treats the suffix ".raw" as a format.
        with open(path, "rb") as content, soundfile.SoundFile(content.fileno(), closefd=False) as f:
            _check_header(path, f, max_seconds)
            samples, found = f.read(f.frames, dtype="float32", always_2d=True), f.samplerate
            frames = f.frames
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except soundfile.LibsndfileError as error:
        reason = error.error_string.removeprefix("Error : ").rstrip(". ")
        raise UserError(f"{path} is damaged, or no WAV or FLAC file: {reason}.") from None
    if len(samples) < frames:
        raise UserError(
            f"{path} is cut short: it has {len(samples):,} of the {frames:,} samples that its "
            "header says."
        )
    peak = np.abs(samples).max()
    if not peak <= GREATEST_SAMPLE:
        raise UserError(
            f"{path} has samples of {peak:g}; they must be finite numbers, with full scale 1."
        )
    return _resample(samples.mean(axis=1), found, rate)


def _check_header(path: Path, file: soundfile.SoundFile, max_seconds: float) -> None:
    """Raises UserError if the header shows an unsupported, truncated, empty or too long file."""
    if file.format not in FORMATS:
        raise UserError(f"{path} is {file.format_info}; a WAV or FLAC file is needed.")
    if not LEAST_RATE <= file.samplerate <= GREATEST_RATE:
        raise UserError(
            f"{path} has {file.samplerate:,} samples a second; "
            f"{LEAST_RATE:,} to {GREATEST_RATE:,} are allowed."
        )
    if file.frames >= 2**62:
        raise UserError(
            f"{path} does not say in its header how long it is; convert it to a file that does."
        )
    missing = _missing_bytes(path)
    if missing:
        raise UserError(
            f"{path} is cut short: {missing:,} bytes of the samples that its header says are not "
            "there."
        )
    if not file.frames:
        raise UserError(f"{path} is empty: it has 0 samples.")
    seconds = file.frames / file.samplerate
    if seconds > max_seconds:
        raise UserError(
            f"{path} lasts {seconds:,.2f} s; task.max_seconds={max_seconds:g} are allowed."
        )


def _missing_bytes(path: Path) -> int:
    """Returns the number of bytes missing from a WAV file's samples.

    libsndfile does not report this: it takes the existing bytes as the length of a truncated file.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        layout = {b"RIFF": "<I", b"RIFX": ">I"}.get(file.read(12)[:4])
        if layout is None:
            return 0
        while len(header := file.read(8)) == 8:
            (length,) = struct.unpack(layout, header[4:])
            if header[:4] == b"data":
                return 0 if length >= _UNKNOWN_LENGTH else max(0, file.tell() + length - size)
            file.seek(length + length % 2, os.SEEK_CUR)
    return 0


def _resample(
    samples: Float[np.ndarray, "N"], found: int, wanted: int
) -> Float[np.ndarray, "resampled"]:
    """Returns the samples at another rate, float32."""
    if found == wanted:
        return samples
    # Imported lazily: it takes longer to import than everything else that reads audio.
    from scipy.signal import resample_poly

    common = gcd(found, wanted)
    return resample_poly(samples, wanted // common, found // common).astype(np.float32, copy=False)
