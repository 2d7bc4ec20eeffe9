"""Documents are read from every kind of file, from any record on, and mistakes say where."""

import gzip
import hashlib
import sys
import types

import pytest

from research.errors import UserError
from research.tasks.corpora import TEXTS, RemoteFile
from research.tasks.tokens.documents import described, find_sources, records, well_formed
from tests.commands import run_cases
from tests.corpora import json_lines, texts

DOCUMENTS = texts(10)


def read(paths, start=0, field="text", separator=""):
    """Returns the texts of sources and the number of records up to each."""
    found = [r for s in find_sources("input", paths) for r in records(s, field, separator, start)]
    return [text for _, text in found], [number for number, _ in found]


def check(path, **options):
    """Checks that a file of `DOCUMENTS` is read whole and from every record on."""
    found, numbers = read([str(path)], **options)
    assert found == DOCUMENTS
    for done, number in enumerate(numbers, 1):
        assert read([str(path)], number, **options)[0] == DOCUMENTS[done:]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_text_and_json_lines_packed_or_not(tmp_path, kind, ending):
    def pack(content):
        if not ending:
            return content
        if ending == ".gz":
            return gzip.compress(content)
        one = pytest.importorskip("zstandard", reason="needs zstandard, as pyarrow")
        one = one.ZstdCompressor().compress
        return one(content[:100]) + one(content[100:])  # two frames

    json_lines(tmp_path / "plain", DOCUMENTS)
    content = {
        # Empty lines are no documents.
        "jsonl": (tmp_path / "plain").read_bytes() + b"\n  \n",
        "txt": "<|>".join(DOCUMENTS).encode(),
    }
    path = tmp_path / f"documents.{kind}{ending}"
    path.write_bytes(pack(content[kind]))
    check(path, separator="<|>" if kind == "txt" else "")


def test_a_known_corpus_is_read_by_name(tmp_path, monkeypatch):
    content = "<|>".join(DOCUMENTS).encode()
    known = RemoteFile("known/input.txt", "https://no.network", hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(TEXTS, "known", known)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    (tmp_path / "known").mkdir()
    (tmp_path / known.path).write_bytes(content)
    assert described(find_sources("input", ["known"])) == [["known", len(content)]]
    check("known", separator="<|>")
    (tmp_path / known.path).write_bytes(content + b" ")
    with pytest.raises(UserError, match="not the recorded"):
        find_sources("input", ["known"])


def test_a_separator_may_lie_across_what_is_read_at_once(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("<|>".join(DOCUMENTS), newline="")
    for chunk in (1, 2, 7):
        monkeypatch.setattr("research.tasks.tokens.documents.CHUNK", chunk)
        check(tmp_path / "a.txt", separator="<|>")


def test_a_text_without_a_separator_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\r\n\nb")
    assert read([str(tmp_path / "a.txt")])[0] == ["a\r\n\nb"]
    assert read([str(tmp_path / "a.txt")], 1)[0] == []


def test_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"n": list(range(10)), "body": DOCUMENTS})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    check(tmp_path / "a.parquet", field="body")
    for field, message in {
        "text": "no column 'text'; it has n, body.",
        "n": "'n' is int64",
    }.items():
        with pytest.raises(UserError, match=message):
            read([str(tmp_path / "a.parquet")], field=field)
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(UserError, match="b.parquet cannot be read"):
        read([str(tmp_path / "b.parquet")], field="body")


def test_the_hub(monkeypatch):
    class Rows(list):
        def skip(self, number):
            return Rows(self[number:])

    def load_dataset(name, config, split, streaming):
        assert (name, config, split, streaming) == ("a/b", "c", "train", True)
        return Rows({"text": text} for text in DOCUMENTS)

    fake = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    check("hf:a/b:c")
    with pytest.raises(UserError, match=r"hf:a/b:c has no column 'body'; it has text\."):
        read(["hf:a/b:c"], field="body")
    with pytest.raises(UserError, match="hf:none cannot be read"):
        read(["hf:none"])


def test_files_are_in_the_order_of_patterns_and_names(tmp_path):
    for name in ("b1", "a2", "a1"):
        (tmp_path / f"{name}.txt").write_text(name)
    assert read([f"{tmp_path}/b*.txt", f"{tmp_path}/a*"])[0] == ["b1", "a1", "a2"]
    # A file whose name looks like a pattern.
    (tmp_path / "[a1].txt").write_text("itself")
    assert read([f"{tmp_path}/[a1].txt"])[0] == ["itself"]


def test_half_a_character_of_json_is_replaced(tmp_path):
    (tmp_path / "a.jsonl").write_text(r'{"text": "a\ud83d\ude42b\ud800c"}')
    (text,), _ = read([str(tmp_path / "a.jsonl")])
    assert well_formed(text) == ("a🙂b\ufffdc", "a🙂b\ufffdc".encode())


def test_what_is_wrong_with_input(tmp_path):
    """Each is one line that says where, and leaves nothing behind."""
    json_lines(tmp_path / "ok.jsonl", DOCUMENTS)
    files = {
        "bad.jsonl": b'{"text": "a"}\n\n{"text": "b"\n',
        "list.jsonl": b'["a"]\n',
        "number.jsonl": b'{"text": 3}\n',
        "null.jsonl": b'{"text": null}\n',
        "latin.txt": "é".encode("latin-1"),
        "cut.jsonl.gz": gzip.compress(b'{"text": "a"}\n' * 999)[:-20],
        "tokenizer.json": b"{}",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    cases = {
        "there is no such file": ["none.jsonl"],
        "is no file; for a folder, give": ["full"],
        "twice": ["ok.jsonl", "*ok.jsonl"],
        "bad.jsonl, line 3: this is no JSON": ["bad.jsonl"],
        "list.jsonl, line 1: a JSON object is needed, not list": ["list.jsonl"],
        "number.jsonl, line 1: the field 'text' is int, not text": ["number.jsonl"],
        "--input: no document there has any text": ["null.jsonl"],
        "latin.txt is not UTF-8 text": ["latin.txt"],
        "cut.jsonl.gz cannot be read": ["cut.jsonl.gz"],
        "line 1 has no field 'body'; it has id, text": ["ok.jsonl", "--field=body"],
        "--validation=0 of 10 documents leaves none for validation": [
            "ok.jsonl",
            "--validation=0",
        ],
        "leaves none for training": ["ok.jsonl", "--validation=1"],
        "this is no tokenizer.json": ["ok.jsonl", f"--tokenizer={tmp_path}/tokenizer.json"],
        "--tokenizer='gpt2' is no file": ["ok.jsonl", "--tokenizer=gpt2"],
        "N of bpe:N must be a number of at least 257": ["ok.jsonl", "--tokenizer=bpe:256"],
        "--end_token is of no use": ["ok.jsonl", "--end_token=a"],
        "is not empty: it has mine.txt": ["ok.jsonl", f"--output={tmp_path}/full"],
        "is a file; give a directory": ["ok.jsonl", f"--output={tmp_path}/ok.jsonl"],
    }
    arguments = [
        ["--tokenizer=bytes", f"--output={tmp_path}/out{number}", "--processes=1"]
        + [a if a.startswith("--") else f"--input={tmp_path}/{a}" for a in case]
        for number, case in enumerate(cases.values())
    ]
    outcomes = run_cases("research.prepare", arguments)
    for number, (message, outcome) in enumerate(zip(cases, outcomes, strict=True)):
        assert outcome.code == 2 and message in outcome.err, (message, outcome.err)
        assert outcome.err.count("\n") == 1, outcome.err
        left = list(tmp_path.glob(f"out{number}/*"))
        assert [p.name for p in left] in ([], [".partial"]), left
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_what_is_not_installed_is_said(tmp_path, monkeypatch):
    for module in ("datasets", "zstandard", "pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    for name in ("a.parquet", "a.jsonl.zst"):
        (tmp_path / name).write_bytes(b"")
    for path in (str(tmp_path / "a.parquet"), str(tmp_path / "a.jsonl.zst"), "hf:a"):
        with pytest.raises(UserError, match=r'needs \w+, which is not installed: pip install "at'):
            find_sources("input", [path])
