"""Parallel corpora from files, and one clear line for each that is no corpus."""

import gzip
import unicodedata

import pytest

from research.errors import UserError
from research.tasks import corpora
from research.tasks.text.parallel_text import read_corpus


def write(path, lines, end="\n"):
    path.write_bytes("".join(line + end for line in lines).encode())


def numbered(number, prefix=""):
    return [f"{prefix}{i}" for i in range(number)]


def splits(folder, source="de", target="en", validation="val", **extra):
    """Writes a corpus of 5 pairs for training and 3 for validation; returns its pattern."""
    sizes = {"train": 5, validation: 3, **extra}
    for split, size in sizes.items():
        write(folder / f"{split}.{source}", numbered(size, f"{split} {source} "))
        write(folder / f"{split}.{target}", numbered(size, f"{split} {target} "))
    return str(folder / "{split}.{language}")


@pytest.mark.parametrize("validation", ["validation", "val", "valid", "dev"])
def test_splits_are_found_under_their_usual_names(tmp_path, validation):
    corpus = read_corpus(splits(tmp_path, validation=validation), "de", "en")
    assert {split: len(pairs) for split, pairs in corpus.splits.items()} == {
        "train": 5,
        "validation": 3,
    }
    assert corpus.splits["train"][4] == ("train de 4", "train en 4")
    assert corpus.splits["validation"][0] == (f"{validation} de 0", f"{validation} en 0")
    assert corpus.left_out == 0 and len(corpus.files) == 4


@pytest.mark.parametrize("name", ["test", "test_2016_flickr", "test.lower"])
def test_the_one_test_set_is_found_whatever_follows_in_its_name(tmp_path, name):
    corpus = read_corpus(splits(tmp_path, **{name: 2}), "de", "en")
    assert corpus.splits["test"] == [(f"{name} de {i}", f"{name} en {i}") for i in range(2)]


def test_of_several_test_sets_that_called_test_is_taken(tmp_path):
    pattern = splits(tmp_path, test_a=2, test_b=2)
    with pytest.raises(UserError, match="more than one test set: test_a, test_b. Call the one"):
        read_corpus(pattern, "de", "en")
    splits(tmp_path, test=4)
    assert len(read_corpus(pattern, "de", "en").splits["test"]) == 4


def test_a_split_may_be_a_folder_and_files_may_be_gzipped(tmp_path):
    for split, size in {"train": 5, "valid": 3, "test17": 2}.items():
        (tmp_path / split).mkdir()
        for language in ("cs", "fr"):
            content = "".join(f"{split} {language} {i}\n" for i in range(size)).encode()
            path = tmp_path / split / f"{split}-text.{language}.gz"
            path.write_bytes(gzip.compress(content))
    pattern = str(tmp_path / "{split}" / "{split}-text.{language}")
    plain = read_corpus(pattern, "cs", "fr")
    assert [len(pairs) for pairs in plain.splits.values()] == [5, 3, 2]
    assert plain.splits["test"][1] == ("test17 cs 1", "test17 fr 1")
    assert read_corpus(pattern + ".gz", "cs", "fr") == plain


def test_brackets_in_a_path_are_no_pattern(tmp_path):
    folder = tmp_path / "a[1]{x}"
    folder.mkdir()
    assert len(read_corpus(splits(folder, test=2), "de", "en").splits["test"]) == 2


def test_only_line_ends_are_taken_off_and_unicode_composed(tmp_path):
    # Separators at which splitlines would cut, spaces that say nothing, and a decomposed letter.
    odd = ["a\u2028b", " c  d\t", "e\u0301", "f\x0bg\x85h", "\ufeff"]
    for end in ("\n", "\r\n"):
        for split in ("train", "val"):
            write(tmp_path / f"{split}.de", odd, end)
            write(tmp_path / f"{split}.en", numbered(5), end)
        pairs = read_corpus(str(tmp_path / "{split}.{language}"), "de", "en").splits["train"]
        assert [source for source, _ in pairs] == ["a\u2028b", " c  d\t", "é", *odd[3:]]
    assert unicodedata.is_normalized("NFC", "é") and len("é") == 1


def test_pairs_with_an_empty_side_are_left_out_of_training_alone(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / f"{split}.de", ["a", "", "c", " ", "e"])
        write(tmp_path / f"{split}.en", ["A", "B", "", "D", "E"])
    corpus = read_corpus(str(tmp_path / "{split}.{language}"), "de", "en")
    assert corpus.splits["train"] == [("a", "A"), ("e", "E")]
    assert corpus.left_out == 3
    assert len(corpus.splits["validation"]) == 5


@pytest.mark.parametrize(("number", "held_out"), [(40, 2), (100, 5), (12_345, 617), (30_001, 1000)])
def test_two_files_are_split_into_parts_that_are_disjoint_and_fixed(tmp_path, number, held_out):
    write(tmp_path / "mine.de", numbered(number))
    write(tmp_path / "mine.en", numbered(number, "en "))
    corpus = read_corpus(str(tmp_path / "mine.{language}"), "de", "en")
    found = {split: [int(source) for source, _ in pairs] for split, pairs in corpus.splits.items()}
    assert len(found["validation"]) == held_out <= 1000
    assert len(found["test"]) == held_out
    assert sorted(i for pairs in found.values() for i in pairs) == list(range(number))
    assert all(target == f"en {source}" for source, target in corpus.splits["test"])
    # Spread over the file, not from one end of it.
    if number > 1000:
        assert 0.45 * number < sum(found["validation"]) / held_out < 0.55 * number
    assert corpus == read_corpus(str(tmp_path / "mine.{language}"), "de", "en")


def held_out(folder, pairs, groups=()):
    """Returns the splits of two files of these pairs, and of groups if there are any."""
    for side, language in enumerate(("de", "en")):
        write(folder / f"mine.{language}", [pair[side] for pair in pairs])
    if groups:
        write(folder / "mine.group", groups)
    corpus = read_corpus(str(folder / "mine.{language}"), "de", "en")
    assert sorted(sum(corpus.splits.values(), [])) == sorted(pairs)
    assert all(1 <= len(corpus.splits[split]) for split in ("validation", "test"))
    return corpus


def shared(splits, what):
    """Returns what the training pairs and others have in common."""
    of = {split: {what(pair) for pair in pairs} for split, pairs in splits.items()}
    return of["train"] & (of["validation"] | of["test"]) | of["validation"] & of["test"]


@pytest.mark.parametrize("side", [0, 1])
def test_captions_of_one_picture_are_on_one_side(tmp_path, side):
    captions = [(f"picture {i // 5}", f"caption {i}") for i in range(1250)]
    splits = held_out(tmp_path, [pair if side == 0 else pair[::-1] for pair in captions]).splits
    assert len(splits["validation"]) == len(splits["test"]) == 60
    assert not shared(splits, lambda pair: pair[side])


def test_sentences_that_share_a_source_or_a_target_are_on_one_side(tmp_path):
    # Each pair has its source in common with one and its target with another of a group of six.
    pairs = [(f"s {i // 2}", f"t {i // 6} {(i + 1) % 6 // 2}") for i in range(600)]
    splits = held_out(tmp_path, pairs).splits
    assert len(splits["validation"]) == 30
    assert not shared(splits, lambda pair: int(pair[0].split()[1]) // 3)


def test_a_file_of_groups_says_what_belongs_together(tmp_path):
    captions = [(f"deutsch {i}", f"english {i}") for i in range(1250)]

    def picture(pair):
        return int(pair[0].split()[1]) // 5

    alone = held_out(tmp_path, captions)
    assert shared(alone.splits, picture)  # nothing tells that they belong together
    told = held_out(tmp_path, captions, [f"{i // 5}.jpg" for i in range(1250)])
    assert not shared(told.splits, picture)
    assert len(told.splits["validation"]) == 60
    assert set(told.files) == {"mine.de", "mine.en", "mine.group"}
    write(tmp_path / "mine.group", ["a"] * 9)
    with pytest.raises(UserError, match="mine.group has 9 lines for 1,250 examples; line i"):
        read_corpus(str(tmp_path / "mine.{language}"), "de", "en")


def test_neither_order_nor_period_nor_more_lines_decide_what_is_held_out(tmp_path):
    pairs = [(f"s {i}", f"t {i}") for i in range(400)]
    first = held_out(tmp_path, pairs).splits
    again = held_out(tmp_path, pairs[::-1]).splits
    assert {s: sorted(p) for s, p in first.items()} == {s: sorted(p) for s, p in again.items()}
    places = [pairs.index(pair) for pair in first["validation"]]
    assert len({place % 20 for place in places}) > 5
    more = held_out(tmp_path, pairs + [("s 400", "t 400")]).splits
    assert len(set(more["validation"]) & set(first["validation"])) >= 19


def test_what_is_one_piece_cannot_be_split(tmp_path):
    with pytest.raises(UserError, match="the 50 examples are 1 group.* give a file for each split"):
        held_out(tmp_path, [("ja", f"yes {i}") for i in range(50)])


def broken(folder, what):
    """Makes one thing wrong with a corpus; returns the pattern and the languages."""
    pattern = splits(folder)
    languages = ("de", "en")
    if what == "lengths":
        write(folder / "val.en", numbered(4))
    elif what == "empty":
        (folder / "train.en").write_bytes(b"")
    elif what == "bytes":
        (folder / "train.en").write_bytes(b"one\ntwo\nth\xffee\n")
    elif what == "gzip":
        (folder / "train.en").unlink()
        (folder / "train.en.gz").write_bytes(gzip.compress(b"one\n" * 9)[:-9])
    elif what == "missing":
        (folder / "train.en").unlink()
    elif what == "no validation":
        (folder / "val.de").unlink()
    elif what == "half a test":
        write(folder / "test.de", numbered(2))
    elif what == "all empty":
        write(folder / "train.en", [""] * 5)
    elif what == "same":
        languages = ("de", "de")
    elif what == "odd language":
        languages = ("../de", "en")
    elif what == "no pattern":
        pattern = "multi3k"
    elif what == "short":
        write(folder / "mine.de", numbered(39))
        write(folder / "mine.en", numbered(39))
        pattern = str(folder / "mine.{language}")
    elif what == "unknown language":
        pattern, languages = "multi30k", ("de", "fr")
    return pattern, languages


@pytest.mark.parametrize(
    ("what", "parts"),
    [
        ("lengths", ["val.de has 3 lines and ", "val.en has 4"]),
        ("empty", ["train.en is empty"]),
        ("bytes", ["train.en is not UTF-8", "line 3", "position 10"]),
        ("gzip", ["train.en.gz cannot be read"]),
        ("missing", ["train.en is missing", "task.path="]),
        ("no validation", ["no split for validation", "validation.de", "val, valid, dev"]),
        ("half a test", ["test.en is missing"]),
        ("all empty", ["train.de has no pair of sentences with both sides"]),
        ("same", ["task.source_language and task.target_language are both 'de'"]),
        ("odd language", ["task.source_language='../de'"]),
        ("no pattern", ["task.path='multi3k'", "{language}", "Did you mean 'multi30k'?"]),
        ("short", ["mine.de has 39 pairs", "at least 40"]),
        ("unknown language", ["task.target_language='fr'", "Allowed: de, en"]),
    ],
)
def test_what_is_no_corpus_is_one_clear_line(tmp_path, what, parts):
    pattern, languages = broken(tmp_path, what)
    with pytest.raises(UserError) as error:
        read_corpus(pattern, *languages)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_every_known_corpus_has_checksums():
    for files in corpora.SENTENCE_PAIRS.values():
        for file in files.values():
            assert len(bytes.fromhex(file.sha256)) == 32
            assert file.url.startswith("https://")


def test_known_corpora_are_looked_for_under_data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="multi30k/train.de.gz is not under .* set DATA_DIR"):
        read_corpus("multi30k", "de", "en")
    (tmp_path / "multi30k").mkdir()
    (tmp_path / "multi30k" / "train.de.gz").write_bytes(gzip.compress(b"Hallo.\n"))
    with pytest.raises(UserError, match="not the recorded"):
        read_corpus("multi30k", "de", "en")


def test_multi30k_if_it_is_there():
    file = corpora.SENTENCE_PAIRS["multi30k"]["train.de"]
    if not (corpora.data_directory() / file.path).is_file():
        pytest.skip("Multi30k is not under DATA_DIR")
    corpus = read_corpus("multi30k", "en", "de")
    assert {split: len(pairs) for split, pairs in corpus.splits.items()} == {
        "train": 29_000,
        "validation": 1_014,
        "test": 1_000,
    }
    english, german = corpus.splits["test"][0]
    assert english.startswith("A man in an orange hat") and german.startswith("Ein Mann")
    assert corpus.files[file.path.removeprefix("multi30k/")] == file.sha256
