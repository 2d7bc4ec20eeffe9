"""Reads documents one by one from text files, JSON lines, parquet and the Hugging Face Hub.

A reader yields (number of records read so far, text). A killed command goes on by passing the last
such number as `start`: the records before it are skipped, and most readers need not parse them.
"""

import glob
import gzip
import importlib
import io
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.errors import UserError
from research.tasks.corpora import TEXTS, fetch

HUB = "hf:"
JSON_LINES = (".jsonl", ".ndjson", ".json")
PARQUET = ".parquet"
COMPRESSED = (".gz", ".zst")
CHUNK = 2**20
"""Characters of a text file that are read at a time."""
BUFFER = 2**20


@dataclass(frozen=True)
class Source:
    """A file of documents, a known text corpus, or a dataset of the Hugging Face Hub.

    Attributes:
      name: path of the file, name of the corpus, or "hf:NAME", "hf:NAME:CONFIG" or
        "hf:NAME:CONFIG:SPLIT".
      kind: "text", "json", "parquet", "corpus" or "hub".
      size: bytes of the file; 0 for a dataset of the Hub.
    """

    name: str
    kind: str
    size: int = 0


def optional(module: str, needed_for: str) -> Any:
    """Returns a module of the extra `data`. Raises UserError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise UserError(
            f'{needed_for} needs {package}, which is not installed: pip install "attest[data]", or '
            "pip install --require-hashes -r requirements-data.txt."
        ) from None


def find_sources(flag: str, patterns: Sequence[str]) -> list[Source]:
    """Returns the sources that paths, patterns such as data/*.jsonl.gz, and names stand for.

    Names are those of known text corpora, which are downloaded if they are missing, and hf:NAME.
    The sources are in the order of the patterns, and in that of their names within each.

    Raises UserError for a pattern without files, a folder, a file that is named twice, and for a
    kind of file whose library is not installed.
    """
    found: list[Source] = []
    for pattern in patterns:
        if pattern.startswith(HUB):
            optional("datasets", f"--{flag}={pattern}")
            found.append(Source(pattern, "hub"))
            continue
        # A file may have the characters of a pattern in its name.
        plain = os.path.expanduser(pattern)
        if pattern in TEXTS and not os.path.exists(plain):
            found.append(Source(pattern, "corpus", fetch(TEXTS[pattern]).stat().st_size))
            continue
        paths = [plain] if os.path.exists(plain) else sorted(glob.glob(plain, recursive=True))
        if not paths:
            known = f"known corpora: {', '.join(TEXTS)}"
            raise UserError(f"--{flag}={pattern!r}: there is no such file ({known}).")
        found += [_file(flag, path) for path in paths]
    names = [source.name for source in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--{flag} names {twice[0]} twice.")
    return found


def _file(flag: str, path: str) -> Source:
    if not os.path.isfile(path):
        raise UserError(f"--{flag}={path} is no file; for a folder, give {path.rstrip('/')}/*.")
    name = path.lower()
    plain = next((name.removesuffix(end) for end in COMPRESSED if name.endswith(end)), name)
    if name.endswith(".zst"):
        optional("zstandard", path)
    if name.endswith(PARQUET):
        optional("pyarrow.parquet", path)
        kind = "parquet"
    else:
        kind = "json" if plain.endswith(JSON_LINES) else "text"
    return Source(path, kind, os.path.getsize(path))


def records(
    source: Source, field: str, separator: str, start: int = 0
) -> Iterator[tuple[int, str]]:
    """Yields (number of records up to this one, text) for the records from `start` on.

    The text is "" where a record has none (null in JSON and parquet).

    Args:
      source: where to read.
      field: field of JSON lines, or column, that has the text.
      separator: what stands between the documents of a text file; "": each file is one document.
      start: number of records to skip.

    Raises UserError, with file and line, for what cannot be read, and for a record without the
    field or whose field is no text.
    """
    readers = {"json": _json_lines, "parquet": _parquet, "hub": _hub}
    if source.kind in ("text", "corpus"):
        path = str(fetch(TEXTS[source.name])) if source.kind == "corpus" else source.name
        yield from _texts(path, separator, start)
    else:
        yield from readers[source.kind](source.name, field, start)


def _opened(path: str) -> Any:
    """Returns a binary file, decompressed by the ending of its name."""
    if path.lower().endswith(".gz"):
        return gzip.open(path, "rb")
    if path.lower().endswith(".zst"):
        zstandard = optional("zstandard", path)
        file = zstandard.ZstdDecompressor().stream_reader(
            open(path, "rb"), read_across_frames=True, closefd=True
        )
        return io.BufferedReader(file, BUFFER)
    return open(path, "rb")


def _unreadable(path: str, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read: {' '.join(str(error).split())}.")


def _damage(path: str) -> tuple[type[Exception], ...]:
    """Returns what reading raises where a file was damaged or cut short."""
    zst = path.lower().endswith(".zst")
    more = (optional("zstandard", path).ZstdError,) if zst else ()
    return (OSError, EOFError, zlib.error, *more)


def _texts(path: str, separator: str, start: int) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with io.TextIOWrapper(_opened(path), "utf-8", newline="") as file:
            if not separator:
                if not start:
                    yield 1, file.read()
                return
            rest = ""
            while chunk := file.read(CHUNK):
                *whole, rest = (rest + chunk).split(separator)
                for text in whole:
                    number += 1
                    if number > start:
                        yield number, text
            if rest and number + 1 > start:
                yield number + 1, rest
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}.") from None
    except _damage(path) as error:
        raise _unreadable(path, error) from None


def _json_lines(path: str, field: str, start: int) -> Iterator[tuple[int, str]]:
    try:
        with _opened(path) as file:
            for number, line in enumerate(file, 1):
                if number > start and (line := line.strip()):
                    yield number, _field_of(line, field, f"{path}, line {number}")
    except _damage(path) as error:
        raise _unreadable(path, error) from None


def _field_of(line: bytes, field: str, where: str) -> str:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: this is no JSON: {error}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{where}: a JSON object is needed, not {type(content).__name__}.")
    if field not in content:
        raise UserError(
            f"{where} has no field {field!r}; it has {', '.join(content) or 'none'}. Name the one "
            "with the text by --field."
        )
    return _text(content[field], where, field)


def _text(value: Any, where: str, field: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: the field {field!r} is {type(value).__name__}, not text.")
    return value


def _parquet(path: str, field: str, start: int) -> Iterator[tuple[int, str]]:
    parquet, arrow = optional("pyarrow.parquet", path), optional("pyarrow", path)
    try:
        file = parquet.ParquetFile(path)
        schema = file.schema_arrow
        if field not in schema.names:
            raise UserError(
                f"{path} has no column {field!r}; it has {', '.join(schema.names)}. Name the one "
                "with the text by --field."
            )
        kind = schema.field(field).type
        if not (arrow.types.is_string(kind) or arrow.types.is_large_string(kind)):
            raise UserError(f"{path}: the column {field!r} is {kind}, not text.")
        number = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if number + rows <= start:
                number += rows
                continue
            for batch in file.iter_batches(1024, row_groups=[group], columns=[field]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    if number > start:
                        yield number, value or ""
    except (arrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def _hub(name: str, field: str, start: int) -> Iterator[tuple[int, str]]:
    datasets = optional("datasets", f"--input={name}")
    dataset, config, split, *_ = (*name.removeprefix(HUB).split(":"), "", "")
    try:
        rows = datasets.load_dataset(
            dataset, config or None, split=split or "train", streaming=True
        )
        rows = iter(rows.skip(start))
    except Exception as error:  # of the library, of its many dependencies, or of the network
        raise _unreadable(name, error) from None
    number = start
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise _unreadable(name, error) from None
        number += 1
        if field not in row:
            raise UserError(
                f"{name} has no column {field!r}; it has {', '.join(row)}. Name the one with the "
                "text by --field."
            )
        yield number, _text(row[field], f"{name}, row {number}", field)


def well_formed(text: str) -> tuple[str, bytes]:
    r"""Returns a text and its UTF-8 bytes.

    JSON can hold halves of a surrogate pair ("\ud800"), which no UTF-8 has; they become U+FFFD.
    """
    try:
        return text, text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text, text.encode()


def described(sources: Sequence[Source]) -> list[list]:
    """Returns [absolute path or dataset, bytes] of each source, for the record of a command."""
    return [
        [s.name if s.kind in ("hub", "corpus") else str(Path(s.name).absolute()), s.size]
        for s in sources
    ]
