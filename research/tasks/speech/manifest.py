"""Lists the recordings and transcripts of a speech corpus, from a manifest or a known name."""

import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from research.errors import UserError, check_name, did_you_mean
from research.tasks.corpora import FSDD, FSDD_SPEAKERS, data_directory, fetch_folder, read_file
from research.tasks.digests import digests, file_digest, listing_digest
from research.tasks.held_out import PARTS, connected_groups, hold_out
from research.tasks.text.parallel_text import VALIDATION_NAMES, check_enough

COLUMNS = ("path", "transcript", "speaker", "split")
SPLITS = ("train", "validation", "test")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TRANSCRIPT_NAMES = ("transcript", "transcription", "text", "sentence")


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """A recording with its transcript.

    Attributes:
      path: path of the audio file.
      text: transcript.
      speaker: name of the speaker; "": unknown.
      split: one of `SPLITS`; "": unspecified.
    """

    path: Path
    text: str
    speaker: str = ""
    split: str = ""


def read_manifest(path: Path | str) -> list[Utterance]:
    """Reads the recordings listed in a tab-separated file, in order.

    Each UTF-8 line has path, transcript and optionally speaker, and split (train, validation or
    test; also val, valid and dev). All lines have as many columns as the first, which may be a
    header ("path", "transcript", ...). Paths are relative to the manifest's folder. There is no
    quoting. Transcripts are stripped of surrounding spaces and become Unicode NFC. The speaker may
    be empty.

    Raises UserError with the number of the first invalid line: wrong number of columns, empty
    transcript, unknown split, or a file that is missing or listed twice.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}; a tab-separated file of paths and transcripts is needed.")
    # Not splitlines, which also splits at characters such as U+2028.
    lines = read_file(path).removeprefix("\ufeff").split("\n")
    rows = [
        (number, line.removesuffix("\r").split("\t"))
        for number, line in enumerate(lines, 1)
        if number < len(lines) or line
    ]
    if rows and _is_header(rows[0][1]):
        width = len(rows.pop(0)[1])
    else:
        width = len(rows[0][1]) if rows else 0
    if not rows:
        raise UserError(f"{path} lists no recording.")
    seen: dict[str, int] = {}
    return [_utterance(path, number, row, width, seen) for number, row in rows]


def _is_header(row: Sequence[str]) -> bool:
    names = [name.strip().lower() for name in row]
    return len(names) > 1 and names[0] == COLUMNS[0] and names[1] in _TRANSCRIPT_NAMES


def _utterance(
    manifest: Path, number: int, row: Sequence[str], width: int, seen: dict[str, int]
) -> Utterance:
    """Parses one line. `seen` maps files to the line that lists them, and is updated."""
    where = f"{manifest}, line {number}"
    if len(row) != width or not 2 <= width <= len(COLUMNS):
        expected = width if 2 <= width <= len(COLUMNS) else "2 to 4"
        raise UserError(
            f"{where}: {len(row)} tab-separated column(s), not {expected} "
            f"({', '.join(COLUMNS[:2])}[, {'[, '.join(COLUMNS[2:])}]])."
        )
    file, text, speaker, split = (cell.strip() for cell in (*row, "", "")[: len(COLUMNS)])
    if not text:
        raise UserError(f"{where}: the transcript is empty.")
    split = "validation" if split in VALIDATION_NAMES else split
    if split not in SPLITS and width == len(COLUMNS):
        raise UserError(f"{where}: split {split!r} is none of {', '.join(SPLITS)}.")
    located = os.path.normpath(manifest.parent / Path(file))
    # Not Path.is_file, which raises an exception if the name is too long.
    if not os.path.isfile(located):
        raise UserError(f"{where}: there is no file {located}.")
    if located in seen:
        raise UserError(f"{where}: {located} is already listed in line {seen[located]}.")
    seen[located] = number
    return Utterance(
        path=Path(located),
        text=unicodedata.normalize("NFC", text),
        speaker=speaker,
        split=split,
    )


def fsdd() -> list[Utterance]:
    """Returns the 3,000 recordings of the Free Spoken Digit Dataset, by digit, speaker and index.

    English digits, six speakers, 50 recordings each of every digit. The test set is the official
    one, index 0 to 4 (300); of the official training recordings, index 5 to 9 (300) are used for
    validation and 10 to 49 (2,400) for training. The text is the word, such as "seven".

    Downloads the recordings if they are missing; see `fetch_folder`.
    """
    folder = fetch_folder(FSDD)
    return [
        Utterance(
            path=folder / f"{digit}_{speaker}_{index}.wav",
            text=word,
            speaker=speaker,
            split="test" if index < 5 else "validation" if index < 10 else "train",
        )
        for digit, word in enumerate(DIGITS)
        for speaker in FSDD_SPEAKERS
        for index in range(50)
    ]


def read_recordings(path: str, held_out_speaker: str = "") -> dict[str, list[Utterance]]:
    """Returns the recordings of `task.path` as {"train": ..., "validation": ..., "test": ...}.

    `path` is "fsdd" or the path of a manifest. If a manifest has no column for splits, validation
    and test are held out, 5 % each and at most 1,000 recordings; see research/tasks/held_out.py. If
    the manifest names enough speakers for every split to have one, all recordings of a speaker stay
    in the same split, so that splits may be larger. Identical recordings always stay in the same
    split.

    With a `held_out_speaker`, the test set consists of all recordings of that speaker; test
    recordings of other speakers are left out.

    Raises UserError for an unknown speaker, and for a train or validation split without recordings.
    """
    if path == "fsdd":
        utterances = fsdd()
    elif os.path.isfile(Path(path).expanduser()):
        utterances = read_manifest(path)
    else:
        raise UserError(
            f"task.path={path!r} is neither a known corpus of recordings (fsdd) nor a manifest: a "
            f"tab-separated file of paths and transcripts.{did_you_mean(path, ['fsdd'])}"
        )
    tested, others, parts = [], utterances, PARTS
    if held_out_speaker:
        tested, others = _of_speaker(utterances, held_out_speaker)
        parts = ("validation",)
    if not any(utterance.split for utterance in utterances):
        check_enough(Path(path), len(utterances), "recordings and no splits")
        others = _held_out(others, parts)
    if held_out_speaker:
        others = [u for u in others if u.split != "test"]
    utterances = [*others, *(replace(u, split="test") for u in tested)]
    splits = {name: [u for u in utterances if u.split == name] for name in SPLITS}
    for name in ("train", "validation"):
        if not splits[name]:
            raise UserError(f"task.path={path!r} has no recording for {name}.")
    return splits


def file_digests(path: str, utterances: Iterable[Utterance]) -> dict[str, str]:
    """Returns {name: sha256} of the manifest `task.path`, and one digest of all its recordings.

    Paths of recordings are relative to the manifest's folder, so that both may be moved.
    """
    known = path == "fsdd"
    folder = data_directory() if known else Path(path).expanduser().parent
    found = {os.path.relpath(u.path, folder): file_digest(u.path) for u in utterances}
    own = {} if known else digests([Path(path).expanduser()])
    return {**own, "recordings": listing_digest(found)}


def _held_out(utterances: Sequence[Utterance], parts: Sequence[str]) -> list[Utterance]:
    """Returns the recordings with splits set; `parts` are held out, see `read_recordings`."""
    contents = [file_digest(utterance.path) for utterance in utterances]
    speakers = {utterance.speaker for utterance in utterances} - {""}
    apart = speakers if len(speakers) > len(parts) else set()
    keys = [
        {content, *({("speaker", u.speaker)} if u.speaker in apart else ())}
        for content, u in zip(contents, utterances, strict=True)
    ]
    splits = hold_out(contents, connected_groups(keys), parts=parts)
    return [replace(u, split=split) for u, split in zip(utterances, splits, strict=True)]


def _of_speaker(
    utterances: Sequence[Utterance], speaker: str
) -> tuple[list[Utterance], list[Utterance]]:
    """Returns the recordings of a speaker, and all others. Raises UserError if unknown."""
    speakers = {u.speaker for u in utterances} - {""}
    if not speakers:
        raise UserError(
            f"task.held_out_speaker={speaker!r}: the manifest names no speakers; its third column "
            "is for them."
        )
    check_name("task.held_out_speaker", speaker, speakers)
    mine = [u for u in utterances if u.speaker == speaker]
    return mine, [u for u in utterances if u.speaker != speaker]
