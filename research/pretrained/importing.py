"""Makes a run of a Hugging Face model, which every command takes that takes a trained run."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from research.errors import UserError, check_name
from research.models.model import parameter_shapes
from research.models.registry import make_model
from research.pretrained.config_reader import ConfigReader
from research.pretrained.families.rope import check_length
from research.pretrained.family import Family
from research.pretrained.files import GENERATION_FILE, TOKENIZER_FILE, Checkpoint, read_config
from research.pretrained.matching import Matched, Parameter, assembled, match
from research.pretrained.registry import FAMILIES
from research.pretrained.special_tokens import special_tokens
from research.pretrained.tensors import UNREAD
from research.runs.parameters import PARAMETERS, write_parameters
from research.runs.store import CONFIG, ENVIRONMENT, read_json, write_json, write_text
from research.tasks.text.tokenizer import CORPUS, FILE, digest_of, from_json
from research.training.records.environment import describe_environment
from research.training.runs import shapes_of_a_batch
from research.training.schema import resolve, run_record

IMPORTED = "imported.json"
"""File of a run with where it comes from, the files' digests and their config.json and
generation_config.json."""
UNREAD_FILE = f"{UNREAD}.safetensors"
"""File of an imported run with what its checkpoint has and no model reads."""
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
    check_length(theirs, length)
    vocab_size = int(read("vocab_size"))
    config, labels = _config(family, model, length, data), _labels(family, theirs)
    checkpoint = Checkpoint(directory)
    shapes = _shapes(config, vocab_size, len(labels))
    model = config.model.to_dict() | model | {"length": length}
    matched = match(family, model, shapes, checkpoint.described())
    tokenizer = _tokenizer(directory, vocab_size)
    generation = read_json(directory / GENERATION_FILE) or {}
    known: dict[str, Any] = {"vocab_size": vocab_size}
    if family.task != "tokens":
        special = special_tokens(family, theirs, generation, vocab_size, tokenizer)
        known |= {"special": special} | ({"labels": labels} if labels else {})
    record = {
        "family": family.name,
        "from": str(directory),
        "files": checkpoint.digests(),
        "config": theirs,
        "generation": generation,
    }
    _check_run(run, record)
    _write_parameters(run, checkpoint, matched)
    if tokenizer:
        write_text(run / FILE, tokenizer)
        known["tokenizer"] = digest_of(tokenizer)
    write_json(run / CORPUS, known)
    write_json(run / IMPORTED, record)
    write_json(run / ENVIRONMENT, describe_environment())
    write_json(run / CONFIG, run_record(config))
    of_model = _files_of(matched.parameters)[PARAMETERS].values()
    number = sum(int(np.prod(one.described.shape)) for one in of_model)
    return Imported(family.name, number, length, trained, bool(tokenizer))


def _write_parameters(run: Path, checkpoint: Checkpoint, matched: Matched) -> None:
    """Writes the parameters of a run, one by one.

    Args:
      run: its directory.
      checkpoint: the tensors.
      matched: which of them each parameter is.

    Raises UserError if tensors differ that must be equal.
    """

    def tensor(name: str) -> np.ndarray:
        one = matched.absent.get(name, name)
        return checkpoint.read(one) if isinstance(one, str) else one

    parameters = matched.parameters
    for name, other in matched.repeated:
        if not np.array_equal(tensor(name), tensor(other)):
            raise UserError(
                f"{name} differs from {other}, which by config.json (tie_word_embeddings) it "
                "repeats."
            )
    for file, some in _files_of(parameters).items():
        described = {path: one.described for path, one in some.items()}
        write_parameters(run / file, described, lambda path: assembled(parameters[path], tensor))


def _files_of(parameters: Mapping[str, Parameter]) -> dict[str, dict[str, Parameter]]:
    """Returns {file of the run: what is in it}, the parameters of the model first."""
    unread = {path: one for path, one in parameters.items() if path.startswith(UNREAD)}
    rest = {path: one for path, one in parameters.items() if path not in unread}
    return {PARAMETERS: rest} | ({UNREAD_FILE: unread} if unread else {})


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


def _config(family: Family, model: dict[str, Any], length: int, data: str) -> ConfigDict:
    """Returns the resolved config of the run."""
    task: dict[str, Any] = {"name": family.task, "length": length}
    if data and family.task != "tokens":
        raise UserError(
            f"--data={data}: a {family.name} model does not read a corpus of tokens; leave it out."
        )
    if data:
        task["path"] = data
    return resolve({"task": task, "model": model})


def _shapes(config: ConfigDict, vocab_size: int, classes: int) -> Any:
    model = make_model(config.model, vocab_size, config.task.length, classes=classes)
    return parameter_shapes(model, shapes_of_a_batch(config))


def _labels(family: Family, config: Mapping[str, Any]) -> list[str]:
    """Returns the names of the classes, [] if it has none. Raises UserError for a damaged list."""
    if family.task != "sentiment":
        return []
    # config.json leaves the names out where it has two classes without names.
    named = config.get("id2label") or {
        i: f"LABEL_{i}" for i in range(config.get("num_labels") or 2)
    }
    try:
        numbers = {int(key): str(name) for key, name in named.items()}
    except (AttributeError, ValueError):
        numbers = {}
    if sorted(numbers) != list(range(len(numbers))) or len(numbers) < 2:
        raise UserError(
            f"config.json has id2label={named!r}; it must name 2 or more classes, from 0 on."
        )
    return [numbers[i] for i in range(len(numbers))]


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
