"""Traces and compiles the training step for planning, without data and without the target devices.

Nothing is run and no data is read: a text task is replaced by shapes of the same sizes.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from research.errors import UserError
from research.parallel.layout import Layout
from research.parallel.mesh import make_mesh
from research.tasks.corpora import TEXTS, data_directory
from research.tasks.task import Task
from research.tasks.text.language_modeling import Text
from research.training.program import (
    Program,
    abstract_state,
    build_program,
    cached_task,
    data_shardings,
    task_id,
)
from research.training.step import Member, data_key

ASSUMED_TOKENS = 100_000_000
"""Assumed number of tokens of a corpus that is not on this machine."""
CHARACTERS_PER_TOKEN = 3
"""Characters per BPE token; a low guess, so that the corpus size is not underestimated."""


def abstract_task(config: ConfigDict) -> Task:
    """Returns the task of a config; for BPE text, its data are only shapes and no file is read.

    Raises UserError for a config that cannot be planned.
    """
    if config.model.name != "decoder":
        raise UserError(
            f"model.name={config.model.name!r} cannot be planned for; 'decoder' can. Train it on "
            "one device, or on several with parallel.data."
        )
    task = config.task
    if task.name != "text" or task.tokenizer != "bpe":
        return cached_task(task_id(config))
    return _text(task.length, task.batch_size, task.bpe_vocab_size, _tokens(task.path))


def _text(length: int, batch_size: int, vocab_size: int, tokens: int) -> Any:
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


def _tokens(path: str) -> int:
    file = data_directory() / TEXTS[path].path if path in TEXTS else Path(path).expanduser()
    return file.stat().st_size // CHARACTERS_PER_TOKEN if file.is_file() else ASSUMED_TOKENS


def local_task(task: Task, layout: Layout) -> Task:
    """Returns the task with one device's share of the batch, the positions and the vocabulary."""
    if layout.data == layout.context == layout.model == 1:
        return task
    parts = layout.model if task.vocab_size % layout.model == 0 else 1
    # Any task will do for the estimate: metrics use little memory compared to the logits.
    return _text(
        task.length // layout.context,
        task.batch_size // layout.data,
        task.vocab_size // parts,
        ASSUMED_TOKENS,
    )


def member_shapes(*members: int) -> Member:
    """Returns the shapes of a single member, or of a population of the given size."""
    value: Any = jax.ShapeDtypeStruct(members, jnp.float32)
    seed: Any = jax.ShapeDtypeStruct(members, jnp.uint32)
    return Member(seed, value, value, value)


class OutOfMemory(Exception):
    """The temporaries alone exceed the device memory; `bytes` is what they would need."""

    def __init__(self, needed: float):
        super().__init__(f"{needed:.4g} bytes of temporaries")
        self.bytes = needed


def compile_step(
    config: ConfigDict, task: Task, layout: Layout, members: int, devices: Sequence[Any]
) -> Any:
    """Returns the compiled training program of a population, for devices that need not exist.

    It is the same program that `research.train` runs: a loop over steps, with the number of steps
    as an argument.

    Raises OutOfMemory, and UserError when the compiler refuses it for another reason.
    """
    mesh = make_mesh(layout, devices)
    # Programs for absent devices can be written to the compilation cache, but not read from it.
    cached = jax.config.jax_enable_compilation_cache  # ty: ignore[missing-attribute]
    jax.config.update("jax_enable_compilation_cache", devices[0].platform != "tpu" and cached)
    try:
        with jax.default_device(devices[0]):
            return _lower(config, task, layout, members, mesh).compile()
    except jax.errors.JaxRuntimeError as error:
        raise _explained(error) from None
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)


def _lower(config: ConfigDict, task: Task, layout: Layout, members: int, mesh: Mesh) -> Any:
    program = build_program(config, layout, mesh, task)
    everywhere = NamedSharding(mesh, PartitionSpec())

    def put(tree: Any, sharding: NamedSharding) -> Any:
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree
        )

    train: Any = program.train
    return train.lower(
        abstract_state(program, members),
        put(member_shapes(members), program.members),
        _data_shapes(program, task, members, mesh),
        *(put(jax.ShapeDtypeStruct((), jnp.int32), everywhere),) * 2,
    )


def _data_shapes(program: Program, task: Task, members: int, mesh: Mesh) -> Any:
    """Returns the shapes of what the training program reads, as it lies on the devices."""
    data = task.data
    if task.streamed:
        seeds = np.zeros(members, np.uint32)
        data = {**data, **task.chunk(seeds, data_key, 0, 0, program.chunk_steps)}
    lies = data_shardings(task, data, mesh)
    if not task.data_axes:
        lies = jax.tree.map(lambda _: lies, data)
    return jax.tree.map(
        lambda a, where: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), data, lies
    )


def _explained(error: Exception) -> Exception:
    text = str(error)
    found = re.search(r"\(([\d.]+)([KMG])\) exceeds available", text)
    if "RESOURCE_EXHAUSTED" in text and found:
        return OutOfMemory(float(found[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[found[2]])
    return UserError(f"the compiler refuses it: {' '.join(text.split())[:300]}")
