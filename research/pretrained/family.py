"""What a family of pretrained models has to say about itself."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from research.errors import UserError
from research.pretrained.config_reader import ConfigReader
from research.pretrained.tensors import Tensor


class Family(NamedTuple):
    """A family of pretrained models.

    Attributes:
      name: "model_type" in config.json.
      architecture: the class in transformers that can be read, of "architectures".
      options: returns our options of the model (`config.model`), from config.json. Raises UserError
        for what we lack.
      length: returns the number of positions that the model was made for.
      tensors: yields every tensor of a checkpoint, given our options and "length", the number of
        positions.
      config: returns config.json, given our options and the longest sequence; `options` reads it
        back, and a model that comes back otherwise is not of this family.
      prefix: what names of tensors begin with, and some checkpoints leave out.
      superfluous: patterns (`fnmatch`) of tensors that need not be read: buffers and copies.
      task: `task.name` of its runs: "tokens" of decoders, "translation" of encoder-decoders,
        "sentiment" of classifiers.
      special: returns ids by the names of `SpecialTokens`, from config.json with what
        generation_config.json has in its place.
    """

    name: str
    architecture: str
    options: Callable[[ConfigReader], dict[str, Any]]
    length: Callable[[ConfigReader], int]
    tensors: Callable[[Mapping[str, Any]], Iterator[Tensor]]
    config: Callable[[Mapping[str, Any], int], dict[str, Any]]
    prefix: str = ""
    superfluous: tuple[str, ...] = ()
    task: str = "tokens"
    special: Callable[[ConfigReader], dict[str, int]] = lambda read: {}


def written(model: Mapping[str, Any], key: str, table: Mapping[str, str]) -> str:
    """Returns their value of an option of ours; of several with the same meaning, the first.

    Args:
      model: our options.
      key: the option.
      table: {their value: ours}, by which it is read.

    Raises UserError if they have no such value.
    """
    for theirs, ours in table.items():
        if ours == model[key]:
            return theirs
    known = ", ".join(repr(one) for one in dict.fromkeys(table.values()))
    raise UserError(f"model.{key}={model[key]!r}; {known} can be written.")
