"""Matches the tensors of a checkpoint with the parameters of a model, before any is read."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from research.errors import UserError
from research.models.stacks import STACK, own_paths
from research.pretrained.family import Family
from research.pretrained.tensors import UNREAD, Tensor
from research.runs.parameters import NAMES, Described

SHOWN = 3
"""How many names a message lists."""


class Source(NamedTuple):
    """Where the values of a parameter of one layer are: a tensor, and which of its parts."""

    tensor: Tensor
    part: int


class Parameter(NamedTuple):
    """A parameter of ours, and where its values come from.

    Attributes:
      described: its shape and dtype.
      sources: one for each layer that it stacks, in their order; one for others.
      stacked: whether it stacks layers along its first axis.
    """

    described: Described
    sources: tuple[Source, ...]
    stacked: bool


class Matched(NamedTuple):
    """Where a checkpoint has what a model needs.

    Attributes:
      parameters: {path: parameter} of all parameters. Rows that no model reads are there too, by
        paths that begin with `UNREAD`.
      absent: {name of a tensor that the checkpoint lacks and may lack: what it is otherwise}, the
        name of another tensor or an array.
      repeated: (name, name of the tensor that it repeats) of tensors that only repeat.
    """

    parameters: dict[str, Parameter]
    absent: dict[str, str | np.ndarray]
    repeated: list[tuple[str, str]]


def match(
    family: Family, model: Mapping[str, Any], shapes: Any, there: Mapping[str, Described]
) -> Matched:
    """Returns where a checkpoint has the parameters of a model.

    Args:
      family: the family of the checkpoint.
      model: our options of the model, and "length".
      shapes: tree of the shapes of its parameters.
      there: shape and dtype of every tensor of the checkpoint.

    Raises UserError for a tensor that is missing, superfluous or of another shape.
    """
    tensors = [_named(one, family, there) for one in family.tensors(model)]
    absent = {
        one.theirs: one.otherwise
        for one in tensors
        if one.otherwise is not None and one.theirs not in there
    }
    _check_names(family, tensors, there, absent)
    every = {
        name: there[one] if isinstance(one, str) else Described(one.shape, one.dtype.name)
        for name, one in absent.items()
    }
    parameters = _parameters(family, tensors, shapes, {**there, **every})
    first = {one.ours[0]: one.theirs for one in tensors if not one.repeats}
    repeated = [
        (one.theirs, first[one.ours[0]]) for one in tensors if one.repeats and one.theirs in there
    ]
    return Matched(parameters, absent, repeated)


def _parameters(
    family: Family, tensors: Sequence[Tensor], shapes: Any, there: Mapping[str, Described]
) -> dict[str, Parameter]:
    """Returns {path: parameter} of all parameters; see `match`."""
    sources: dict[str, Source] = {}
    for one in tensors:
        if not one.repeats:
            of_parts = {path: Source(one, part) for part, path in enumerate(one.ours)}
            sources |= of_parts | dict.fromkeys(one.copies, Source(one, 0))
    every = {path: tuple(leaf.shape) for path, leaf in flatten_dict(shapes).items()}
    found = {}
    for path, shape in every.items():
        paths = ["/".join(own) for own in own_paths(path, shape, every)]
        if missing := [p for p in paths if p not in sources]:
            raise UserError(
                f"nothing of a {family.name} model is our parameter {missing[0]}: the options of "
                "the model do not fit the family."
            )
        of_layers = tuple(sources.pop(p) for p in paths)
        stacked = STACK in path
        dtypes = {_described(s, shape[1:] if stacked else shape, there) for s in of_layers}
        dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
        found["/".join(path)] = Parameter(Described(shape, dtype), of_layers, stacked)
    for path in [p for p in sources if p.startswith(UNREAD)]:
        source = sources.pop(path)
        shape = _part(source, there)
        found[path] = Parameter(
            Described(shape, _described(source, shape, there)), (source,), False
        )
    if sources:
        path, source = next(iter(sources.items()))
        raise UserError(f"{source.tensor.theirs} is {path}, which our model does not have.")
    return found


def _named(one: Tensor, family: Family, there: Mapping[str, Any]) -> Tensor:
    """Returns a tensor by its name in the checkpoint: with the family's prefix, or without."""
    short = one.theirs.removeprefix(family.prefix)
    return replace(one, theirs=short) if one.theirs not in there and short in there else one


def _check_names(
    family: Family,
    tensors: Sequence[Tensor],
    there: Mapping[str, Described],
    absent: Mapping[str, Any],
) -> None:
    """Raises UserError for tensors that are missing, or that no model of the family has."""
    known = {one.theirs for one in tensors}
    needed = [one.theirs for one in tensors if not one.repeats and one.theirs not in absent]
    needed += [one for one in absent.values() if isinstance(one, str)]
    if missing := [name for name in needed if name not in there]:
        raise UserError(f"the checkpoint has no tensor {_listed(missing)}, as config.json wants.")
    more = [
        name
        for name in there
        if name not in known
        and not any(fnmatch.fnmatch(name, pattern) for pattern in family.superfluous)
    ]
    if more:
        raise UserError(
            f"the checkpoint has a tensor {_listed(more)}, which a {family.name} model with this "
            "config.json does not have."
        )


def _listed(names: Sequence[str]) -> str:
    text = ", ".join(repr(name) for name in names[:SHOWN])
    return text + (f" and {len(names) - SHOWN} others" if len(names) > SHOWN else "")


def _described(source: Source, shape: tuple[int, ...], there: Mapping[str, Described]) -> str:
    """Returns the dtype of a tensor. Raises UserError if it does not hold a parameter so shaped."""
    one = source.tensor
    described = there[one.theirs]
    if described.dtype not in NAMES:
        raise UserError(
            f"{one.theirs} is of {described.dtype}; float32, float16 and bfloat16 can be read. "
            "Quantized checkpoints have to be dequantized first."
        )
    found = _part(source, there)
    if found != shape:
        raise UserError(
            f"{one.theirs} has shape {described.shape}, with which {one.ours[source.part]} has "
            f"{found}; by config.json it has {shape}."
        )
    return described.dtype


def _part(source: Source, there: Mapping[str, Described]) -> tuple[int, ...]:
    """Returns the shape of a part of a tensor. Raises UserError if the tensor has another shape."""
    one = source.tensor
    shape = jax.ShapeDtypeStruct(there[one.theirs].shape, jnp.float32)
    try:
        return tuple(jax.eval_shape(one.layout.to_ours, shape)[source.part].shape)
    except (ValueError, TypeError) as error:
        raise UserError(f"{one.theirs} {error}.") from None


def assembled(parameter: Parameter, read: Any) -> np.ndarray:
    """Returns the values of a parameter, stacked over layers.

    Args:
      parameter: the parameter.
      read: function from the name of a tensor of the checkpoint to its array.
    """
    described = parameter.described
    found = np.empty(described.shape, jnp.dtype(described.dtype))
    for index, (one, part) in enumerate(parameter.sources):
        values = one.layout.to_ours(read(one.theirs))[part]
        if parameter.stacked:
            found[index] = values
        else:
            found[...] = values
    return found
