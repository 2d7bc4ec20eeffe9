"""Samples of files that were made by hand, and one clear line for each that is no recording."""

import struct
import wave

import numpy as np
import pytest
import soundfile

from research.errors import UserError
from research.tasks.speech.audio import read_audio

RATE = 8000


def riff(data, *, rate=RATE, channels=1, bits=16, tag=1, length=None, before=b"", big=False):
    """Returns a WAV file, put together by hand; `length` is that of the data in its header."""
    order = ">" if big else "<"
    block = channels * bits // 8
    fmt = struct.pack(order + "HHIIHH", tag, channels, rate, rate * block, block, bits)
    chunks = before + b"fmt " + struct.pack(order + "I", len(fmt)) + fmt
    chunks += b"data" + struct.pack(order + "I", len(data) if length is None else length) + data
    return (
        (b"RIFX" if big else b"RIFF")
        + struct.pack(order + "I", 4 + len(chunks))
        + (b"WAVE" + chunks)
    )


def written(path, content):
    path.write_bytes(content)
    return path


def noise(samples=4000, scale=0.1):
    return np.random.default_rng(0).normal(size=samples).astype(np.float32) * scale


def refused(path, match, **options):
    with pytest.raises(UserError, match=match) as raised:
        read_audio(path, RATE, **options)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


A_LAW, MU_LAW = 6, 7


@pytest.mark.parametrize(
    ("tag", "bits", "data", "expected"),
    [
        (1, 8, bytes([0, 64, 128, 192, 255]), [-1, -0.5, 0, 0.5, 127 / 128]),
        (1, 16, struct.pack("<4h", -32768, -1, 0, 32767), [-1, -1 / 32768, 0, 32767 / 32768]),
        (1, 24, b"\x00\x00\x80" + b"\x00\x00\x40" + b"\xff\xff\xff", [-1, 0.5, -(2**-23)]),
        (1, 32, struct.pack("<3i", -(2**31), 2**30, 1), [-1, 0.5, 2**-31]),
        (3, 32, struct.pack("<3f", -1, 0.25, 1), [-1, 0.25, 1]),
        (3, 64, struct.pack("<3d", -1, 0.25, 1), [-1, 0.25, 1]),
        # The greatest and least values of ITU-T G.711, in units of 16-bit integers.
        (A_LAW, 8, b"\xaa\x2a\xd5\x55", [32256 / 32768, -32256 / 32768, 8 / 32768, -8 / 32768]),
        (MU_LAW, 8, b"\x80\x00\xff", [32124 / 32768, -32124 / 32768, 0]),
    ],
)
def test_every_sample_format_has_full_scale_one(tmp_path, tag, bits, data, expected):
    found = read_audio(written(tmp_path / "a.wav", riff(data, tag=tag, bits=bits)), RATE)
    assert found.dtype == np.float32 and found.ndim == 1
    np.testing.assert_array_equal(found, np.float32(expected))


@pytest.mark.parametrize("subtype", ["IMA_ADPCM", "MS_ADPCM", "GSM610"])
def test_compressed_wav_files_are_read(tmp_path, subtype):
    tone = 0.5 * np.sin(2 * np.pi * 440 / RATE * np.arange(RATE)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", tone, RATE, subtype=subtype)
    found = read_audio(tmp_path / "a.wav", RATE)
    assert np.corrcoef(found[: len(tone)], tone)[0, 1] > 0.99


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_flac_is_lossless(tmp_path, subtype):
    samples = (np.random.default_rng(0).integers(-32768, 32768, 5000) / 32768).astype(np.float32)
    soundfile.write(tmp_path / "a.flac", samples, RATE, subtype=subtype)
    np.testing.assert_array_equal(read_audio(tmp_path / "a.flac", RATE), samples)


def test_the_standard_library_s_stereo_is_averaged(tmp_path):
    left, right = (np.arange(100, dtype=np.int16) * scale for scale in (200, -100))
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((2, 2, RATE, 0, "NONE", ""))
        file.writeframes(np.stack([left, right], 1).astype("<i2").tobytes())
    expected = (left / 2 + right / 2) / 32768
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav", RATE), expected, atol=1e-7)


def test_content_counts_not_the_ending_nor_what_stands_before_the_samples(tmp_path):
    data = struct.pack("<3h", 1, 2, 3)
    odd = b"LIST" + struct.pack("<I", 5) + b"abcde\0"
    for name in ("a.raw", "b.flac", "c"):
        found = read_audio(written(tmp_path / name, riff(data, before=odd)), RATE)
        np.testing.assert_array_equal(found * 32768, [1, 2, 3])
    big = riff(struct.pack(">3h", 1, 2, 3), big=True)
    np.testing.assert_array_equal(
        read_audio(written(tmp_path / "d.wav", big), RATE) * 32768, [1, 2, 3]
    )
    soundfile.write(tmp_path / "e", np.float32([0.5, 0]), RATE, format="FLAC")
    np.testing.assert_array_equal(read_audio(tmp_path / "e", RATE), [0.5, 0])


def test_a_peak_beyond_one_is_kept(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.float32([3, -40000, 0]), RATE, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", RATE), [3, -40000, 0])


def tone(frequency, rate, seconds=1.0):
    return np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate).astype(np.float32)


@pytest.mark.parametrize("rate", [44100, 16000, 11025, 22050, 48000])
def test_resampling_keeps_what_fits_and_lets_nothing_fold_back(tmp_path, rate):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(1000, rate), rate, subtype="FLOAT")
    found = read_audio(path, RATE)
    assert found.dtype == np.float32 and len(found) == RATE
    middle = slice(200, -200)
    np.testing.assert_allclose(found[middle], tone(1000, RATE)[middle], atol=5e-3)
    # 5 kHz would be heard as 3 kHz.
    if rate > 11025:
        soundfile.write(path, tone(5000, rate), rate, subtype="FLOAT")
        assert np.abs(read_audio(path, RATE)[middle]).max() < 5e-3


def test_upsampling_says_nothing(tmp_path, capfd):
    soundfile.write(tmp_path / "a.wav", tone(1000, RATE), RATE, subtype="FLOAT")
    found = read_audio(tmp_path / "a.wav", 16000)
    np.testing.assert_allclose(found[400:-400], tone(1000, 16000)[400:-400], atol=5e-3)
    assert capfd.readouterr() == ("", "")


def test_length_after_resampling_is_rounded_up(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(1), 44100)
    assert read_audio(tmp_path / "a.wav", RATE).shape == (1,)


def test_what_is_no_audio_is_refused(tmp_path):
    refused(tmp_path / "none.wav", "does not exist; a WAV or FLAC file")
    refused(tmp_path, "is a directory")
    refused(written(tmp_path / "0.wav", b""), "damaged, or no WAV or FLAC file: Format not")
    refused(written(tmp_path / "text.wav", b"zero one two\n" * 99), "Format not recognised")
    refused(
        written(tmp_path / "bytes.raw", bytes(range(256)) * 9), "damaged, or no WAV or FLAC file"
    )
    for name, kind in (("a.ogg", "OGG"), ("a.mp3", "MPEG"), ("a.aiff", "AIFF")):
        soundfile.write(tmp_path / name, noise(), RATE)
        refused(tmp_path / name, f"is {kind}.*WAV or FLAC")


def test_no_samples_are_refused(tmp_path):
    refused(written(tmp_path / "a.wav", riff(b"")), "empty: it has 0 samples")
    soundfile.write(tmp_path / "b.wav", np.zeros((0, 1), np.float32), RATE)
    refused(tmp_path / "b.wav", "0 samples")


@pytest.mark.parametrize(("value", "said"), [(np.nan, "nan"), (np.inf, "inf"), (-1e30, "1e\\+30")])
def test_samples_that_are_no_numbers_are_refused(tmp_path, value, said):
    samples = noise()
    samples[1234] = value
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    refused(tmp_path / "a.wav", f"samples of {said}; they must be finite")


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "gsm.wav"])
def test_a_file_that_is_cut_anywhere_is_refused(tmp_path, name):
    subtype = "GSM610" if name == "gsm.wav" else "PCM_16"
    soundfile.write(tmp_path / name, noise(), RATE, subtype=subtype)
    whole = (tmp_path / name).read_bytes()
    read_audio(tmp_path / name, RATE)
    for size in [*range(1, len(whole), len(whole) // 61), len(whole) - 2]:
        path = written(tmp_path / "cut.wav", whole[:size])
        with pytest.raises(UserError, match="cut short|damaged, or no|has 0 samples"):
            read_audio(path, RATE)


def test_how_much_is_missing_is_said(tmp_path):
    path = written(tmp_path / "a.wav", riff(bytes(100), length=130))
    refused(path, "cut short: 30 bytes of the samples")
    # A chunk of an odd length is followed by a byte that it does not count.
    odd = b"LIST" + struct.pack("<I", 5) + b"abcde\0"
    path = written(tmp_path / "a.wav", riff(bytes(100), length=130, before=odd))
    refused(path, "cut short: 30 bytes of the samples")


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFF000, 0x80000000])
def test_lengths_of_programs_that_write_into_pipes_mean_up_to_the_end(tmp_path, length):
    path = written(tmp_path / "a.wav", riff(struct.pack("<3h", 1, 2, 3), length=length))
    np.testing.assert_array_equal(read_audio(path, RATE) * 32768, [1, 2, 3])


def test_a_flac_file_of_unknown_length_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.flac", noise(), RATE)
    content = bytearray((tmp_path / "a.flac").read_bytes())
    # STREAMINFO's 36 bits of "total samples", 0 for unknown.
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    refused(written(tmp_path / "b.flac", content), "does not say in its header how long")


def test_an_hour_is_refused_without_reading_it(tmp_path, monkeypatch):
    monkeypatch.setattr(soundfile.SoundFile, "read", None)
    path = tmp_path / "a.wav"
    size = 3600 * RATE * 2
    with open(path, "wb") as file:
        file.write(riff(b"", length=size))
        file.truncate(file.tell() + size)
    refused(path, r"lasts 3,600.00 s; task.max_seconds=30 are allowed")
    refused(path, r"task.max_seconds=3599.5", max_seconds=3599.5)


def test_the_longest_that_is_allowed_is_read(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(4000), RATE)
    assert len(read_audio(tmp_path / "a.wav", RATE, max_seconds=0.5)) == 4000
    refused(tmp_path / "a.wav", "lasts 0.50 s", max_seconds=0.4999)


@pytest.mark.parametrize("rate", [1, 3999, 400_000, 2**31 - 1])
def test_rates_of_no_recording_are_refused(tmp_path, rate):
    refused(written(tmp_path / "a.wav", riff(bytes(2000), rate=rate)), "4,000 to 384,000")
