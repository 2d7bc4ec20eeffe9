"""Texts with labels from files, and one clear line for each that is none."""

import gzip

import pytest

from research.errors import UserError
from research.tasks import corpora, labelled_text
from research.tasks.labelled_text import read_labelled


def write(path, rows):
    path.write_text("".join(f"{text}\t{label}\n" for text, label in rows), encoding="utf-8")


def splits(folder, **extra):
    rows = {"train": [("a b", "x"), ("c", "y")], "dev": [("d", "y")], "test": [("e", "x")]}
    for split, lines in (rows | extra).items():
        write(folder / f"{split}.tsv", lines)
    return str(folder / "{split}.tsv")


def test_splits_are_read(tmp_path):
    pattern = splits(tmp_path, train=[("a\tb", "x"), (" ", "y"), ("c", " y ")])
    corpus = read_labelled(pattern)
    assert corpus.splits == {
        "train": [("a\tb", "x"), ("c", "y")],
        "validation": [("d", "y")],
        "test": [("e", "x")],
    }
    assert corpus.labels == ("x", "y") and corpus.left_out == 1 and len(corpus.files) == 3


def test_gzipped_and_without_a_test(tmp_path):
    for split in ("train", "valid"):
        (tmp_path / f"{split}.gz").write_bytes(gzip.compress("ü\tnein\r\no\tja\r\n".encode()))
    corpus = read_labelled(str(tmp_path / "{split}.gz"))
    assert list(corpus.splits) == ["train", "validation"]
    assert corpus.splits["train"] == [("ü", "nein"), ("o", "ja")]
    assert corpus.labels == ("ja", "nein")


def test_of_one_file_parts_are_held_out(tmp_path):
    write(tmp_path / "all.tsv", [(str(i), "xy"[i % 2]) for i in range(100)])
    corpus = read_labelled(str(tmp_path / "all.tsv"))
    numbers = {split: [int(text) for text, _ in rows] for split, rows in corpus.splits.items()}
    assert sorted(sum(numbers.values(), [])) == list(range(100))
    assert len(numbers["validation"]) == len(numbers["test"]) == 5


def test_a_known_corpus_is_fetched_and_its_labels_have_names(tmp_path, monkeypatch):
    splits(tmp_path, train=[("a", 0), ("b", 1)], dev=[("c", 1)], test=[("d", 0)])
    fetched = []

    def fetch(file):
        fetched.append(file.url)
        return tmp_path / file.path.removeprefix("sst2/")

    monkeypatch.setattr(labelled_text, "fetch", fetch)
    corpus = read_labelled("sst2")
    assert corpus.labels == ("negative", "positive")
    assert corpus.splits["test"] == [("d", "negative")]
    assert [url.rsplit("/", 2)[1:] for url in fetched] == [
        ["SST2", "train.tsv"],
        ["SST2", "dev.tsv"],
        ["SST2", "test.tsv"],
    ]


def test_bytes_that_are_not_the_recorded_ones_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    (tmp_path / "sst2").mkdir()
    splits(tmp_path / "sst2")
    with pytest.raises(UserError, match="train.tsv has sha256 .*, not the recorded ec192f83"):
        read_labelled("sst2")
    assert len({file.sha256 for file in corpora.LABELLED_TEXTS["sst2"].values()}) == 3


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ({"train": [("a", "x"), ("b", "")]}, ["train.tsv, line 2", "text<TAB>label"]),
        ({"train": [("a", "x"), ("b", "x")]}, ["'x' alone", "two or more"]),
        ({"dev": [("a", "z")]}, ["validation split", "['z']"]),
        ({"test": [(" ", "x")]}, ["no text in its test split"]),
    ],
)
def test_what_is_no_corpus_is_one_line(tmp_path, rows, parts):
    with pytest.raises(UserError) as error:
        read_labelled(splits(tmp_path, **rows))
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_lines_without_a_tab_and_files_that_are_missing(tmp_path):
    pattern = splits(tmp_path)
    (tmp_path / "dev.tsv").write_text("good\n")
    with pytest.raises(UserError, match=r"dev.tsv, line 1: there is no label"):
        read_labelled(pattern)
    (tmp_path / "dev.tsv").unlink()
    with pytest.raises(UserError, match="no split for validation"):
        read_labelled(pattern)
    with pytest.raises(UserError, match="'sst' is neither.*Did you mean 'sst2'"):
        read_labelled("sst")
    write(tmp_path / "few.tsv", [("a", "x")] * 39)
    with pytest.raises(UserError, match="few.tsv has 39 texts with a label; at least 40"):
        read_labelled(str(tmp_path / "few.tsv"))
