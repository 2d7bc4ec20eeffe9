"""Makes a run of a Hugging Face model, which every command takes that takes a trained run."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from research.errors import UserError, check_name
from research.models.model import parameter_shapes
from research.models.registry import make_model
from research.pretrained.config_reader import ConfigReader
from research.pretrained.family import Family
from research.pretrained.files import TOKENIZER_FILE, Checkpoint, read_config
from research.pretrained.matching import assembled, match, repeats
from research.pretrained.registry import FAMILIES
from research.runs.parameters import PARAMETERS, write_parameters
from research.runs.store import CONFIG, ENVIRONMENT, read_json, write_json, write_text
from research.tasks.text.tokenizer import CORPUS, FILE, digest_of, from_json
from research.training.records.environment import describe_environment
from research.training.schema import resolve, run_record

IMPORTED = "imported.json"
"""File of a run with where it comes from, the files' digests and their config.json."""
LONGEST = 4096
"""Positions of an imported model, if it has more and nobody asks for them: caches are as long."""


class Imported(NamedTuple):
    """What was imported.

    Attributes:
      family: the name of the family.
      parameters: number of parameters.
      length: number of positions.
      trained_length: number of positions that config.json says.
      tokenizer: whether there is one.
    """

    family: str
    parameters: int
    length: int
    trained_length: int
    tokenizer: bool


def import_model(
    directory: Path,
    run: Path,
    length: int = 0,
    dtype: str = "float32",
    data: str = "",
    ignored: Collection[str] = (),
) -> Imported:
    """Writes a run with the model of a directory; config.json, which makes it one, comes last.

    Args:
      directory: a Hugging Face model: config.json, safetensors and, if it has one, tokenizer.json.
      run: the run directory; it must not hold another run.
      length: number of positions; 0: as config.json says, at most `LONGEST`.
      dtype: dtype of the activations. Parameters are computed with in float32, whatever the
        checkpoint has.
      data: `task.path` of the run: a prepared corpus with the model's tokenizer; "": none.
      ignored: keys of config.json to ignore.

    Raises UserError for what cannot be read, before anything is written.
    """
    theirs = read_config(directory)
    family = family_of(theirs)
    read = ConfigReader(theirs, ignored)
    model = family.options(read) | {"dtype": dtype}
    trained = family.length(read)
    read.check_all_read()
    length = _length(model, length, trained)
    vocab_size = int(read("vocab_size"))
    config = _config(model, length, data)
    checkpoint = Checkpoint(directory)
    shapes = _shapes(config, vocab_size)
    there, model = checkpoint.described(), config.model.to_dict() | model
    parameters = match(family, model, shapes, there)
    tokenizer = _tokenizer(directory, vocab_size)
    record = {
        "family": family.name,
        "from": str(directory),
        "files": checkpoint.digests(),
        "config": theirs,
    }
    _check_run(run, record)
    for name, other in repeats(family, model, there):
        if not np.array_equal(checkpoint.read(name), checkpoint.read(other)):
            raise UserError(
                f"{name} differs from {other}, which by config.json (tie_word_embeddings) it "
                "repeats."
            )
    described = {path: one.described for path, one in parameters.items()}
    write_parameters(
        run / PARAMETERS, described, lambda path: assembled(parameters[path], checkpoint.read)
    )
    known: dict[str, Any] = {"vocab_size": vocab_size}
    if tokenizer:
        write_text(run / FILE, tokenizer)
        known["tokenizer"] = digest_of(tokenizer)
    write_json(run / CORPUS, known)
    write_json(run / IMPORTED, record)
    write_json(run / ENVIRONMENT, describe_environment())
    write_json(run / CONFIG, run_record(config))
    number = sum(int(np.prod(one.described.shape)) for one in parameters.values())
    return Imported(family.name, number, length, trained, bool(tokenizer))


def family_of(config: dict[str, Any]) -> Family:
    """Returns the family of a config.json. Raises UserError for one that is not known."""
    name = str(config.get("model_type"))
    check_name("config.json has model_type", name, FAMILIES)
    family = FAMILIES[name]
    named = config.get("architectures") or [family.architecture]
    # MosaicML's own class is MPTForCausalLM.
    if family.architecture.lower() not in (one.lower() for one in named):
        raise UserError(
            f"config.json has architectures={named}; of model_type={name!r}, "
            f"{family.architecture} can be read."
        )
    return family


def _length(model: dict[str, Any], asked: int, trained: int) -> int:
    """Returns the number of positions. Raises UserError if the table of positions is of others."""
    if model.get("position") == "learned":
        if asked not in (0, trained):
            raise UserError(
                f"--length={asked}: the model has a table of {trained:,} learned positions; leave "
                "it out."
            )
        return trained
    return asked or min(trained, LONGEST)


def _config(model: dict[str, Any], length: int, data: str) -> ConfigDict:
    """Returns the resolved config of the run."""
    task: dict[str, Any] = {"name": "tokens", "length": length}
    if data:
        task["path"] = data
    return resolve({"task": task, "model": model})


def _shapes(config: ConfigDict, vocab_size: int) -> Any:
    model = make_model(config.model, vocab_size, config.task.length)
    tokens: Any = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return parameter_shapes(model, {"inputs": tokens})


def _tokenizer(directory: Path, vocab_size: int) -> str:
    """Returns tokenizer.json, "" if there is none. Raises UserError if it is not the model's."""
    file = directory / TOKENIZER_FILE
    if not file.is_file():
        return ""
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        tokenizer = from_json(text)
    except Exception as error:  # the library raises nothing more specific
        raise UserError(f"{file} is damaged: {type(error).__name__}: {error}.") from None
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{file} has {tokenizer.vocab_size:,} tokens, and the model {vocab_size:,}: it is that "
            "of another model."
        )
    return text


def _check_run(run: Path, record: dict[str, Any]) -> None:
    """Raises UserError if a run directory holds another run."""
    if (run / CONFIG).exists() and read_json(run / IMPORTED) != record:
        raise UserError(f"{run} holds another run. Choose another --workdir, or delete that one.")


def imported_from(run: Path) -> dict[str, Any] | None:
    """Returns the record of an imported run; None for a run that was trained."""
    return read_json(run / IMPORTED)
