"""Recordings from manifests and from the Free Spoken Digit Dataset, there or downloaded."""

import io
import tarfile
import urllib.request
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from research.errors import UserError
from research.tasks import corpora
from research.tasks.corpora import FSDD, RemoteFolder, fetch_folder
from research.tasks.speech import manifest
from research.tasks.speech.manifest import fsdd, read_manifest, read_recordings

URLOPEN = urllib.request.urlopen  # before it is replaced for each test


@pytest.fixture
def folder(tmp_path):
    """A folder with files 0.wav to 59.wav that differ; nobody asks whether they are recordings."""
    for i in range(60):
        (tmp_path / f"{i}.wav").write_bytes(b"%d" % i)
    return tmp_path


def listed(folder, content):
    path = folder / "manifest.tsv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_two_columns(folder):
    first, second = read_manifest(listed(folder, "0.wav\tone two\n1.wav\t three \n"))
    assert first == manifest.Utterance(path=folder / "0.wav", text="one two")
    assert second.text == "three" and second.speaker == "" and second.split == ""


@pytest.mark.parametrize("header", ["path\ttranscript\tspeaker\tsplit\n", "Path\tTEXT\tx\ty\n", ""])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_four_columns(folder, header, end, start):
    rows = "0.wav\ta\tann\ttrain\n1.wav\tb\t\tdev\n2.wav\tc\tbo\ttest"
    path = listed(folder, start + (header + rows).replace("\n", end))
    assert [(u.path.name, u.text, u.speaker, u.split) for u in read_manifest(path)] == [
        ("0.wav", "a", "ann", "train"),
        ("1.wav", "b", "", "validation"),
        ("2.wav", "c", "bo", "test"),
    ]


def test_paths_start_in_the_manifest_s_folder(folder, monkeypatch):
    (folder / "deep er").mkdir()
    monkeypatch.chdir(folder / "deep er")
    path = folder / "deep er" / "m.tsv"
    path.write_text(f"../0.wav\ta\n{folder}/1.wav\tb\n")
    assert [u.path for u in read_manifest("m.tsv")] == [Path("../0.wav"), folder / "1.wav"]
    assert [u.path for u in read_manifest(path)] == [folder / "0.wav", folder / "1.wav"]


def test_transcripts_are_composed_and_quotes_are_letters(folder):
    path = listed(folder, '0.wav\te\u0301 "x\u2028y\n')
    assert [u.text for u in read_manifest(path)] == ['\u00e9 "x\u2028y']


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("0.wav\ta\n1.wav\n", r"line 2: 1 tab-separated column\(s\), not 2 "),
        ("0.wav\ta\n\n1.wav\tb\n", r"line 2: 1 tab-separated column\(s\), not 2 "),
        ("0.wav\ta\tann\n1.wav\tb\n", r"line 2: 2 .* not 3 \(path, transcript\[, speaker\[, split"),
        ("path\ttext\tx\n0.wav\ta\n", "line 2: 2 .* not 3 "),
        ("0.wav a\n", "line 1: 1 .* not 2 to 4"),
        ("0.wav\ta\tb\ttrain\tx\n", "line 1: 5 .* not 2 to 4"),
        ("0.wav\ta\n1.wav\t  \n", "line 2: the transcript is empty"),
        ("0.wav\ta\n60.wav\tb\n", "line 2: there is no file .*60.wav"),
        ("\ta\n", "line 1: there is no file "),
        ("so " * 200 + "long\t0.wav\n", "line 1: there is no file .*long"),
        ("0.wav\0\ta\n", "line 1: there is no file "),
        ("0.wav\ta\n1.wav\tb\n./0.wav\tc\n", "line 3: .*0.wav is already listed in line 1"),
        ("path\ttext\n0.wav\ta\n0.wav\tc\n", "line 3: .*0.wav is already listed in line 2"),
        ("0.wav\ta\tann\teval\n", "line 1: split 'eval' is none of train, validation, test"),
        ("0.wav\ta\tann\t\n", "line 1: split '' is none of"),
        (b"0.wav\ta\n1.wav\t\xff\n", "not UTF-8 text: line 2"),
        ("", "lists no recording"),
        ("path\ttranscript\n", "lists no recording"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(folder, content, match):
    with pytest.raises(UserError, match=match) as raised:
        read_manifest(listed(folder, content))
    assert "\n" not in str(raised.value) and "manifest.tsv" in str(raised.value)


def test_no_manifest_is_said(folder):
    with pytest.raises(UserError, match="x.tsv does not exist; a tab-separated file"):
        read_manifest(folder / "x.tsv")
    with pytest.raises(UserError, match="is a directory; a tab-separated file"):
        read_manifest(folder)
    with pytest.raises(UserError, match="task.path='fsd' is neither .* Did you mean 'fsdd'"):
        read_recordings("fsd")


def numbered(folder, number, row="{i}.wav\t{i}\n"):
    return str(listed(folder, "".join(row.format(i=i) for i in range(number))))


def test_parts_of_a_manifest_without_splits_are_held_out(folder):
    splits = read_recordings(numbered(folder, 60))
    assert len(splits["validation"]) == len(splits["test"]) == 3
    assert sorted(u.text for s in splits.values() for u in s) == sorted(map(str, range(60)))
    assert all(u.split == name for name, split in splits.items() for u in split)
    # Another order, and the same splits.
    rows = "".join(f"{i}.wav\t{i}\n" for i in range(60)[::-1])
    again = read_recordings(str(listed(folder, rows)))
    assert {k: {u.text for u in v} for k, v in again.items()} == {
        k: {u.text for u in v} for k, v in splits.items()
    }
    with pytest.raises(UserError, match="has 39 recordings and no splits; at least 40"):
        read_recordings(numbered(folder, 39))


def speakers(splits):
    return [{u.speaker for u in splits[name]} for name in ("train", "validation", "test")]


@pytest.mark.parametrize("number", [3, 4, 20])
def test_no_speaker_is_on_two_sides(folder, number):
    rows = "".join(f"{i}.wav\t{i}\tspeaker {i % number}\n" for i in range(60))
    train, validation, test = speakers(read_recordings(str(listed(folder, rows))))
    assert len(validation) == len(test) == 1
    assert len(train | validation | test) == number == len(train) + 2


def test_a_speaker_who_is_not_to_be_heard_leaves_the_others_split(folder):
    rows = "".join(f"{i}.wav\t{i}\t{'abc'[i % 3]}\n" for i in range(60))
    for speaker in "abc":
        train, validation, test = speakers(read_recordings(str(listed(folder, rows)), speaker))
        assert test == {speaker} and len(train) == len(validation) == 1 and train != validation


@pytest.mark.parametrize("speaker", [str, lambda _: "", lambda _: "one", lambda i: "ab"[i % 2]])
def test_copies_of_a_recording_are_on_one_side(folder, speaker):
    for i in range(30):
        (folder / f"{i + 30}.wav").write_bytes((folder / f"{i}.wav").read_bytes())
    rows = "".join(f"{i}.wav\t{i}\t{speaker(i)}\n" for i in range(60))
    splits = read_recordings(str(listed(folder, rows)))
    train, *others = ({int(u.text) % 30 for u in split} for split in splits.values())
    assert not train & set.union(*others) and others[0] and others[1]


def test_splits_that_a_manifest_names_are_kept(folder):
    rows = ["0.wav\t0\ta\tval", "1.wav\t1\tb\ttrain", "2.wav\t2\tb\ttest", "3.wav\t3\ta\ttrain"]
    path = str(listed(folder, "\n".join(rows)))
    splits = read_recordings(path)
    assert {k: [u.text for u in v] for k, v in splits.items()} == {
        "train": ["1", "3"],
        "validation": ["0"],
        "test": ["2"],
    }
    held_out = read_recordings(path, "b")
    assert [u.text for u in held_out["test"]] == ["1", "2"]
    assert [u.text for u in held_out["train"]] == ["3"]
    with pytest.raises(UserError, match="has no recording for validation"):
        read_recordings(path, "a")
    with pytest.raises(UserError, match="task.held_out_speaker='c' is unknown.*Allowed: a, b"):
        read_recordings(path, "c")


@pytest.fixture
def digits():
    """Skips unless the dataset is there."""
    if not (corpora.data_directory() / FSDD.path).is_dir():
        pytest.skip("the Free Spoken Digit Dataset is not under DATA_DIR")


def test_digits_have_the_official_test_set(digits):
    splits = read_recordings("fsdd")
    assert {k: len(v) for k, v in splits.items()} == {
        "train": 2400,
        "validation": 300,
        "test": 300,
    }
    for name, indices in (("test", range(5)), ("validation", range(5, 10))):
        assert {int(u.path.stem.split("_")[2]) for u in splits[name]} == set(indices)
        assert set(Counter((u.text, u.speaker) for u in splits[name]).values()) == {5}
    assert len({u.path for split in splits.values() for u in split}) == 3000
    assert all(u.path.is_file() for u in splits["test"])
    seven = [u for u in splits["train"] if u.path.name == "7_theo_36.wav"]
    assert [(u.text, u.speaker) for u in seven] == [("seven", "theo")]


def test_a_held_out_speaker_is_tested_on_alone(digits):
    splits = read_recordings("fsdd", "lucas")
    assert {k: len(v) for k, v in splits.items()} == {"train": 2000, "validation": 250, "test": 500}
    assert {u.speaker for u in splits["test"]} == {"lucas"}
    assert "lucas" not in {u.speaker for name in ("train", "validation") for u in splits[name]}
    with pytest.raises(UserError, match="held_out_speaker='luca' .*Did you mean 'lucas'"):
        read_recordings("fsdd", "luca")


CONTENTS = {"a.wav": b"A" * 1000, "b.wav": b"B", "c d.wav": b""}
LINES = "".join(f"{sha256(c).hexdigest()}  {n}\n" for n, c in sorted(CONTENTS.items()))


def member(name, content=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, io.BytesIO(content)


def archive(path, members):
    with tarfile.open(path, "w:gz") as file:
        for info, content in members:
            file.addfile(info, content)
    return path.as_uri()


def usual(contents=CONTENTS):
    return [member(f"corpus-1.0/sounds/{n}", c) for n, c in contents.items()]


def wicked():
    return [
        member("../../evil"),
        member("/tmp/sounds/../evil"),
        member("x/sounds/evil.wav", b"x"),
        member("x/other/a.wav", b"not this one"),
        member("x/sounds/deep/a.wav", b"nor this"),
        member("x/sounds/b.wav", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("x/sounds/c d.wav", type=tarfile.DIRTYPE),
    ]


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """Returns a folder that is not there, and how to make one of archive members."""
    monkeypatch.setattr(urllib.request, "urlopen", URLOPEN)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    digest = sha256(LINES.encode()).hexdigest()

    def make(members):
        url = archive(tmp_path / "x.tar.gz", members)
        return RemoteFolder("corpus/sounds", url, tuple(CONTENTS), digest)

    return make


def contents(path):
    return {p.name: p.read_bytes() for p in path.iterdir()}


def everything(path):
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


def test_a_folder_is_downloaded_once(tmp_path, remote):
    folder = remote(usual())
    path = fetch_folder(folder)
    assert path == tmp_path / "data/corpus/sounds" and contents(path) == CONTENTS
    assert everything(tmp_path / "data") == sorted(
        ["corpus", "corpus/sounds", *(f"corpus/sounds/{n}" for n in CONTENTS)]
    )
    (tmp_path / "x.tar.gz").unlink()
    assert fetch_folder(folder) == path
    (path / "notes.txt").write_text("mine")
    assert fetch_folder(folder) == path
    (path / "b.wav").write_bytes(b"b")
    with pytest.raises(UserError, match="files of .*sounds have sha256 .* not the recorded"):
        fetch_folder(folder)
    (path / "b.wav").unlink()
    with pytest.raises(UserError, match="sounds has 2 of the 3 files .*; b.wav is missing"):
        fetch_folder(folder)


def test_nothing_but_the_named_files_is_taken_from_an_archive(tmp_path, remote):
    path = fetch_folder(remote([*wicked(), *usual(), *wicked()]))
    assert contents(path) == CONTENTS
    assert everything(tmp_path)[0].startswith("data") and "evil" not in str(everything(tmp_path))


@pytest.mark.parametrize(
    ("members", "match"),
    [
        (usual({**CONTENTS, "b.wav": b"b"}), "x.tar.gz have sha256"),
        (usual({"a.wav": b""}), "has 1 of the 3 files of corpus/sounds; b.wav is missing"),
        ([], "has 0 of the 3 files"),
    ],
)
def test_another_archive_leaves_nothing_behind(tmp_path, remote, members, match):
    with pytest.raises(UserError, match=match):
        fetch_folder(remote(members))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("damage", [lambda b: b[:-40], lambda b: b[:30], lambda b: b"", bytes])
def test_a_download_that_breaks_off_leaves_nothing_behind(tmp_path, remote, damage):
    folder = remote(usual({**CONTENTS, "z": bytes(range(256)) * 99}))
    path = tmp_path / "x.tar.gz"
    path.write_bytes(damage(path.read_bytes()))
    if damage is bytes:
        path.write_bytes(b"<html>no such page</html>")
    with pytest.raises(UserError, match="could not be downloaded|of the 3 files") as raised:
        fetch_folder(folder)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "data").exists()


def test_without_a_network_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="fsdd/recordings is not under .* set DATA_DIR"):
        fsdd()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_appeared_meanwhile_is_taken(tmp_path, remote, monkeypatch):
    folder = remote(usual())
    other = replace(folder, url="")
    download = corpora._download

    def slow(folder):
        found = download(folder)
        path = tmp_path / "data" / folder.path
        path.mkdir(parents=True)
        for name, content in CONTENTS.items():
            (path / name).write_bytes(content)
        return found

    monkeypatch.setattr(corpora, "_download", slow)
    assert contents(fetch_folder(folder)) == CONTENTS
    assert everything(tmp_path / "data" / "corpus")[0] == "sounds"
    assert fetch_folder(other) == tmp_path / "data/corpus/sounds"
