"""Reads labelled texts: each line is a text, a tab and a label.

The only normalization is that line ends are removed and Unicode becomes NFC. Files may be gzipped.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from research.errors import UserError, did_you_mean
from research.tasks.corpora import LABEL_NAMES, LABELLED_TEXTS, fetch
from research.tasks.digests import digests
from research.tasks.held_out import connected_groups, hold_out, normalize_text
from research.tasks.text.parallel_text import (
    GROUP,
    check_enough,
    file_lines,
    in_splits,
    read_groups,
    split_file,
    split_names,
)

LabelledTexts = list[tuple[str, str]]
"""Pairs of a text and its label."""


@dataclass(frozen=True, kw_only=True)
class LabelledCorpus:
    """Texts with labels.

    Attributes:
      splits: texts of "train", "validation" and, if it exists, "test", in the order of the files.
      labels: the C labels of the training split, sorted.
      left_out: number of texts, over all splits, left out because they are empty.
      files: {path: sha256 of its bytes}; see `digests`.
    """

    splits: Mapping[str, LabelledTexts]
    labels: tuple[str, ...]
    left_out: int
    files: Mapping[str, str]


def read_labelled(path: str) -> LabelledCorpus:
    """Returns the corpus of `task.path`.

    `path` is a known corpus, or names UTF-8 files:
      "data/{split}.tsv": splits train, validation (or val, valid, dev) and, optionally, test (or a
        single split whose name starts with "test").
      "mine.tsv": one file, of which validation and test are held out, 5 % of each label and at most
        1,000 texts; see research/tasks/held_out.py. Equal texts stay in the same split, as do texts
        with the same line in an optional file "mine.group", which names what they belong to, such
        as an author. An empty line there means no group.
    The label is the text after the last tab of a line.

    Raises UserError for files that are missing, empty or not text, for a line without a label, for
    a split with only one label, and for a label that does not occur in training.
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
    read = list(files.values())
    if len(files) == 1:
        full, extra = _held_out(files["train"], splits["train"])
        read += extra
    labels = tuple(sorted({label for _, label in full["train"]}))
    _check_labels(path, full, labels)
    return LabelledCorpus(splits=full, labels=labels, left_out=left_out, files=digests(read))


def _file(path: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(
            f"task.path={path!r} is neither a known corpus with labels "
            f"({', '.join(LABELLED_TEXTS)}) nor a file, nor a pattern of files such as "
            f"'data/{{split}}.tsv'.{did_you_mean(path, LABELLED_TEXTS)}"
        )
    return file


def _held_out(file: Path, examples: LabelledTexts) -> tuple[dict[str, LabelledTexts], list[Path]]:
    """Returns the texts of one file divided into splits, and [the group file] if it exists."""
    kept = [i for i, (text, _) in enumerate(examples) if text.strip()]
    texts = [examples[i] for i in kept]
    check_enough(file, len(texts), "texts with a label")
    of_file, extra = read_groups(str(_stem(file).with_suffix(f".{GROUP}")), len(examples))
    keys = [{normalize_text(text)} | of_file[i] for (text, _), i in zip(texts, kept, strict=True)]
    labels = [label for _, label in texts]
    splits = hold_out([text for text, _ in texts], connected_groups(keys), labels)
    return in_splits(texts, splits), extra


def _stem(file: Path) -> Path:
    return file.with_suffix("") if file.suffix == ".gz" else file


def _examples(file: Path, names: Mapping[str, str] | None = None) -> LabelledTexts:
    """Returns the labelled texts of a file, with labels renamed by `names`."""
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
        found = {label for _, label in examples}
        if len(found) == 1:
            raise UserError(
                f"task.path={path!r} has the label {found.pop()!r} alone in its {split} split; "
                "there must be two or more, or a constant answer is always right."
            )
        if unknown := sorted({label for _, label in examples} - set(labels)):
            raise UserError(
                f"task.path={path!r}: the {split} split has labels that training does not have: "
                f"{unknown[:5]}."
            )
