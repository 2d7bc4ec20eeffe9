"""Reads and writes directories of a Hugging Face model: config.json, safetensors, tokenizer.json.

Tensors are read one by one, so a checkpoint of any size needs little memory beside what becomes of
it. Nothing is unpickled.
"""

import contextlib
import hashlib
import json
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from research.errors import UserError
from research.runs.parameters import NAMES, Described
from research.runs.store import read_json

CONFIG_FILE = "config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILE = "tokenizer.json"
GENERATION_FILE = "generation_config.json"
"""How to decode, in newer directories; it may have ids of tokens that config.json lacks."""
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
DTYPES = {there: here for here, there in NAMES.items()}
"""{name of a dtype in the format: "float32"...}."""
BLOCK = 2**22
"""Bytes that are hashed at a time."""


def read_config(directory: Path) -> dict[str, Any]:
    """Returns config.json of a model. Raises UserError if there is none."""
    if not directory.is_dir():
        raise UserError(
            f"--from={directory} is no directory; give that of a Hugging Face model: config.json "
            "and model.safetensors. A model of the hub is downloaded by `hf download NAME`."
        )
    config = read_json(directory / CONFIG_FILE)
    if not isinstance(config, dict):
        raise UserError(f"--from={directory} has no {CONFIG_FILE}, so it is no Hugging Face model.")
    return config


class Checkpoint:
    """The tensors of a directory, in one file or in several with an index.

    Attributes:
      files: {name of a tensor: its file}.
    """

    def __init__(self, directory: Path):
        self.files = _files(directory)

    def described(self) -> dict[str, Described]:
        """Returns {name: shape and dtype} of all tensors, of which none is read.

        Raises UserError for a damaged file, or one without a tensor of the index.
        """
        found = {}
        for file in sorted(set(self.files.values())):
            with _reading(file), safe_open(file, "numpy") as opened:
                there = set(opened.keys())
                for name in (n for n, f in self.files.items() if f == file):
                    if name not in there:
                        raise UserError(f"{file} has no tensor {name!r}; its index lists it.")
                    one = opened.get_slice(name)
                    dtype = DTYPES.get(one.get_dtype(), one.get_dtype())
                    found[name] = Described(tuple(one.get_shape()), dtype)
        return found

    def read(self, name: str) -> np.ndarray:
        """Returns the tensor of a name."""
        # Opened anew, because the pages of a mapped file stay in memory until it is closed.
        with safe_open(self.files[name], "numpy") as opened:
            return opened.get_tensor(name)

    def digests(self) -> dict[str, str]:
        """Returns {file name: sha256} of the files."""
        found = {}
        for file in sorted(set(self.files.values())):
            digest = hashlib.sha256()
            with open(file, "rb") as opened:
                while block := opened.read(BLOCK):
                    digest.update(block)
            found[file.name] = digest.hexdigest()
        return found


def _files(directory: Path) -> dict[str, Path]:
    if (directory / INDEX).is_file():
        try:
            listed = read_json(directory / INDEX)["weight_map"]
            files = {str(name): directory / Path(file).name for name, file in listed.items()}
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"{directory / INDEX} is damaged: it has no weight_map.") from None
        for file in sorted(set(files.values())):
            if not file.is_file():
                raise UserError(f"{file} is missing; {INDEX} lists it.")
        return files
    file = directory / SINGLE
    if file.is_file():
        with _reading(file), safe_open(file, "numpy") as opened:
            return {name: file for name in opened.keys()}
    pickled = sorted(p.name for pattern in PICKLED for p in directory.glob(pattern))
    if pickled:
        raise UserError(
            f"{directory / pickled[0]} is no safetensors file, and pickles are not read, because "
            "they can run any program. Convert it: with transformers, "
            f"AutoModel.from_pretrained(DIR).save_pretrained(NEW) writes {SINGLE}."
        )
    raise UserError(f"--from={directory} has no {SINGLE}, nor {INDEX}.")


@contextlib.contextmanager
def _reading(file: Path) -> Generator[None]:
    try:
        yield
    except SafetensorError as error:
        raise UserError(f"{file} is damaged, or no safetensors file: {error}.") from None


def write_model(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    tokenizer: str,
    generation: Mapping[str, Any],
) -> None:
    """Writes config.json, model.safetensors and, unless they are empty, the other two files.

    config.json comes last: a directory that has it is whole.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # Under another name first, so that no file is ever cut short under its own.
    unfinished = directory / f".{SINGLE}"
    save_file(dict(tensors), unfinished, metadata={"format": "pt"})
    unfinished.replace(directory / SINGLE)
    if tokenizer:
        (directory / TOKENIZER_FILE).write_text(tokenizer, encoding="utf-8")
    if generation:
        text = json.dumps(dict(generation), indent=2, sort_keys=True) + "\n"
        (directory / GENERATION_FILE).write_text(text, encoding="utf-8")
    text = json.dumps(dict(config), indent=2, sort_keys=True) + "\n"
    (directory / CONFIG_FILE).write_text(text, encoding="utf-8")
