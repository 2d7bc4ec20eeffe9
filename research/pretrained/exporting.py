"""Writes the model of a run as a Hugging Face directory, which transformers loads."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from research.errors import UserError, check_name
from research.models.stacks import by_layer
from research.pretrained.config_reader import ConfigReader
from research.pretrained.family import Family
from research.pretrained.files import CONFIG_FILE, write_model
from research.pretrained.importing import UNREAD_FILE, imported_from
from research.pretrained.patterns import layers_of
from research.pretrained.registry import FAMILIES
from research.pretrained.special_tokens import IDS
from research.pretrained.tensors import UNREAD, Tensor, head_width
from research.runs.parameters import PARAMETERS, read_parameters
from research.tasks.text.tokenizer import FILE
from research.training.runs import LoadedRun
from research.training.schema import resolve

MODELS = {"tokens": "decoder", "translation": "encoder_decoder", "sentiment": "classifier"}
"""{`task.name` of the runs of a family: `model.name` of its models}."""
WITHOUT_EFFECT = frozenset(
    """
    base_width block_size dropout dtype embedding_stddev implementation init_scale init_stddev
    loss_chunk remat remat_keeps name
    """.split()
)
"""Keys of a model that its function of parameters and tokens does not depend on."""
SHOWN = 3
"""How many differences a message lists."""


def export_model(run: LoadedRun, directory: Path, family: str = "") -> str:
    """Writes the model of a run, and returns the name of the family it was written as.

    Args:
      run: the run; one that was imported is written as it was, bit by bit.
      directory: where to write config.json, model.safetensors and tokenizer.json.
      family: name of the family; "": the one that the run was imported from, or the first that has
        all that the model is made of.

    Raises UserError if no family has it, or the directory holds another model.
    """
    if (directory / CONFIG_FILE).exists():
        raise UserError(f"--output={directory} holds a model already; choose another directory.")
    record = imported_from(run.path)
    if family:
        check_name("--family", family, FAMILIES)
    if record and family in ("", record["family"]):
        chosen, config = FAMILIES[record["family"]], dict(record["config"])
        generation = record.get("generation", {})
    else:
        generation = {}
        chosen, config = fitting(run, family)
    values = _values(run)
    options = _options(run) | {"length": run.config.task.length}
    every = [one for one in chosen.tensors(options) if not one.repeats]
    tensors = {
        one.theirs: one.layout.to_theirs(_parts(one, values))
        for one in every
        if _checked_copies(one, values)
    }
    for one in every:
        other = tensors.get(one.otherwise) if isinstance(one.otherwise, str) else one.otherwise
        if other is not None and np.array_equal(other, tensors[one.theirs]):
            del tensors[one.theirs]
    tokenizer = run.path / FILE
    text = tokenizer.read_text(encoding="utf-8") if tokenizer.is_file() else ""
    write_model(directory, config, tensors, text, generation)
    return chosen.name


def _options(run: LoadedRun) -> dict[str, Any]:
    return run.config.model.to_dict()


def _values(run: LoadedRun) -> dict[str, np.ndarray]:
    """Returns {path with the number of the layer: values} of all parameters.

    They have the dtypes of the checkpoint that a run was imported from.
    """
    kept, own = run.path / UNREAD_FILE, run.path / PARAMETERS
    unread = dict(read_parameters(kept)) if kept.is_file() else {}
    read = unflatten_dict(dict(read_parameters(own)), sep="/") if own.is_file() else run.params
    # Taken apart on the host: on the device, each shape would compile a program.
    values = by_layer(jax.tree.map(np.asarray, read))
    return {"/".join(path): array for path, array in values.items()} | unread


def _parts(one: Tensor, values: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Returns the parts of a tensor; rows that no model reads are 0 if the run has none."""
    known = next(values[path] for path in one.ours if path in values)
    return [
        np.zeros((one.layout.sizes[part], *known.shape[1:]), known.dtype)
        if path.startswith(UNREAD) and path not in values
        else values[path]
        for part, path in enumerate(one.ours)
    ]


def _checked_copies(one: Tensor, values: Mapping[str, np.ndarray]) -> bool:
    """Returns True. Raises UserError if layers that share a tensor there differ here."""
    for path in one.copies:
        if not np.array_equal(values[path], values[one.ours[0]]):
            raise UserError(
                f"{path} and {one.ours[0]} differ, and {one.theirs} is both: training has made "
                "them different. No such model can be written."
            )
    return True


def fitting(run: LoadedRun, name: str) -> tuple[Family, dict[str, Any]]:
    """Returns a family that has all that a model is made of, and the model's config.json.

    Args:
      run: the run.
      name: name of the family; "": the first that has it all.

    Raises UserError if none has, which says what the nearest lacks.
    """
    lacking: dict[str, tuple[float, str]] = {}  # how much each lacks, and what
    for family in [FAMILIES[name]] if name else FAMILIES.values():
        if run.config.model.name != MODELS[family.task]:
            lacking[family.name] = math.inf, f"model.name={run.config.model.name!r}"
            continue
        try:
            config = _config(family, run)
            different = _differences(family, run, config)
        except UserError as error:
            lacking[family.name] = math.inf, str(error).rstrip(".")
            continue
        if not different:
            return family, config
        lacking[family.name] = len(different), ", ".join(different[:SHOWN])
    nearest = min(lacking, key=lambda family: lacking[family][0])
    reasons = lacking[nearest][1]
    if name:
        raise UserError(f"--family={name}: {reasons}.")
    raise UserError(
        f"no family has all that {run.path} is made of; the nearest is {nearest}: {reasons}. "
        "--family=NAME says what another lacks."
    )


def _config(family: Family, run: LoadedRun) -> dict[str, Any]:
    """Returns config.json of a model as one of a family. Raises UserError if it cannot be."""
    try:
        config = family.config(_options(run), run.config.task.length)
    except KeyError as error:
        raise UserError(
            f"the model has no model.{error.args[0]}, which that of a {family.name} has"
        ) from None
    named = {"model_type": family.name, "architectures": [family.architecture]}
    return config | named | {"vocab_size": _vocab_size(run)} | _tokens(run)


def _differences(family: Family, run: LoadedRun, config: Mapping[str, Any]) -> list[str]:
    """Returns how a model that is read from a config.json differs from that of a run.

    Raises UserError if it cannot be read.
    """
    read = ConfigReader(config)
    options = family.options(read)
    task = {"name": family.task, "length": family.length(read)}
    back = resolve({"task": task, "model": options})
    found: dict[str, str] = {}
    every = zip(layers_of(_options(run)), layers_of(back.model.to_dict()), strict=False)
    for ours, theirs in every:
        for key in sorted((ours.keys() | theirs.keys()) - WITHOUT_EFFECT):
            if _meant(ours, key) != _meant(theirs, key):
                text = f"model.{key}={ours.get(key)!r}, which is {theirs.get(key)!r} there"
                found.setdefault(key, text)
    return list(found.values())


def _meant(layer: Mapping[str, Any], key: str) -> Any:
    """Returns the value of a key of a layer, with those filled in that 0 stands for."""
    value = layer.get(key)
    if key in ("num_kv_heads", "num_key_heads"):
        return value or layer.get("num_heads")
    if key == "encoder_layers":
        return value or layer.get("num_layers")
    if key in ("head_width", "feature_width", "value_width"):
        return value or head_width(layer)
    if key == "score_scale":
        return value or head_width(layer) ** -0.5
    return value


def _vocab_size(run: LoadedRun) -> int:
    """Returns the number of rows of the table of embeddings."""
    tables = flatten_dict(run.params, sep="/")
    return len(tables["embedding"] if "embedding" in tables else tables["embed/embedding"])


def _tokens(run: LoadedRun) -> dict[str, Any]:
    """Returns what config.json has of the tokens of an encoder-decoder, and of classes."""
    if run.labels:
        named = {str(i): label for i, label in enumerate(run.labels)}
        return {"id2label": named, "label2id": {label: int(i) for i, label in named.items()}}
    if run.config.model.name != MODELS["translation"]:
        return {}
    return {key: getattr(run.special, name) for key, name in IDS.items() if name != "first"}
