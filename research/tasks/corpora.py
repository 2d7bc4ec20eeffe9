"""Finds data files under DATA_DIR, or downloads them once and checks their sha256."""

import gzip
import http.client
import os
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from research.errors import UserError, did_you_mean
from research.tasks.digests import content_digest, file_digest, listing_digest, read_bytes

SECONDS = 60  # a download that stalls for this long is an error, not a hang
MOST_BYTES = 2**26  # size limit of a file in an archive


@dataclass(frozen=True)
class RemoteFile:
    """A downloadable file.

    Attributes:
      path: its path relative to the data directory.
      url: its download address.
      sha256: digest of its bytes, hexadecimal.
    """

    path: str
    url: str
    sha256: str


@dataclass(frozen=True)
class RemoteFolder:
    """Files of one folder, downloadable as an archive.

    Attributes:
      path: path of the folder relative to the data directory.
      url: address of a .tar.gz with the files in a folder of the same name.
      names: names of the files; others in the folder or the archive are ignored.
      sha256: digest of their contents, namely of the output of `LC_ALL=C sha256sum NAMES`. The
        archive itself is not checked, because servers regenerate it with different bytes.
    """

    path: str
    url: str
    names: tuple[str, ...]
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

_SST2 = {
    "train": "ec192f833a64da08f475488a77b0d0b47db47acd0f458bd18433fc793b569920",
    "dev": "eddea6b39e601dd4e7a672b53cc40fdf6019fa80522f351206c24340ca5d9359",
    "test": "831169c7e2e429d6026e1bdbb542f33b636e3e596caad9602ebc953c205928b7",
}

LABELLED_TEXTS = {
    "sst2": {
        split: RemoteFile(
            f"sst2/{split}.tsv",
            "https://raw.githubusercontent.com/clairett/pytorch-sentiment-classification/master/"
            f"data/SST2/{split}.tsv",
            sha256,
        )
        for split, sha256 in _SST2.items()
    },
}
"""Known texts with labels, by the name that `task.path` takes: {split: file}.

sst2: sentences of film reviews that are negative or positive, without the phrases they are made of
(Socher et al. 2013, "Recursive Deep Models for Semantic Compositionality Over a Sentiment
Treebank": 6,920 / 872 / 1,821 sentences).
"""

LABEL_NAMES = {"sst2": {"0": "negative", "1": "positive"}}
"""{known corpus: {label in the file: name of the class}}."""

FSDD_SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")

FSDD = RemoteFolder(
    "fsdd/recordings",
    "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz",
    tuple(
        f"{digit}_{speaker}_{index}.wav"
        for digit in range(10)
        for speaker in FSDD_SPEAKERS
        for index in range(50)
    ),
    "1801eae019c063377d98f831d3f93574f259475df7332bb0e3d1b080fb5e6959",
)
"""The Free Spoken Digit Dataset (Jackson et al., CC BY-SA 4.0): 3,000 recordings at 8 kHz."""


def cache_directory() -> Path:
    """Returns ~/.cache/attest, for computed files: the data directory may be read-only."""
    return Path.home() / ".cache" / "attest"


def data_directory() -> Path:
    """Returns $DATA_DIR, by default ~/.cache/attest."""
    return Path(os.environ.get("DATA_DIR") or cache_directory()).expanduser()


def fetch(file: RemoteFile) -> Path:
    """Returns the local path of `file`, and downloads it first if it is missing.

    Checks the sha256 of existing files too. Raises UserError if the download fails or the digest is
    wrong, and then leaves no file behind.
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
        _check(content_digest(content), file, file.url)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(content)
        os.replace(temporary, path)
    else:
        _check(file_digest(path), file, str(path))
    return path


def _check(found: str, file: RemoteFile, where: str) -> None:
    if found != file.sha256:
        raise UserError(f"{where} has sha256 {found}, not the recorded {file.sha256}.")


def fetch_folder(folder: RemoteFolder) -> Path:
    """Returns the local path of `folder`, and downloads its files first if it is missing.

    Extracts only the named files, and writes nothing until all of them are present and their digest
    is right. Checks existing files too.

    Raises UserError if the download fails, files are missing, or the digest is wrong.
    """
    path = data_directory() / folder.path
    if path.is_dir():
        present = [name for name in folder.names if (path / name).is_file()]
        _check_folder({name: file_digest(path / name) for name in present}, folder, str(path))
        return path
    try:
        contents = _download(folder)
        found = {name: content_digest(content) for name, content in contents.items()}
        _check_folder(found, folder, folder.url)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
            temporary = Path(scratch) / path.name
            temporary.mkdir()
            for name, content in contents.items():
                (temporary / name).write_bytes(content)
            _place(temporary, path)
    except (OSError, tarfile.TarError, http.client.HTTPException) as error:
        raise UserError(
            f"{folder.path} is not under {data_directory()} and could not be downloaded from "
            f"{folder.url} ({error}). Put it there by hand, or set DATA_DIR to a directory that "
            "has it."
        ) from None
    return path


def _download(folder: RemoteFolder) -> dict[str, bytes]:
    """Downloads the archive and returns {name: content} of the folder's files in it."""
    wanted, contents = set(folder.names), {}
    parent = Path(folder.path).name
    with (
        urllib.request.urlopen(folder.url, timeout=SECONDS) as response,
        tarfile.open(fileobj=response, mode="r|gz") as archive,
    ):
        for member in archive:
            *_, above, name = ("", *member.name.split("/"))
            if above == parent and name in wanted and member.size <= MOST_BYTES:
                file = archive.extractfile(member) if member.isfile() else None
                if file:
                    contents[name] = file.read()
    return contents


def _place(temporary: Path, path: Path) -> None:
    """Renames a folder to `path`; keeps an existing one that another process placed first."""
    try:
        os.rename(temporary, path)
    except OSError:
        if not path.is_dir():
            raise


def _check_folder(files: Mapping[str, str], folder: RemoteFolder, where: str) -> None:
    """Raises UserError if {name: sha256} lacks a file of the folder or has another digest."""
    missing = [name for name in folder.names if name not in files]
    if missing:
        raise UserError(
            f"{where} has {len(files):,} of the {len(folder.names):,} files of {folder.path}; "
            f"{missing[0]} is missing."
        )
    found = listing_digest(files)
    if found != folder.sha256:
        raise UserError(
            f"The files of {where} have sha256 {found} together, not the recorded {folder.sha256}."
        )


def text_file(name: str) -> Path:
    """Returns the file of a known text corpus or at a path.

    Raises UserError if `name` is neither.
    """
    path = fetch(TEXTS[name]) if name in TEXTS else Path(name).expanduser()
    if not path.is_file():
        raise UserError(
            f"task.path={name!r} is neither a file nor a known corpus "
            f"({', '.join(TEXTS)}).{did_you_mean(name, TEXTS)}"
        )
    return path


def read_file(path: Path) -> str:
    """Returns the text of a UTF-8 file, decompressed if its name ends in ".gz".

    Raises UserError if it cannot be read, or with line and byte offset if it is not UTF-8.
    """
    try:
        content = read_bytes(path)
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
    try:
        # Not read_text, which turns \r\n into \n and so changes the number of characters.
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} is not UTF-8 text: line {line}: {error}.") from None
