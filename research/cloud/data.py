"""Stands in for the data of a planned run: its task, whose data are only shapes."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from research.errors import UserError, read_part
from research.parallel.layout import Layout
from research.parallel.rules import partition_spec
from research.tasks.corpora import TEXTS, data_directory
from research.tasks.registry import TaskSection
from research.tasks.task import Task
from research.tasks.text.language_modeling import Text, TextOptions
from research.tasks.tokens.corpus import Corpus, describe_corpus
from research.tasks.tokens.shards import DTYPES
from research.tasks.tokens.splits import Shard, Split
from research.tasks.tokens.windows import Tokens, TokensOptions
from research.training.program import cached_task, steps_between_stops, task_id
from research.training.step import data_key

CHARACTERS_PER_TOKEN = 3
"""Characters per BPE token; a low guess, so that the corpus size is not underestimated."""
HELD_OUT = 0.01
"""Part of a corpus of a stated size that is held out, as `research.prepare` does by default."""
CHUNKS = 2
"""Chunks of a streamed task that are on the devices at a time, see `feed_steps`."""
STATE_SIZE = "To plan without it, say how many tokens it has, for example --tokens=10B."
UNITS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


class Data(NamedTuple):
    """The data of a planned run.

    Attributes:
      task: the task; only the shapes of its data can be used.
      source: where the size of its corpus is from; "" for tasks without a corpus.
    """

    task: Task
    source: str


def parse_tokens(text: str) -> int:
    """Parses a number of tokens such as "10B" or "2.6B"; "" is 0, not stated. Raises UserError."""
    if not text:
        return 0
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMBT]?)", text.replace("_", "").replace(",", ""))
    if match is None or not (number := round(float(match[1]) * UNITS[match[2]])):
        raise UserError(
            f"--tokens={text!r} must be a number of tokens, for example 10B, 600M or 2_600_000_000."
        )
    return number


def planned_data(config: ConfigDict, tokens: int = 0) -> Data:
    """Returns the data of a planned run; no tokens of a corpus are read, nor does it have to exist.

    Args:
      config: the whole config.
      tokens: stated size of the corpus, both splits together; 0: as manifest or files say.

    Raises UserError for a config that cannot be planned, and for a corpus of unknown size.
    """
    if config.model.name != "decoder":
        raise UserError(
            f"model.name={config.model.name!r} cannot be planned for; 'decoder' can. Train it on "
            "one device, or on several with parallel.data."
        )
    options = read_part("task", TaskSection, config.task.to_dict()).name
    if isinstance(options, TokensOptions):
        corpus, source = _corpus(options, tokens)
        return Data(options.make_of(corpus), source)
    if isinstance(options, TextOptions) and options.tokenizer == "bpe":
        size, source = _text_size(options.path, tokens)
        return Data(
            text_task(options.length, options.batch_size, options.bpe_vocab_size, size), source
        )
    if tokens:
        raise UserError(f"--tokens: task.name={config.task.name!r} says itself how large it is.")
    return Data(cached_task(task_id(config)), "")


def _corpus(options: TokensOptions, tokens: int) -> tuple[Corpus, str]:
    size, dtype = options.corpus_vocab_size, options.corpus_dtype
    if tokens and not size:
        raise UserError(
            "task.corpus_vocab_size=0: --tokens states the size of a corpus, of which the size of "
            "its vocabulary is needed too, for example --config.task.corpus_vocab_size=50304."
        )
    if tokens:
        # As `research.prepare` chooses it.
        kind = ("uint16" if size <= 2**16 else "uint32") if dtype == "auto" else dtype
        held_out = round(tokens * HELD_OUT)
        counts = {"train": tokens - held_out, "validation": held_out}
        splits = {
            name: Split(name, (Shard(Path(options.path), DTYPES[kind], 0, count),))
            for name, count in counts.items()
        }
        return Corpus(size, splits, {}), "as --tokens says"
    try:
        found = describe_corpus(options.path, options.validation_path, dtype, size)
    except UserError as error:
        raise UserError(f"{error} {STATE_SIZE}") from None
    return found, f"as {options.path} says"


def _text_size(path: str, tokens: int) -> tuple[int, str]:
    """Returns the number of tokens of a text, and where it is from."""
    if tokens:
        return tokens, "as --tokens says"
    file = data_directory() / TEXTS[path].path if path in TEXTS else Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"task.path={path!r}: there is no file {str(file)!r}. {STATE_SIZE}")
    return (
        file.stat().st_size // CHARACTERS_PER_TOKEN,
        f"guessed at {CHARACTERS_PER_TOKEN} bytes each",
    )


def text_task(length: int, batch_size: int, vocab_size: int, tokens: int) -> Any:
    """Returns the task of a text, with shapes for its data."""
    data: Any = {
        "train": jax.ShapeDtypeStruct((int(0.9 * tokens),), jnp.int32),
        "validation": jax.ShapeDtypeStruct((int(0.1 * tokens),), jnp.int32),
        "characters": jax.ShapeDtypeStruct((vocab_size,), jnp.float32),
    }
    tokenizer: Any = None  # no text is read or written
    return Text(
        length=length,
        batch_size=batch_size,
        vocab_size=vocab_size,
        tokenizer=tokenizer,
        data=data,
    )


def local_task(task: Task, layout: Layout) -> Task:
    """Returns the task with one device's share of the batch, the positions and the vocabulary."""
    if layout.data == layout.context == layout.model == 1:
        return task
    parts = layout.model if task.vocab_size % layout.model == 0 else 1
    length = task.length // layout.context
    # Any task will do for the estimate: metrics use little memory compared to the logits.
    return text_task(
        length, task.batch_size // layout.data, task.vocab_size // parts, tokens=4 * length
    )


def arrays_read(config: ConfigDict, task: Task, members: int) -> Mapping[str, Any]:
    """Returns what a step of training reads: the task's data, and a chunk if it is streamed."""
    if not task.streamed:
        return task.data
    seeds, steps = np.zeros(members, np.uint32), steps_between_stops(config.train)
    return {**task.data, **task.chunk(seeds, data_key, 0, 0, steps)}


def data_bytes(config: ConfigDict, task: Task, members: int, sizes: dict[str, int]) -> float:
    """Returns the bytes of data on one device, with the chunks of a streamed task.

    Args:
      config: the whole config.
      task: the task.
      members: population size.
      sizes: {mesh axis: number of devices}.
    """
    if not task.data_axes:
        return float(sum(map(bytes_of, jax.tree.leaves(task.data))))

    def part(name: str, array: Any) -> float:
        shape = array.shape
        where = partition_spec(task.data_axes.get(name, ("",) * len(shape)), shape, sizes)
        return bytes_of(array) / math.prod(sizes[axis] for axis in where if axis)

    arrays = arrays_read(config, task, members)
    return sum(part(n, a) * (1 if n in task.data else CHUNKS) for n, a in arrays.items())


def bytes_of(array: Any) -> float:
    """Returns the bytes of an array, or of what has shape and dtype."""
    return math.prod(array.shape) * getattr(array.dtype, "itemsize", 4)


def describe_data(config: ConfigDict, data: Data, layout: Layout) -> str:
    """Returns one line on the size of a corpus, and what a device holds of it; "" without one."""
    task = data.task
    if not data.source:
        return ""
    if not isinstance(task, Tokens):
        tokens = sum(task.data[split].shape[0] for split in ("train", "validation"))
        return f"Corpus: about {tokens:,} tokens ({data.source}), int32, whole on every device."
    tokens = sum(split.tokens for split in task.corpus.splits.values())
    head = f"Corpus: {tokens:,} tokens ({data.source}), {task.train.dtype.name}, "
    if task.streamed:
        steps = steps_between_stops(config.train)
        return f"{head}read from disk {steps:,} steps at a time; validation is on the devices."
    pieces, devices = task.train.number, layout.data
    where = f"split over data={devices}" if pieces % devices == 0 else "whole on every device"
    return f"{head}in {pieces:,} pieces, {where}."
