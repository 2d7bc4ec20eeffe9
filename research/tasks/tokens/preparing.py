"""Turns documents into token shards, and goes on where an interrupted command stopped.

Documents are read in order by one process, encoded by many, and written in order, so the bytes do
not depend on how many encoded them or on where a command was interrupted. What is unfinished is in
a folder of its own (see `shards`), with a record of how far it has come.
"""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from research.errors import UserError
from research.runs.store import read_json, write_json, write_text
from research.tasks.digests import content_digest, file_digest
from research.tasks.tokens.documents import records, well_formed
from research.tasks.tokens.encoding import (
    BPE,
    Batch,
    Encoder,
    bpe_size,
    encode_all,
    make_encoder,
    train_bpe,
)
from research.tasks.tokens.request import Request, dtype_of, encoder_of, is_held_out
from research.tasks.tokens.shards import (
    MANIFEST,
    SPLITS,
    TOKENIZER,
    Counts,
    Writer,
    shard_name,
)

PARTIAL, PROGRESS = ".partial", "progress.json"
VERSION = 1
BATCH = 2**20
"""Characters that are encoded by one process at a time."""
TRAINED_ON = 2**30
"""Most bytes of training documents that a BPE is trained on, the first ones."""
SAVE_SECONDS = 10.0


@dataclass
class Progress:
    """How far the reading has come.

    Attributes:
      source, record: sources that were read whole, and records read of the next one.
      empty: documents without text, which are skipped.
      done: whether everything was read.
    """

    source: int = 0
    record: int = 0
    empty: int = 0
    done: bool = False
    shards: dict[str, list[dict]] = field(default_factory=dict)


class Totals(NamedTuple):
    """What this command did, for a line of progress; `read` of `sources` were read whole."""

    bytes: int
    documents: int
    tokens: int
    read: int
    sources: int


def prepare(
    request: Request,
    output: Path,
    processes: int,
    command: Sequence[str],
    report: Callable[[Totals], None],
) -> tuple[dict, bool]:
    """Writes the shards of a request, and returns the manifest and whether it was there already.

    Args:
      request: what to prepare.
      output: directory of the shards.
      processes: number of processes that encode.
      command: command line, for the manifest.
      report: called now and then with what was done.

    Raises UserError if `output` holds anything else, for input that cannot be read, or if a split
    would be empty.
    """
    record = request.record()
    manifest = read_json(output / MANIFEST)
    if manifest is not None:
        _check_same(manifest.get("request", {}), record, output)
        shutil.rmtree(output / PARTIAL, ignore_errors=True)
        return manifest, True
    partial = output / PARTIAL
    if output.is_dir() and (others := sorted(p.name for p in output.iterdir() if p != partial)):
        if read_json(partial / PROGRESS) is None:
            raise UserError(f"--output={output} is not empty: it has {others[0]}. Choose another.")
    # The tokenizer may be wrong: nothing is written before it was read.
    encoder = None if request.tokenizer.startswith(BPE) else encoder_of(request)
    if encoder:
        dtype_of(request, encoder)
    else:
        bpe_size(request.tokenizer)
    partial.mkdir(parents=True, exist_ok=True)
    with _alone_in(partial):
        known = read_json(partial / PROGRESS)
        if known is not None:
            _check_same(known["request"], record, output)
        encoder = _kept(request, encoder, partial)
        progress = Progress(**known["progress"]) if known else Progress()
        writers = _writers(request, encoder, partial, progress)
        if not progress.done:
            _write(request, encoder, processes, partial, record, progress, writers, report)
        _check_splits(request, writers, partial)
        manifest = _manifest(request, record, encoder, progress, writers, command, partial)
        _publish(output, manifest)
    shutil.rmtree(partial, ignore_errors=True)
    return manifest, False


def _check_same(there: dict, here: dict, output: Path) -> None:
    changed = [
        f"{key} was {there.get(key)!r} and is {here.get(key)!r}"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]
    if changed:
        raise UserError(
            f"--output={output} holds shards of another command: {'; '.join(changed[:3])}. Choose "
            "another, or delete that one."
        )


@contextlib.contextmanager
def _alone_in(partial: Path) -> Generator[None]:
    with open(partial / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is writing to {partial.parent}.") from None
        except OSError:  # a file system without locks
            pass
        yield


def _kept(request: Request, encoder: Encoder | None, partial: Path) -> Encoder:
    """Returns the encoder, trained if it has to be, and keeps its tokenizer beside the shards."""
    path = partial / TOKENIZER
    if encoder is None:
        if path.is_file():
            return make_encoder(path.read_text(encoding="utf-8"))
        encoder = train_bpe(bpe_size(request.tokenizer), _training_texts(request))
    write_text(path, encoder.json)
    return encoder


def _training_texts(request: Request) -> Iterator[str]:
    read = 0
    for source in request.sources:
        for _, text in records(source, request.field, request.separator):
            text, content = well_formed(text)
            if text.strip() and not is_held_out(content, request):
                yield text
                read += len(content)
                if read >= TRAINED_ON:
                    return


def _writers(
    request: Request, encoder: Encoder, partial: Path, progress: Progress
) -> dict[str, Writer]:
    dtype = dtype_of(request, encoder)
    writers = {}
    for split in SPLITS:
        shards = [Counts(**counts) for counts in progress.shards.get(split, [])]
        writers[split] = Writer(partial, split, request.shard_tokens, dtype, shards)
        # A finished command may have moved shards already.
        if not progress.done:
            writers[split].resume()
    return writers


class Label(NamedTuple):
    """What a batch knows of its documents besides their texts.

    Attributes:
      held_out: for each document, whether it is for validation.
      sizes: bytes of each.
      source, record, empty: as in `Progress`, behind the batch.
    """

    held_out: list[bool]
    sizes: list[int]
    source: int
    record: int
    empty: int


def _batches(request: Request, progress: Progress) -> Iterator[Batch]:
    sources = [*request.sources, *request.held_out]
    texts, held_out, sizes, waiting, empty = [], [], [], 0, progress.empty
    for index in range(progress.source, len(sources)):
        start = progress.record if index == progress.source else 0
        for number, text in records(sources[index], request.field, request.separator, start):
            text, content = well_formed(text)
            if not text.strip():
                empty += 1
                continue
            texts.append(text)
            sizes.append(len(content))
            held_out.append(index >= len(request.sources) or is_held_out(content, request))
            waiting += len(text)
            if waiting >= BATCH:
                yield Batch(texts, Label(held_out, sizes, index, number, empty))
                texts, held_out, sizes, waiting = [], [], [], 0
    yield Batch(texts, Label(held_out, sizes, len(sources), 0, empty))


def _write(
    request: Request,
    encoder: Encoder,
    processes: int,
    partial: Path,
    record: dict,
    progress: Progress,
    writers: dict[str, Writer],
    report: Callable[[Totals], None],
) -> None:
    """Writes all documents behind `progress`, which it keeps on disk."""

    def save() -> None:
        for split, writer in writers.items():
            writer.sync()
            progress.shards[split] = writer.record()
        write_json(partial / PROGRESS, {"request": record, "progress": asdict(progress)})

    sources = len(request.sources) + len(request.held_out)
    saved, size, documents, written = time.monotonic(), 0, 0, 0
    save()
    for label, tokens, counts in encode_all(encoder, _batches(request, progress), processes):
        held_out, sizes = np.array(label.held_out, bool), np.array(label.sizes, np.int64)
        for split, chosen in (("train", ~held_out), ("validation", held_out)):
            mine = tokens[np.repeat(chosen, counts)]
            writers[split].add(mine, counts[chosen].cumsum(), sizes[chosen])
        progress.source, progress.record = label.source, label.record
        progress.empty = label.empty
        size, documents = size + int(sizes.sum()), documents + len(counts)
        written += len(tokens)
        report(Totals(size, documents, written, label.source, sources))
        if time.monotonic() - saved >= SAVE_SECONDS:
            save()
            saved = time.monotonic()
    for writer in writers.values():
        writer.close()
    progress.done = True
    save()


def _check_splits(request: Request, writers: dict[str, Writer], partial: Path) -> None:
    documents = {split: sum(s.documents for s in w.shards) for split, w in writers.items()}
    if all(documents.values()):
        return
    shutil.rmtree(partial)
    with contextlib.suppress(OSError):
        partial.parent.rmdir()
    if request.held_out or not any(documents.values()):
        flag = "--validation_input" if documents["train"] else "--input"
        raise UserError(f"{flag}: no document there has any text.")
    raise UserError(
        f"--validation={request.validation:g} of {sum(documents.values()):,} documents leaves none "
        f"for {'validation' if documents['train'] else 'training'}. Give another fraction, files "
        "of their own (--validation_input), or what stands between the documents of a text file "
        "(--separator)."
    )


def _manifest(
    request: Request,
    record: dict,
    encoder: Encoder,
    progress: Progress,
    writers: dict[str, Writer],
    command: Sequence[str],
    partial: Path,
) -> dict:
    splits = {}
    for split, writer in writers.items():
        shards = []
        for index, shard in enumerate(writer.shards):
            name = shard_name(split, index)
            here = next(p / name for p in (partial, partial.parent) if (p / name).is_file())
            shards.append({"file": name, **asdict(shard), "sha256": file_digest(here)})
        totals = {
            key: sum(getattr(s, key) for s in writer.shards)
            for key in ("tokens", "documents", "bytes")
        }
        splits[split] = {**totals, "shards": shards}
    tokenizer = {"file": TOKENIZER, "sha256": content_digest(encoder.json.encode())}
    return {
        "version": VERSION,
        "dtype": dtype_of(request, encoder).name,
        "vocab_size": encoder.vocab_size,
        "end_token": encoder.end,
        "tokenizer": tokenizer,
        "splits": splits,
        "empty_documents": progress.empty,
        "request": record,
        "command": list(command),
    }


def _publish(output: Path, manifest: dict) -> None:
    """Moves the finished files out of the partial folder, and writes the manifest last."""
    names = [shard["file"] for split in manifest["splits"].values() for shard in split["shards"]]
    for name in (*names, TOKENIZER):
        if (output / PARTIAL / name).is_file():
            os.replace(output / PARTIAL / name, output / name)
    write_json(output / MANIFEST, manifest)
