"""Shards of this project and of others are opened, and what is wrong with them is said."""

import json
import os

import numpy as np
import pytest

from research.errors import UserError
from research.tasks.tokens import corpus as corpora_of
from research.tasks.tokens.corpus import describe_corpus, open_corpus
from research.tasks.tokens.splits import Shard, Split
from tests import corpora

TRAIN = np.arange(1000, dtype=np.uint16) % 300
HELD_OUT = TRAIN[::-1][:200]


def llm_c(tokens, magic=20240520):
    """Returns the bytes of a file of llm.c."""
    header = np.zeros(256, "<i4")
    header[:3] = magic, 1, len(tokens)
    return header.tobytes() + tokens.tobytes()


def write_foreign(folder, kind):
    """Writes shards as another project does; returns `task.path`."""
    folder.mkdir(exist_ok=True)
    if kind == "nanoGPT":
        TRAIN.tofile(folder / "train.bin")
        HELD_OUT.tofile(folder / "val.bin")
        return folder
    if kind == "llm.c":
        (folder / "fineweb_train_000001.bin").write_bytes(llm_c(TRAIN[:600]))
        (folder / "fineweb_train_000002.bin").write_bytes(llm_c(TRAIN[600:]))
        (folder / "fineweb_val_000000.bin").write_bytes(llm_c(HELD_OUT))
        return folder / "fineweb_train_*.bin"
    if kind == "llm.c, Llama 3":
        (folder / "a_train.bin").write_bytes(llm_c(TRAIN.astype("<u4"), 20240801))
        (folder / "a_val.bin").write_bytes(llm_c(HELD_OUT.astype("<u4"), 20240801))
        return folder / "a_train.bin"
    write = np.save if kind == "NumPy" else lambda path, tokens: tokens.tofile(path)  # OLMo
    write(folder / "part-0-train.npy", TRAIN[:100])
    write(folder / "part-1-train.npy", TRAIN[100:])
    write(folder / "part-0-val.npy", HELD_OUT)
    return folder


@pytest.mark.parametrize("kind", ["nanoGPT", "llm.c", "llm.c, Llama 3", "OLMo", "NumPy"])
def test_shards_of_other_projects(tmp_path, kind):
    path = write_foreign(tmp_path / "shards", kind)
    found = open_corpus(str(path), vocab_size=300)
    assert found.vocab_size == 300 and not found.tokenizer
    for name, tokens in (("train", TRAIN), ("validation", HELD_OUT)):
        split = found.splits[name]
        assert split.tokens == len(tokens) and not split.bytes
        np.testing.assert_array_equal(split.read(0, len(tokens)), tokens)
        assert split.dtype == ("<u4" if "Llama" in kind else "<u2")
    assert len(found.files) == len(list((tmp_path / "shards").glob("[!.]*")))


def test_windows_are_read_across_shards():
    shards = {name: np.arange(n, n + 7, dtype="<u2") for n, name in ((0, "a"), (7, "b"), (14, "c"))}
    split = Split("train", [Shard(name, np.dtype("<u2"), 0, 7) for name in shards])
    split._maps.update(enumerate(shards.values()))
    whole = np.arange(21)
    for start in range(21):
        for number in range(22):
            expected = whole[start : start + number]
            np.testing.assert_array_equal(split.read(start, number), expected)


def test_places_beyond_two_to_the_31(tmp_path):
    """In a file with holes, which takes no room on the disk."""
    path, place = tmp_path / "train.bin", 2**31 + 12_345
    with open(path, "wb") as file:
        os.truncate(path, 2 * (2**31 + 20_000))
        file.seek(2 * place)
        file.write(np.array([7, 8, 9], "<u2").tobytes())
    split = Split("train", (Shard(path, np.dtype("<u2"), 0, 2**31 + 20_000),))
    assert split.read(place - 1, 5).tolist() == [0, 7, 8, 9, 0]


def test_a_prepared_corpus(tmp_path):
    folder = corpora.corpus(tmp_path, tokenizer="bpe:300", shard_tokens=100)
    manifest = json.loads((folder / "manifest.json").read_text())
    found = open_corpus(str(folder))
    assert found.vocab_size == 300
    assert found.tokenizer == (folder / "tokenizer.json").read_text()
    for name, split in found.splits.items():
        counts = manifest["splits"][name]
        assert (split.tokens, split.bytes) == (counts["tokens"], counts["bytes"])
        whole = np.concatenate([np.fromfile(p, "<u2") for p in sorted(folder.glob(f"{name}-*"))])
        np.testing.assert_array_equal(split.read(0, split.tokens), whole)
        for shard in counts["shards"]:
            assert found.files[shard["file"]] == shard["sha256"]


def test_a_vocabulary_is_padded_and_a_description_reads_no_shard(tmp_path):
    folder = corpora.corpus(tmp_path, tokenizer="bpe:300")
    whole = open_corpus(str(folder), vocab_size=384)
    assert whole.vocab_size == 384
    for shard in folder.glob("*.bin"):
        shard.unlink()
    found = describe_corpus(str(folder), vocab_size=384)
    assert (found.vocab_size, found.splits) == (384, whole.splits)


def test_shards_are_hashed_once(tmp_path, monkeypatch):
    folder = corpora.corpus(tmp_path)
    hashed = []
    real = corpora_of._digest
    monkeypatch.setattr(corpora_of, "_digest", lambda s: hashed.append(s.path.name) or real(s))
    first = open_corpus(str(folder))
    assert sorted(hashed) == ["train-00000.bin", "validation-00000.bin"]
    assert open_corpus(str(folder)) == first and len(hashed) == 2
    # A change that leaves the size as it was.
    shard = folder / "train-00000.bin"
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"train-00000.bin has sha256 \w{12}, not the \w{12} of"
        ):
            open_corpus(str(folder))
    assert len(hashed) == 3


def test_what_is_wrong_with_a_prepared_corpus(tmp_path):
    folder = corpora.corpus(tmp_path, tokenizer="bpe:300")
    shard, manifest = folder / "validation-00000.bin", folder / "manifest.json"
    known = json.loads(manifest.read_text())
    content = shard.read_bytes()

    def refused(match, **options):
        with pytest.raises(UserError, match=match) as error:
            open_corpus(str(folder), **options)
        assert "\n" not in str(error.value)

    refused("task.corpus_vocab_size=5: the manifest of .* says 300; leave it out", vocab_size=5)
    refused("task.corpus_dtype='uint16': the manifest", dtype="uint16")
    shard.write_bytes(content[:-2])
    refused(rf"validation-00000.bin has {len(content) - 2:,} bytes and should have")
    shard.unlink()
    refused("validation-00000.bin is missing; .*manifest.json lists it")
    shard.write_bytes(content)
    manifest.write_text(json.dumps(known | {"vocab_size": 200}))
    refused(r"has the token 2\d\d; the vocabulary has 200")
    manifest.write_text(json.dumps({k: v for k, v in known.items() if k != "splits"}))
    refused("manifest.json is damaged: KeyError")
    manifest.write_text("{")
    refused("manifest.json cannot be read")
    manifest.write_text(json.dumps(known))
    (folder / "tokenizer.json").write_text("{}")
    refused("tokenizer.json is not the tokenizer that")


def test_what_is_wrong_with_other_shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()

    def refused(match, path=folder, vocab_size=300, **options):
        with pytest.raises(UserError, match=match) as error:
            open_corpus(str(path), vocab_size=vocab_size, **options)
        assert "\n" not in str(error.value)

    refused("has no token shards: no manifest.json")
    refused("there is no such file or directory", path=tmp_path / "none")
    TRAIN.tofile(folder / "train.bin")
    refused("task.validation_path='': .* has no validation shards")
    refused("train.bin is a training shard too", validation_path=str(folder / "train.bin"))
    HELD_OUT.tofile(folder / "val.bin")
    refused("task.corpus_vocab_size=0: nothing in .* says", vocab_size=0)
    refused("has the token 299; the vocabulary has 299", vocab_size=299)
    (folder / "val.bin").write_bytes(HELD_OUT.tobytes()[:-1])
    refused("val.bin has 399 bytes, which is no number of uint16 tokens")
    (folder / "val.bin").write_bytes(llm_c(HELD_OUT)[:-2])
    refused("val.bin was cut short: its header says 200 tokens, and it has 199")
    (folder / "val.bin").write_bytes(llm_c(HELD_OUT))
    refused("task.corpus_dtype='uint32': .*val.bin says that it is uint16", dtype="uint32")
    np.save(folder / "val.npy", HELD_OUT.astype(np.int64))
    refused("val.npy has an array of int64")
    content = (folder / "val.npy").read_bytes()
    (folder / "val.npy").write_bytes(content[:-8])
    refused("val.npy cannot be read")
    (folder / "val.npy").unlink()
    (folder / "val2.bin").write_bytes(llm_c(HELD_OUT.astype("<u4"), 20240801))
    refused("the validation shards are of uint16 and uint32")
