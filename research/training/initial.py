"""Starts a population from the parameters of other runs, and records which these were.

<run>/initial.json has, for each member, the path of the run that it started from, the digest of the
parameters there, which keys of the model differ from it, and which parameters were not taken from
it or by it. A run that goes on from a checkpoint of its own needs the other run no more.
"""

import contextlib
import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from research.configuration import differences
from research.errors import UserError
from research.models.conversion import as_arrays, convert, without_heads
from research.parallel.parallelize import to_global_arrays
from research.parallel.processes import fetch, on_first
from research.runs.bucket import open_workdir
from research.runs.parameters import Stored
from research.runs.store import read_json, write_json
from research.tasks.task import Task
from research.tasks.text.tokenizer import FILE, digest_of, from_json
from research.training.program import Program, make_members
from research.training.runs import LoadedRun, load_best_params, load_run_config, open_run
from research.training.schema import resolve
from research.training.transfer import make_transfer, taught_layers

INITIAL = "initial.json"
BLOCK = 2**22
"""Numbers of a parameter that are hashed at a time."""
TOLD = {
    "changed": "not as in {}",
    "fresh": "at initial values, not from {}",
    "unused": "of {}, not used",
}
"""{list in `INITIAL`: what is printed before its items}."""


class Initial(NamedTuple):
    """What the members of a population start from.

    Attributes:
      params: host arrays with a leading member axis P, or what `to_global_arrays` asks for parts.
      records: content of `INITIAL` for each member.
    """

    params: PyTree
    records: Sequence[dict[str, Any]]


def load_initial(program: Program, configs: Sequence[ConfigDict]) -> Initial | None:
    """Returns the parameters that `train.init_from` of each member names, converted to its model.

    Returns None if the members start from random parameters.

    Raises UserError if a run cannot be read, or its vocabulary, tokenizer or a parameter does not
    fit.
    """
    if not configs[0].train.init_from:
        return None
    params, records = [], []
    # One model is mostly taught to several members.
    made = functools.cache(functools.partial(make_transfer, program))
    for config, source in zip(configs, _sources(configs), strict=True):
        own, record = _converted(source, program, config, _initial_params(program, config))
        if steps := config.train.transfer_steps:
            transfer = made(source.model, steps, config.train.transfer_rate)
            own, record["transfer"] = transfer(config, own, source.params)
        params.append(own)
        records.append(record)
    return Initial(jax.tree.map(lambda *leaves: _of_members(leaves), *params), records)


class _Members:
    """Parameters of members that are read in parts; see `research.runs.parameters.Stored`."""

    def __init__(self, leaves: Sequence[Any]):
        self._leaves, self.dtype = leaves, leaves[0].dtype
        self.shape = (len(leaves), *leaves[0].shape)

    def __getitem__(self, index: tuple) -> np.ndarray:
        return np.stack([leaf[index[1:]] for leaf in self._leaves[index[0]]])


def _of_members(leaves: Sequence[Any]) -> Any:
    """Returns the parameters of all members, with a leading axis of members."""
    stored = any(isinstance(leaf, Stored) for leaf in leaves)
    return _Members(leaves) if stored else np.stack(leaves)


def check_initial(asked: Sequence[tuple[str, Program, ConfigDict]]) -> None:
    """Raises UserError if a config names a run that `load_initial` would refuse for its program.

    Args:
      asked: (what the message begins with, program, config).
    """
    ordered = sorted(asked, key=lambda one: one[2].train.init_from)
    sources = _sources([config for _, _, config in ordered])
    for where, program, config in ordered:
        shapes = program.parameters
        try:
            _converted(next(sources), program, config, lambda shapes=shapes: as_arrays(shapes))
        except UserError as error:
            raise UserError(f"{where}{error}") from None


def _sources(configs: Sequence[ConfigDict]) -> Iterator[LoadedRun]:
    """Yields the run that each config names; of neighbours that name the same, it is read once."""
    for path, same in itertools.groupby(configs, lambda config: config.train.init_from):
        source = _open(path)
        for _ in same:
            yield source


def start_from(
    program: Program, configs: Sequence[ConfigDict], runs: Sequence[Path], resumes: bool
) -> Initial | None:
    """Returns what a population starts from; None: random parameters, or its own checkpoint.

    Args:
      program: the program.
      configs: configs of the members.
      runs: their directories.
      resumes: whether there is a checkpoint of their own.

    Raises UserError as `load_initial` does, or if the runs began from other parameters. A run that
    resumes does not miss a source that is gone.
    """
    if not configs[0].train.init_from:
        return None
    initial = None if resumes else load_initial(program, configs)
    records = _present(configs) if initial is None else initial.records
    on_first(lambda: check_same_source(records, runs))
    return initial


def _present(configs: Sequence[ConfigDict]) -> list[dict[str, Any]]:
    """Returns {"source", "digest"} of what each member names; the digest is "" where it is gone."""
    digests = {config.train.init_from: "" for config in configs}
    for path in digests:
        with contextlib.suppress(UserError):
            digests[path] = digest(load_best_params(open_workdir(path), in_parts=True)[0])
    return [
        {"source": config.train.init_from, "digest": digests[config.train.init_from]}
        for config in configs
    ]


def _open(path: str) -> LoadedRun:
    try:
        run = open_workdir(path)
        return open_run(run, load_run_config(run), in_parts=True)
    except UserError as error:
        raise UserError(f"train.init_from={path!r}: {error}") from None


def _converted(
    source: LoadedRun, program: Program, config: ConfigDict, initial: Callable[[], PyTree]
) -> tuple[PyTree, dict[str, Any]]:
    """Returns the parameters of one member, and what is recorded of them. Raises UserError."""
    path = config.train.init_from
    try:
        own, record = _convert(source, program, config, initial)
    except UserError as error:
        raise UserError(f"train.init_from={path!r}: {error}.") from None
    return own, {"source": path} | record


def _convert(
    source: LoadedRun, program: Program, config: ConfigDict, initial: Callable[[], PyTree]
) -> tuple[PyTree, dict[str, Any]]:
    name, other = config.model.name, source.config.model.name
    if name != other:
        raise UserError(f"its model is a {other!r}, and model.name={name!r}")
    _check_vocabulary(source, program)
    params = jax.tree.map(lambda a: a if isinstance(a, Stored) else np.asarray(a), source.params)
    shapes = program.parameters
    found = convert(params, source.model, program.model, shapes, initial, config.train.init_heads)
    taken = config.train.init_without_heads
    try:
        kept = without_heads(found.params, program.model, taken)
    except UserError as error:
        raise UserError(f"train.init_without_heads={tuple(taken)!r}: {error}") from None
    if steps := config.train.transfer_steps:
        try:
            taught_layers(source.model, program.model)
        except UserError as error:
            raise UserError(f"train.transfer_steps={steps}: {error}") from None
    return kept, {
        "digest": digest(params),
        "step": source.best["step"],
        "changed": differences(*({"model": c.model} for c in (source.config, resolve(config)))),
        "fresh": list(found.fresh),
        "unused": list(found.unused),
    }


def _initial_params(program: Program, config: ConfigDict) -> Callable[[], PyTree]:
    """Returns a function that draws the ordinary initial parameters of a member."""

    def draw() -> PyTree:
        # As many members as the layout can split.
        members = make_members([config] * program.layout.member)
        state = program.init(to_global_arrays(members, program.members))
        return jax.tree.map(lambda leaf: fetch(leaf)[0], state.params)

    return draw


def _check_vocabulary(source: LoadedRun, program: Program) -> None:
    """Raises UserError if tokens do not mean the same to a source and to a program."""
    there, here = (getattr(m.config, "vocab_size", 0) for m in (source.model, program.model))
    if there != here:
        raise UserError(f"its vocabulary has {there:,} tokens, that of the task {here:,}")
    own = _tokenizer_digest(program.task)
    if own and source.tokenizer is not None:
        other = digest_of(source.tokenizer.to_json())
        if other != own:
            raise UserError(
                f"its tokenizer (sha256 {other[:12]}) is not that of the task ({own[:12]}), so "
                "that tokens would mean something else; prepare the data with the run's "
                f"{FILE}"
            )


def _tokenizer_digest(task: Task) -> str:
    """Returns the digest of a task's tokenizer as this version writes it; "" if it has none."""
    text = task.artifacts().get(FILE, "")
    return digest_of(from_json(text).to_json()) if text else ""


def digest(params: PyTree) -> str:
    """Returns the sha256 of names, types, shapes and values of parameters, hexadecimal."""
    found = hashlib.sha256()
    named = {jax.tree_util.keystr(p): a for p, a in jax.tree_util.tree_leaves_with_path(params)}
    for path in sorted(named):
        leaf = named[path]
        found.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
        # In pieces, because it may be read from a file.
        rows = max(1, BLOCK // max(1, math.prod(leaf.shape[1:])))
        starts = range(0, leaf.shape[0], rows) if leaf.shape else ()
        for part in [slice(start, start + rows) for start in starts] or [...]:
            found.update(np.asarray(leaf[part]).tobytes())
    return found.hexdigest()


def check_same_source(records: Sequence[dict[str, Any]], runs: Sequence[Path]) -> None:
    """Raises UserError if runs began from other parameters than these."""
    for record, run in zip(records, runs, strict=True):
        before = read_json(run / INITIAL)
        now = record["digest"]
        if before is not None and now and now != before["digest"]:
            raise UserError(
                f"{run}: train.init_from={record['source']!r} changed since the run began: its "
                f"parameters had the sha256 {before['digest'][:12]}, and now have "
                f"{now[:12]}. Put the old ones back, or train in another --workdir."
            )


def write_initial(initial: Initial, runs: Sequence[Path]) -> None:
    """Writes `INITIAL` of each run, and prints how it differs from its source, on a line each.

    A key that differs by mistake, such as the base of RoPE, would not show in the parameters.
    """
    for record, run in zip(initial.records, runs, strict=True):
        write_json(run / INITIAL, record)
    told: dict[tuple, dict] = {}  # members of one model mostly have the same to tell
    for record in initial.records:
        told.setdefault(tuple(str(record[what]) for what in TOLD), record)
    for record in told.values():
        for what, text in TOLD.items():
            if record[what]:
                print(f"{text.format(record['source'])}: {', '.join(record[what])}")
    for record in initial.records:
        if taught := record.get("transfer"):
            before, after = (np.mean(taught[when]) for when in ("before", "after"))
            print(
                f"taught by {record['source']} in {taught['steps']} steps: mean squared error of "
                f"the heads' outputs {before:.3g}, then {after:.3g}"
            )
