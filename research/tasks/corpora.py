"""Finding a data file: under DATA_DIR, or downloaded once with its sha256 checked."""

import gzip
import hashlib
import os
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path

from research.errors import UserError, did_you_mean

SECONDS = 60  # a download that stalls for this long is an error, not a hang


@dataclass(frozen=True)
class RemoteFile:
    """A file that can be fetched.

    Attributes:
      path: where it lies below the data directory.
      url: where it comes from.
      sha256: of its bytes, hexadecimal.
    """

    path: str
    url: str
    sha256: str


TEXTS = {
    "tinyshakespeare": RemoteFile(
        "tinyshakespeare/input.txt",
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
}
"""Known text corpora, by the name that `task.path` takes."""

_MULTI30K = {
    "train.de": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
    "train.en": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
    "val.de": "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
    "val.en": "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
    "test_2016_flickr.de": "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
    "test_2016_flickr.en": "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
}

SENTENCE_PAIRS = {
    "multi30k": {
        name: RemoteFile(
            f"multi30k/{name}.gz",
            f"https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/{name}.gz",
            sha256,
        )
        for name, sha256 in _MULTI30K.items()
    },
}
"""Known parallel corpora, by the name that `task.path` takes: {"split.language": file}.

multi30k: captions of photographs, task 1, raw text (Elliott et al. 2016, arXiv 1605.00459).
"""


def cache_directory() -> Path:
    """Returns ~/.cache/attest, for what is computed: a data directory may be read-only."""
    return Path.home() / ".cache" / "attest"


def data_directory() -> Path:
    """Returns $DATA_DIR, or ~/.cache/attest."""
    return Path(os.environ.get("DATA_DIR") or cache_directory()).expanduser()


def fetch(file: RemoteFile) -> Path:
    """Returns the local path of `file`, downloading it when it is not there.

    Raises UserError when the download fails or the bytes are not the recorded ones; nothing is
    left behind then. A file that is already there is checked too.
    """
    path = data_directory() / file.path
    if not path.is_file():
        try:
            with urllib.request.urlopen(file.url, timeout=SECONDS) as response:
                content = response.read()
        except (urllib.error.URLError, OSError) as error:
            raise UserError(
                f"{file.path} is not under {data_directory()} and could not be downloaded from "
                f"{file.url} ({error}). Put it there by hand, or set DATA_DIR to a directory "
                "that has it."
            ) from None
        _check(content, file, file.url)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(content)
        os.replace(temporary, path)
    else:
        _check(path.read_bytes(), file, str(path))
    return path


def _check(content: bytes, file: RemoteFile, where: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise UserError(f"{where} has sha256 {found}, not the recorded {file.sha256}.")


def read_text(name: str) -> str:
    """Returns the text of a known corpus, or of the UTF-8 file at a path.

    Raises UserError when it is neither, or not UTF-8.
    """
    path = fetch(TEXTS[name]) if name in TEXTS else Path(name).expanduser()
    if not path.is_file():
        raise UserError(
            f"task.path={name!r} is neither a file nor a known corpus "
            f"({', '.join(TEXTS)}).{did_you_mean(name, TEXTS)}"
        )
    return read_file(path)


def read_file(path: Path) -> str:
    """Returns the text of a UTF-8 file, which may be compressed if its name ends in ".gz".

    Raises UserError with the line and the byte offset when it is no UTF-8, or is not readable.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
    try:
        # Not read_text, which would turn \r\n into \n and so change the number of characters.
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} is not UTF-8 text: line {line}: {error}.") from None
