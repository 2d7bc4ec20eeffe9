"""Small corpora of documents, and requests to prepare them."""

import json
from pathlib import Path
from typing import Any

from research.tasks.tokens.documents import find_sources
from research.tasks.tokens.preparing import prepare
from research.tasks.tokens.request import Request

DEFAULTS = {
    "field": "text",
    "separator": "",
    "tokenizer": "bytes",
    "end_token": "",
    "validation": 0.2,
    "shard_tokens": 100_000_000,
    "dtype": "auto",
}


def texts(number: int) -> list[str]:
    """Returns documents that differ, of several lines and several bytes a character."""
    return [
        f"Document {i}: äöü 🙂\n{'To be, or not to be. ' * (i % 7)}\n\n end" for i in range(number)
    ]


def json_lines(path: Path, documents: list[Any]) -> str:
    """Writes a file of JSON lines."""
    lines = (json.dumps({"id": i, "text": text}) for i, text in enumerate(documents))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def request(paths: list[str], held_out: tuple[str, ...] = (), **options: Any) -> Request:
    """Returns a request with the defaults changed."""
    sources = find_sources("input", paths), find_sources("validation_input", held_out)
    return Request(*sources, **DEFAULTS | options)


def prepared(asked: Request, output: Path, processes: int = 1, report: Any = None) -> dict:
    """Prepares a request and returns its manifest."""
    return prepare(asked, output, processes, ["prepare"], report or (lambda done: None))[0]


def corpus(folder: Path, number: int = 60, **options: Any) -> Path:
    """Writes documents and returns the directory of their shards."""
    path = json_lines(folder / "documents.jsonl", texts(number))
    prepared(request([path], **options), folder / "tokens")
    return folder / "tokens"
