"""Reads parallel corpora: line i of one file is the translation of line i of the other.

The only normalization is that line ends are removed and Unicode becomes NFC, so that é is always
one character. Files may be gzipped ("x.en.gz").
"""

import glob
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from research.errors import UserError, check_name, did_you_mean
from research.tasks.corpora import SENTENCE_PAIRS, fetch, read_file
from research.tasks.digests import digests
from research.tasks.held_out import (
    HELD_OUT_EVERY,
    PARTS,
    connected_groups,
    hold_out,
    normalize_text,
)

VALIDATION_NAMES = ("validation", "val", "valid", "dev")
Example = TypeVar("Example")
GROUP = "group"
"""Replaces the language in the name of the file that assigns examples to groups."""

Pairs = list[tuple[str, str]]
"""Pairs of a source sentence and a target sentence."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Sentence pairs.

    Attributes:
      splits: pairs of "train", "validation" and, if it exists, "test", in the order of the files.
      left_out: number of pairs left out because a side is empty.
      files: {path: sha256 of its bytes}; see `digests`.
    """

    splits: Mapping[str, Pairs]
    left_out: int
    files: Mapping[str, str]


def read_corpus(path: str, source: str, target: str) -> Corpus:
    """Returns the corpus of `task.path` with languages such as "de" and "en".

    `path` is a known corpus, or a pattern of UTF-8 files:
      "data/{split}.{language}": splits train, validation (or val, valid, dev) and, optionally, test
        (or a single split whose name starts with "test").
      "mine.{language}": two files, of which validation and test are held out, 5 % each and at most
        1,000 pairs; see research/tasks/held_out.py. Pairs with the same source or target stay in
        the same split, as do pairs with the same line in an optional third file, "mine.group",
        which names what they belong to, such as a captioned picture or a document. An empty line
        there means no group.
    Pairs with an empty side are left out, except in validation and test files.

    Raises UserError for files that are missing, empty, not text, or of different lengths.
    """
    for key, language in (("source", source), ("target", target)):
        if not re.fullmatch(r"[\w.-]+", language):
            raise UserError(f"task.{key}_language={language!r} must be a name such as 'de'.")
    if source == target:
        raise UserError(
            f"task.source_language and task.target_language are both {source!r}; "
            "a translation has two languages."
        )
    if path in SENTENCE_PAIRS:
        return _known(path, source, target)
    if "{language}" not in path:
        raise UserError(
            f"task.path={path!r} is neither a known parallel corpus ({', '.join(SENTENCE_PAIRS)}) "
            "nor a pattern of files with {language}, such as 'data/{split}.{language}'."
            f"{did_you_mean(path, SENTENCE_PAIRS)}"
        )
    return _pattern(str(Path(path).expanduser()), source, target)


def _known(name: str, source: str, target: str) -> Corpus:
    """Returns a known corpus, which is downloaded if missing."""
    files = SENTENCE_PAIRS[name]
    languages = {file.rsplit(".", 1)[1] for file in files}
    check_name("task.source_language", source, languages)
    check_name("task.target_language", target, languages)
    splits = dict.fromkeys(file.rsplit(".", 1)[0] for file in files)
    return _splits(
        {
            _canonical(split): (
                fetch(files[f"{split}.{source}"]),
                fetch(files[f"{split}.{target}"]),
            )
            for split in splits
        }
    )


def _canonical(split: str) -> str:
    """Returns the standard name of a split: "train", "validation" or "test"."""
    if split in VALIDATION_NAMES:
        return "validation"
    return "test" if split.startswith("test") else split


def _pattern(pattern: str, source: str, target: str) -> Corpus:
    """Returns the corpus of a pattern of files."""
    if "{split}" not in pattern:
        return _held_out(pattern, source, target)
    return _splits(
        {
            split: (split_file(pattern, name, source), split_file(pattern, name, target))
            for split, name in split_names(pattern, source).items()
        }
    )


def split_names(pattern: str, language: str = "") -> dict[str, str]:
    """Returns {split: its name in the pattern's files}, such as {"validation": "dev", ...}.

    Always contains "validation", and "test" if it exists. Raises UserError.
    """
    names = {"train": "train", "validation": _validation(pattern, language)}
    tests = _tests(pattern, language)
    if len(tests) > 1 and "test" not in tests:
        raise UserError(
            f"task.path={pattern!r} matches more than one test set: {', '.join(tests)}. "
            "Call the one to use 'test'."
        )
    if tests:
        names["test"] = "test" if "test" in tests else tests[0]
    return names


def split_file(pattern: str, split: str, language: str = "") -> Path:
    """Returns the file of a split and language. Raises UserError if it is missing."""
    path = _filled(pattern, split, language)
    found = _existing(path)
    if found is None:
        raise UserError(f"{path} is missing; task.path={pattern!r} asks for it.")
    return found


def _filled(pattern: str, split: str, language: str) -> str:
    return pattern.replace("{split}", split).replace("{language}", language)


def _existing(path: str) -> Path | None:
    return next((p for p in (Path(path), Path(path + ".gz")) if p.is_file()), None)


def _validation(pattern: str, language: str) -> str:
    """Returns the name of the validation split in the files. Raises UserError if there is none."""
    for name in VALIDATION_NAMES:
        if _existing(_filled(pattern, name, language)):
            return name
    raise UserError(
        f"task.path={pattern!r} has no split for validation: there is no "
        f"{_filled(pattern, VALIDATION_NAMES[0], language)} (nor "
        f"{', '.join(VALIDATION_NAMES[1:])})."
    )


def _tests(pattern: str, language: str) -> list[str]:
    """Returns the names of the splits in the files that start with "test"."""
    stars = glob.escape(pattern).replace("{split}", "test*").replace("{language}", language)
    before, *after = (re.escape(part) for part in _filled(pattern, "\0", language).split("\0"))
    shape = before + "(test[^/]*)" + r"\1".join(after) + r"(\.gz)?"
    matches = [re.fullmatch(shape, p) for s in (stars, stars + ".gz") for p in glob.glob(s)]
    return sorted({m[1] for m in matches if m})


def _splits(files: Mapping[str, tuple[Path, Path]]) -> Corpus:
    """Returns the corpus of {split: (source file, target file)}."""
    splits = {split: _pairs(*both) for split, both in files.items()}
    train = _full(splits["train"])
    if not train:
        raise UserError(f"{files['train'][0]} has no pair of sentences with both sides.")
    return Corpus(
        splits={**splits, "train": train},
        left_out=len(splits["train"]) - len(train),
        files=digests([path for both in files.values() for path in both]),
    )


def _held_out(pattern: str, source: str, target: str) -> Corpus:
    """Returns the corpus of two files, with validation and test held out; see `read_corpus`."""
    files = [split_file(pattern, "", language) for language in (source, target)]
    everything = _pairs(*files)
    kept = [i for i, pair in enumerate(everything) if all(side.strip() for side in pair)]
    pairs = [everything[i] for i in kept]
    check_enough(files[0], len(pairs), "pairs of sentences with both sides")
    of_file, extra = read_groups(_filled(pattern, "", GROUP), len(everything))
    keys = [{(side, normalize_text(pair[side])) for side in (0, 1)} for pair in pairs]
    groups = connected_groups([some | of_file[i] for some, i in zip(keys, kept, strict=True)])
    splits = hold_out(["\t".join(pair) for pair in pairs], groups)
    return Corpus(
        splits=in_splits(pairs, splits),
        left_out=len(everything) - len(pairs),
        files=digests([*files, *extra]),
    )


def check_enough(file: Path, number: int, what: str) -> None:
    """Raises UserError if there are too few examples to hold some of them out."""
    if number < 2 * HELD_OUT_EVERY:
        raise UserError(
            f"{file} has {number} {what}; at least {2 * HELD_OUT_EVERY} are needed to hold some of "
            "them out."
        )


def read_groups(path: str, lines: int) -> tuple[list[set], list[Path]]:
    """Returns the group key of each line as a set (empty: no group), and [the file] if it exists.

    Raises UserError if the file's number of lines differs from the text's.
    """
    file = _existing(path)
    if file is None:
        return [set()] * lines, []
    named = file_lines(file)
    if len(named) != lines:
        raise UserError(
            f"{file} has {len(named):,} lines for {lines:,} examples; line i must name what "
            "example i belongs to."
        )
    return [{(GROUP, name.strip())} if name.strip() else set() for name in named], [file]


def in_splits(examples: Sequence[Example], splits: Sequence[str]) -> dict[str, list[Example]]:
    """Returns {split: its examples} for "train", "validation" and "test", in order."""
    both = list(zip(examples, splits, strict=True))
    return {name: [e for e, split in both if split == name] for name in ("train", *PARTS)}


def _full(pairs: Pairs) -> Pairs:
    return [pair for pair in pairs if all(side.strip() for side in pair)]


def _pairs(source: Path, target: Path) -> Pairs:
    """Returns the pairs of two files. Raises UserError if their numbers of lines differ."""
    sources, targets = file_lines(source), file_lines(target)
    if len(sources) != len(targets):
        raise UserError(
            f"{source} has {len(sources):,} lines and {target} has {len(targets):,}; "
            "line i of one must be the translation of line i of the other."
        )
    return list(zip(sources, targets, strict=True))


def file_lines(path: Path) -> list[str]:
    """Returns the lines of a file. Raises UserError if there are none."""
    # Not splitlines, which also splits at characters such as U+2028; these may occur in only one of
    # the two languages and would misalign the files.
    text = read_file(path).removeprefix("\ufeff")
    lines = unicodedata.normalize("NFC", text).split("\n")
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise UserError(f"{path} is empty; it must have one sentence per line.")
    return [line.removesuffix("\r") for line in lines]
