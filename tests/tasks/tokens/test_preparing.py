"""Shards hold the tokens of the documents, whoever encoded them and however often it was killed."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tokenizers

from research.errors import UserError
from research.tasks.tokens import preparing
from research.tasks.tokens.encoding import make_encoder, parts_of, train_bpe
from tests.commands import ROOT, run_cases
from tests.corpora import json_lines, prepared, request, texts

DOCUMENTS = texts(60)


@pytest.fixture
def lines(tmp_path):
    return json_lines(tmp_path / "a.jsonl", DOCUMENTS)


def contents(folder):
    """Returns the bytes of every file of a finished directory but the manifest."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert files.pop("manifest.json") and not (folder / ".partial").exists()
    return files


def split_of(folder, split, dtype="<u2"):
    """Returns the tokens of a split."""
    paths = sorted(folder.glob(f"{split}-*.bin"))
    return np.concatenate([np.fromfile(path, dtype) for path in paths])


def documents_of(folder, split):
    """Returns the documents of a split whose tokens are bytes."""
    tokens = split_of(folder, split)
    ends = np.flatnonzero(tokens == 256)
    assert ends[-1] == len(tokens) - 1
    parts = np.split(tokens, ends + 1)[:-1]
    return [bytes(part[:-1].astype(np.uint8)).decode() for part in parts]


def test_every_document_is_in_one_split_in_order(lines, tmp_path):
    manifest = prepared(request([lines]), tmp_path / "out")
    train, held_out = (documents_of(tmp_path / "out", s) for s in ("train", "validation"))
    assert sorted(train + held_out) == sorted(DOCUMENTS)
    assert 0 < len(held_out) < len(train)
    assert [d for d in DOCUMENTS if d in set(train)] == train
    for split, own in (("train", train), ("validation", held_out)):
        counts = manifest["splits"][split]
        assert counts["documents"] == len(own)
        assert counts["bytes"] == sum(len(d.encode()) for d in own)
        assert counts["tokens"] == counts["bytes"] + len(own)
        for shard in counts["shards"]:
            content = (tmp_path / "out" / shard["file"]).read_bytes()
            assert shard["sha256"] == hashlib.sha256(content).hexdigest()
            assert len(content) == 2 * shard["tokens"]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest


def test_the_split_is_by_text_alone(tmp_path):
    """Neither the order nor copies nor the kind of file move a document to the other split."""
    one = json_lines(tmp_path / "one.jsonl", DOCUMENTS)
    many = [*reversed(DOCUMENTS), *DOCUMENTS]
    (tmp_path / "many.txt").write_text("|".join(many), newline="")
    prepared(request([one]), tmp_path / "a")
    prepared(request([str(tmp_path / "many.txt")], separator="|"), tmp_path / "b")
    for split in ("train", "validation"):
        found = [documents_of(tmp_path / name, split) for name in "ab"]
        assert sorted(2 * found[0]) == sorted(found[1])


def test_given_files_are_held_out(tmp_path):
    paths = [json_lines(tmp_path / f"{i}.jsonl", DOCUMENTS[i::2]) for i in range(2)]
    prepared(request(paths[:1], (paths[1],)), tmp_path / "out")
    assert documents_of(tmp_path / "out", "train") == DOCUMENTS[::2]
    assert documents_of(tmp_path / "out", "validation") == DOCUMENTS[1::2]


def test_shards_cut_the_same_tokens_and_count_what_ends_in_them(lines, tmp_path):
    prepared(request([lines]), tmp_path / "one")
    counted = prepared(request([lines], shard_tokens=100), tmp_path / "many")["splits"]
    for split, counts in counted.items():
        tokens = split_of(tmp_path / "many", split)
        np.testing.assert_array_equal(tokens, split_of(tmp_path / "one", split))
        sizes = [shard["tokens"] for shard in counts["shards"]]
        assert set(sizes[:-1]) == {100} and 0 < sizes[-1] <= 100
        ends = [int((t == 256).sum()) for t in np.split(tokens, np.cumsum(sizes)[:-1])]
        assert [shard["documents"] for shard in counts["shards"]] == ends
        assert sum(shard["bytes"] for shard in counts["shards"]) == counts["bytes"]


@pytest.mark.parametrize("saving", [0.0, 1e9], ids=["saved", "lost"])
def test_a_command_that_was_stopped_goes_on(lines, tmp_path, monkeypatch, saving):
    """Stopped after every batch in turn; what was written behind the last record is dropped."""
    (tmp_path / "b.txt").write_text("|".join(DOCUMENTS[:9]))
    asked = request(
        [lines, str(tmp_path / "b.txt")], separator="|", shard_tokens=500, tokenizer="bpe:300"
    )
    prepared(asked, tmp_path / "whole")
    monkeypatch.setattr(preparing, "BATCH", 300)
    monkeypatch.setattr(preparing, "SAVE_SECONDS", saving)
    calls = []
    for stop in (*range(1, 12), 10**9):
        last = len(calls) + stop

        def report(done, last=last):
            calls.append(done)
            if len(calls) == last:
                raise KeyboardInterrupt

        try:
            prepared(asked, tmp_path / "parts", report=report)
        except KeyboardInterrupt:
            assert not list((tmp_path / "parts").glob("*.bin"))
            continue
        break
    assert len(calls) > 12
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_command_that_was_stopped_while_it_moved_shards_goes_on(lines, tmp_path, monkeypatch):
    asked = request([lines], shard_tokens=500, tokenizer="bpe:300")
    prepared(asked, tmp_path / "whole")
    real, moved = os.replace, []

    def replace(a, b):
        if str(b).endswith(".bin"):
            moved.append(b)
            if len(moved) == 3:
                raise KeyboardInterrupt
        real(a, b)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        prepared(asked, tmp_path / "parts")
    assert len(list((tmp_path / "parts").glob("*.bin"))) == 2
    prepared(asked, tmp_path / "parts")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_shard_of_an_interrupted_command_that_was_cut_short_is_refused(
    lines, tmp_path, monkeypatch
):
    monkeypatch.setattr(preparing, "BATCH", 300)
    monkeypatch.setattr(preparing, "SAVE_SECONDS", 0.0)

    def report(done):
        if done.read or done.documents > 10:  # what came before is on record
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared(request([lines]), tmp_path / "out", report=report)
    shard = tmp_path / "out" / ".partial" / "train-00000.bin"
    os.truncate(shard, 3)
    with pytest.raises(UserError, match=r"train-00000.bin was cut short: it has [\d,]+ bytes"):
        prepared(request([lines]), tmp_path / "out")


# Tokenizers.


def test_a_bpe_encodes_each_document_for_itself(lines, tmp_path):
    prepared(request([lines], tokenizer="bpe:300"), tmp_path / "out")
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert library.get_vocab_size() == 300
    end = library.token_to_id("<|endoftext|>")
    tokens = split_of(tmp_path / "out", "train")
    parts = np.split(tokens, np.flatnonzero(tokens == end) + 1)[:-1]
    prepared(request([lines]), tmp_path / "bytes")
    own = documents_of(tmp_path / "bytes", "train")
    assert [library.decode(part.tolist()) for part in parts] == own
    for part, text in zip(parts, own, strict=True):
        assert part.tolist() == [*library.encode(text).ids, end]


def test_the_tokenizer_of_bytes_says_the_same(lines, tmp_path):
    prepared(request([lines]), tmp_path / "out")
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert library.token_to_id("<|endoftext|>") == 256 and library.get_vocab_size() == 257
    for text in (*DOCUMENTS, "".join(map(chr, range(256)))):
        assert library.encode(text).ids == list(text.encode())
        assert library.decode(list(text.encode())) == text


def test_text_is_never_an_end_token(tmp_path):
    """A document that spells it, or another special token, is encoded as it is written."""
    spelled = ["a <|endoftext|> b", "</s>", "c"]
    path = json_lines(tmp_path / "a.jsonl", spelled)
    # Of the post-processor too: BERT's and Llama's put tokens around every text.
    library = tokenizers.Tokenizer.from_str(train_bpe(300, DOCUMENTS).json)
    library.add_special_tokens(["</s>"])
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A </s>",
        special_tokens=[(t, library.token_to_id(t)) for t in ("<|endoftext|>", "</s>")],
    )
    library.save(str(tmp_path / "t.json"))
    for name in ("", "</s>"):
        asked = request(
            [path], (path,), tokenizer=str(tmp_path / "t.json"), end_token=name, shard_tokens=10**6
        )
        prepared(asked, tmp_path / f"out{name.strip('</>')}")
        tokens = split_of(tmp_path / f"out{name.strip('</>')}", "train")
        end = library.token_to_id(name or "<|endoftext|>")
        parts = np.split(tokens, np.flatnonzero(tokens == end) + 1)[:-1]
        assert [library.decode(part[:-1].tolist()) for part in parts] == spelled


def test_long_documents_are_encoded_in_parts_to_the_same_tokens():
    library = tokenizers.Tokenizer.from_str(train_bpe(400, DOCUMENTS).json)
    text = "\n".join(["a line, of words", "  more", "", "end ", "next"] * 30)
    parts = parts_of(text, 50)
    assert "".join(parts) == text and len(parts) > 10
    assert max(map(len, parts)) <= 50
    apart = [token for part in parts for token in library.encode(part).ids]
    assert apart == library.encode(text).ids
    assert [len(p) for p in parts_of("x" * 120, 50)] == [50, 50, 20]


def test_more_than_65536_tokens_take_four_bytes(lines, tmp_path):
    vocabulary = {f"w{i}": i for i in range(70_000)} | {"</s>": 70_000, "?": 70_001}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.save(str(tmp_path / "words.json"))
    path = json_lines(tmp_path / "words.jsonl", ["w69999 w1", "w65536"])
    asked = {"tokenizer": str(tmp_path / "words.json"), "validation": 0.0}
    manifest = prepared(request([path], (path,), **asked), tmp_path / "out")
    assert (manifest["dtype"], manifest["vocab_size"]) == ("uint32", 70_002)
    tokens = split_of(tmp_path / "out", "train", "<u4")
    assert tokens.tolist() == [69_999, 1, 70_000, 65_536, 70_000]
    with pytest.raises(UserError, match=r"--dtype=uint16 has room for 65,536 .* has 70,002"):
        prepared(request([path], (path,), dtype="uint16", **asked), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_end_token_is_found_by_convention_or_named(tmp_path):
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[DONE]": 1}, "a"))
    with pytest.raises(UserError, match="no known end token; .* by --end_token"):
        make_encoder(library.to_str())
    assert make_encoder(library.to_str(), "[DONE]").end == 1
    with pytest.raises(UserError, match=r"--end_token='\[DON\]' is not .* Did you mean '\[DONE\]'"):
        make_encoder(library.to_str(), "[DON]")
    library.add_special_tokens(["</s>"])
    assert make_encoder(library.to_str()).end == 2


# The command.


def test_the_command_is_done_once_and_refuses_another_in_its_place(lines, tmp_path):
    out = tmp_path / "out"
    same = [f"--input={lines}", f"--output={out}", "--tokenizer=bytes", "--validation=0.2"]
    first, again, other = run_cases(
        "research.prepare",
        [
            [*same, "--processes=2"],
            [*same, "--processes=1"],
            [*same, "--shard_tokens=7", "--processes=1"],
        ],
    )
    assert first.code == 0 and first.out == f"wrote {out}\n", first.err
    assert re.search(r"^train: [\d,]+ tokens of \d+ documents, 1 shards$", first.err, re.M)
    assert again.code == 0 and again.out == f"{out} was prepared before; nothing was done\n"
    assert other.code == 2 and "shard_tokens was 100000000 and is 7" in other.err
    assert other.err.count("\n") == 1
    prepared(request([lines]), tmp_path / "one")
    assert contents(out) == contents(tmp_path / "one"), "two processes wrote what one writes"


@pytest.mark.slow
def test_a_killed_command_goes_on(tmp_path):
    """SIGKILL at any time, other numbers of processes, and no process is left behind."""
    path = json_lines(tmp_path / "a.jsonl", [f"{i} {t}" for i in range(300) for t in DOCUMENTS])
    arguments = [f"--input={path}", "--tokenizer=bpe:400", "--shard_tokens=300000"]
    command = [sys.executable, "-m", "research.prepare", *arguments]
    whole = subprocess.run([*command, f"--output={tmp_path}/whole"], cwd=ROOT)
    assert whole.returncode == 0
    killed = 0
    for attempt in range(30):
        processes = ["--processes=2", "--processes=1"][attempt % 2]
        running = subprocess.Popen([*command, f"--output={tmp_path}/parts", processes], cwd=ROOT)
        try:
            code = running.wait(2.0 + 0.7 * attempt)
            assert code == 0
            break
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
            running.wait()
            killed += 1
    assert killed
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    time.sleep(2)
    left = subprocess.run(["ps", "-eo", "ppid,args"], capture_output=True, text=True).stdout
    assert not [
        line for line in left.splitlines() if line.split()[0] == "1" and "spawn_main" in line
    ]


def tree_memory(process):
    """Returns the memory of a process and all that it started; shared pages count for each."""
    rows = subprocess.run(["ps", "-eo", "pid,ppid,rss"], capture_output=True, text=True).stdout
    found = [tuple(map(int, row.split())) for row in rows.splitlines()[1:]]
    own = {process}
    for _ in range(4):
        own |= {pid for pid, parent, _ in found if parent in own}
    return 1024 * sum(size for pid, _, size in found if pid in own)


def write_parquet(path, megabytes):
    """Writes documents of words as frequent as those of a language; returns a BPE of them."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    random = np.random.default_rng(0)
    letters = np.frombuffer(b"etaoinshrdlucmfwypvbgkjqxz", np.uint8)
    frequent = np.exp(-np.arange(26) / 6)
    words = np.array(
        [
            random.choice(letters, size, p=frequent / frequent.sum()).tobytes().decode()
            for size in random.integers(2, 11, 50_000)
        ]
    )
    likely = 1 / np.arange(10, 50_010)
    schema = arrow.schema([("text", arrow.string())])
    sample: list[str] = []
    with parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as file:
        written = 0
        while written < megabytes * 10**6:
            drawn = random.choice(words, 400_000, p=likely / likely.sum())
            texts = [" ".join(part) for part in np.array_split(drawn, 1000)]
            file.write_table(arrow.table({"text": texts}, schema))
            written += sum(map(len, texts))
            sample = sample or texts
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=16_384,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(sample, trainer)
    return library


@pytest.mark.slow
def test_a_parquet_of_200_megabytes_is_prepared_in_a_gigabyte(tmp_path):
    """By a BPE as GPT-2's; a command that was killed on the way ends with the same bytes."""
    path = tmp_path / "documents.parquet"
    write_parquet(path, 200).save(str(tmp_path / "bpe.json"))
    assert path.stat().st_size > 200e6
    arguments = [f"--input={path}", f"--tokenizer={tmp_path}/bpe.json", "--shard_tokens=20000000"]
    command = [sys.executable, "-m", "research.prepare", *arguments]

    def started(output):
        told = open(tmp_path / f"{output}.txt", "w")
        more = [f"--output={tmp_path / output}", "--processes=2"]
        return subprocess.Popen([*command, *more], cwd=ROOT, stderr=told)

    began, peak, running = time.perf_counter(), 0, started("whole")
    while running.poll() is None:
        peak = max(peak, tree_memory(running.pid))
        time.sleep(0.3)
    seconds = time.perf_counter() - began
    said = (tmp_path / "whole.txt").read_text()
    assert running.returncode == 0, said
    print(f"200 MB in {seconds:.0f} s, {peak / 1e6:,.0f} MB of memory at most\n{said}")
    assert peak < 10**9
    if seconds > 40:
        assert re.search(r"[\d.]+ MB, [\d.]+ MB/s, ", said)
    running = started("parts")
    time.sleep(0.6 * seconds)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL, "it was killed before it was done"
    assert (tmp_path / "parts" / ".partial").exists()
    running = started("parts")
    assert running.wait() == 0, (tmp_path / "parts.txt").read_text()
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
