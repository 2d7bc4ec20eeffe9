"""Reading texts with labels: a line is a text, a tab and a label.

Nothing is normalised but line ends, which are taken off, and Unicode, which becomes NFC. Files may
be gzipped.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from research.errors import UserError, did_you_mean
from research.tasks.corpora import LABEL_NAMES, LABELLED_TEXTS, fetch
from research.tasks.digests import digests
from research.tasks.parallel_text import (
    LEAST_DISTANCE,
    file_lines,
    held_out,
    split_file,
    split_names,
)

LabelledTexts = list[tuple[str, str]]
"""Texts, each with its label."""


@dataclass(frozen=True, kw_only=True)
class LabelledCorpus:
    """Texts with labels.

    Attributes:
      splits: of "train" and "validation" and, where there is one, "test", in their order.
      labels: the C labels of the training split, sorted.
      left_out: texts of all splits that are left out because they are empty.
      files: {path: sha256 of its bytes}; see `digests`.
    """

    splits: Mapping[str, LabelledTexts]
    labels: tuple[str, ...]
    left_out: int
    files: Mapping[str, str]


def read_labelled(path: str) -> LabelledCorpus:
    """Returns the corpus of `task.path`.

    `path` is a known corpus, or names UTF-8 files:
      "data/{split}.tsv": splits train, validation (or val, valid, dev) and, optionally, test (or
        whatever one name starts with "test").
      "mine.tsv": one file, of which validation and test are held out as
        `research.tasks.parallel_text.read_corpus` does it.
    A label is what follows the last tab of a line, any text.

    Raises UserError for files that are missing, empty or no text, for a line without a label, for
    one label only, and for one that training does not have.
    """
    if path in LABELLED_TEXTS:
        named = LABELLED_TEXTS[path]
        files = {"validation" if s == "dev" else s: fetch(file) for s, file in named.items()}
        splits = {split: _examples(file, LABEL_NAMES[path]) for split, file in files.items()}
    elif "{split}" in path:
        pattern = str(Path(path).expanduser())
        files = {s: split_file(pattern, name) for s, name in split_names(pattern).items()}
        splits = {split: _examples(file) for split, file in files.items()}
    else:
        files = {"train": _file(path)}
        splits = {"train": _examples(files["train"])}
    full = {s: [e for e in examples if e[0].strip()] for s, examples in splits.items()}
    left_out = sum(map(len, splits.values())) - sum(map(len, full.values()))
    if len(files) == 1:
        if len(full["train"]) < 2 * LEAST_DISTANCE:
            raise UserError(
                f"{files['train']} has {len(full['train'])} texts with a label; at least "
                f"{2 * LEAST_DISTANCE} are needed to hold some of them out."
            )
        full = held_out(full["train"])
    labels = tuple(sorted({label for _, label in full["train"]}))
    _check_labels(path, full, labels)
    return LabelledCorpus(
        splits=full, labels=labels, left_out=left_out, files=digests(list(files.values()))
    )


def _file(path: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(
            f"task.path={path!r} is neither a known corpus with labels "
            f"({', '.join(LABELLED_TEXTS)}) nor a file, nor a pattern of files such as "
            f"'data/{{split}}.tsv'.{did_you_mean(path, LABELLED_TEXTS)}"
        )
    return file


def _examples(file: Path, names: Mapping[str, str] | None = None) -> LabelledTexts:
    """Returns the texts of a file, their labels called by `names`."""
    found = []
    for number, line in enumerate(file_lines(file), 1):
        text, tab, label = line.rpartition("\t")
        label = label.strip()
        if not tab or not label:
            raise UserError(f"{file}, line {number}: there is no label; write text<TAB>label.")
        found.append((text, names[label] if names else label))
    return found


def _check_labels(path: str, splits: Mapping[str, LabelledTexts], labels: tuple[str, ...]) -> None:
    if len(labels) < 2:
        raise UserError(
            f"task.path={path!r} has the label {', '.join(map(repr, labels)) or 'none'} alone in "
            "its training split; there must be two or more."
        )
    for split, examples in splits.items():
        if not examples:
            raise UserError(f"task.path={path!r} has no text in its {split} split.")
        if unknown := sorted({label for _, label in examples} - set(labels)):
            raise UserError(
                f"task.path={path!r}: the {split} split has labels that training does not have: "
                f"{unknown[:5]}."
            )
