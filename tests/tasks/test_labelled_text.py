"""Texts with labels from files, and one clear line for each that is none."""

import gzip
import random
from collections import Counter

import pytest

from research.errors import UserError
from research.tasks import corpora
from research.tasks.text import labelled_text
from research.tasks.text.labelled_text import read_labelled


def write(path, rows):
    path.write_text("".join(f"{text}\t{label}\n" for text, label in rows), encoding="utf-8")


def splits(folder, **extra):
    both = [("d", "y"), ("e", "x")]
    rows = {"train": [("a b", "x"), ("c", "y")], "dev": both, "test": both[::-1]}
    for split, lines in (rows | extra).items():
        write(folder / f"{split}.tsv", lines)
    return str(folder / "{split}.tsv")


def test_splits_are_read(tmp_path):
    pattern = splits(tmp_path, train=[("a\tb", "x"), (" ", "y"), ("c", " y ")])
    corpus = read_labelled(pattern)
    assert corpus.splits == {
        "train": [("a\tb", "x"), ("c", "y")],
        "validation": [("d", "y"), ("e", "x")],
        "test": [("e", "x"), ("d", "y")],
    }
    assert corpus.labels == ("x", "y") and corpus.left_out == 1 and len(corpus.files) == 3


def test_gzipped_and_without_a_test(tmp_path):
    for split in ("train", "valid"):
        (tmp_path / f"{split}.gz").write_bytes(gzip.compress("ü\tnein\r\no\tja\r\n".encode()))
    corpus = read_labelled(str(tmp_path / "{split}.gz"))
    assert list(corpus.splits) == ["train", "validation"]
    assert corpus.splits["train"] == [("ü", "nein"), ("o", "ja")]
    assert corpus.labels == ("ja", "nein")


def held_out(folder, rows, groups=()):
    """Returns the splits of a file of rows, and of groups if there are any."""
    write(folder / "all.tsv", rows)
    if groups:
        (folder / "all.group").write_text("".join(f"{group}\n" for group in groups))
    corpus = read_labelled(str(folder / "all.tsv"))
    assert sorted(sum(corpus.splits.values(), [])) == sorted(rows)
    return corpus.splits


@pytest.mark.parametrize("period", [2, 4, 5, 20])
def test_of_one_file_parts_of_each_label_are_held_out(tmp_path, period):
    # Every 20th line would be of one label alone.
    rows = [(f"text {i}", str(i % period)) for i in range(200)]
    found = held_out(tmp_path, rows)
    each = max(1, 10 // period)
    for split in ("validation", "test"):
        labels = Counter(label for _, label in found[split])
        assert set(labels.values()) == {each} and len(labels) == period


def test_the_order_of_a_file_is_no_part_of_its_splits(tmp_path):
    rows = [(f"text {i}", "xyz"[i % 3]) for i in range(300)]
    first = held_out(tmp_path, rows)
    random.Random(0).shuffle(rows)
    again = held_out(tmp_path, rows)
    assert {s: sorted(e) for s, e in first.items()} == {s: sorted(e) for s, e in again.items()}
    assert again["train"] != first["train"]


def test_a_text_that_comes_again_is_on_one_side(tmp_path):
    rows = [(f"{'Text' if i < 100 else ' text '} {i % 100}", "xy"[i % 2]) for i in range(200)]
    found = held_out(tmp_path, rows)
    texts = {s: {text.lower().split()[1] for text, _ in some} for s, some in found.items()}
    assert len(found["validation"]) == len(found["test"]) == 8 and len(texts["validation"]) == 4
    assert not texts["train"] & (texts["validation"] | texts["test"])
    assert not texts["validation"] & texts["test"]


def test_texts_of_one_author_are_on_one_side(tmp_path):
    rows = [(f"text {i}", "xy"[i // 4 % 2]) for i in range(200)]
    found = held_out(tmp_path, rows, groups=[f"author {i // 4}" for i in range(200)])
    authors = {s: {int(text.split()[1]) // 4 for text, _ in some} for s, some in found.items()}
    assert not authors["train"] & (authors["validation"] | authors["test"])
    assert len(found["validation"]) == len(found["test"]) == 8
    assert {label for _, label in found["validation"]} == {"x", "y"}


def test_a_rare_label_stays_in_training(tmp_path):
    rows = [(f"text {i}", "z" if i < 2 else "xy"[i % 2]) for i in range(100)]
    found = held_out(tmp_path, rows)
    assert ("text 0", "z") in found["train"] and ("text 1", "z") in found["train"]


def test_splits_with_one_label_are_refused(tmp_path):
    rows = [(f"text {i}", "y" if i < 2 else "x") for i in range(100)]
    with pytest.raises(UserError, match="'x' alone in its validation split; .* two or more"):
        held_out(tmp_path, rows)


def test_a_known_corpus_is_fetched_and_its_labels_have_names(tmp_path, monkeypatch):
    rows = [("d", 0), ("c", 1)]
    splits(tmp_path, train=[("a", 0), ("b", 1)], dev=rows, test=rows)
    fetched = []

    def fetch(file):
        fetched.append(file.url)
        return tmp_path / file.path.removeprefix("sst2/")

    monkeypatch.setattr(labelled_text, "fetch", fetch)
    corpus = read_labelled("sst2")
    assert corpus.labels == ("negative", "positive")
    assert corpus.splits["test"] == [("d", "negative"), ("c", "positive")]
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
        ({"dev": [("a", "z"), ("b", "x")]}, ["validation split", "['z']"]),
        ({"test": [(" ", "x")]}, ["no text in its test split"]),
        ({"dev": [("a", "x")]}, ["the label 'x' alone in its validation split", "two or more"]),
        ({"test": [("a", "y")]}, ["the label 'y' alone in its test split"]),
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
