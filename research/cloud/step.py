"""The training step as a plan sees it: traced for one device, or compiled for a slice.

Nothing is run and no data is read: a text task is replaced by one of the same shapes.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from research.attention.spec import MixerSpec
from research.cloud.liveness import Need, measure
from research.cloud.memory import kept
from research.configuration import apply_deltas
from research.errors import UserError
from research.models.model import Model, matrices
from research.models.registry import make_model, read_model
from research.models.transformer import SLOW_TO_TRACE
from research.parallel.layout import Layout
from research.parallel.mesh import make_mesh
from research.tasks.corpora import TEXTS, data_directory
from research.tasks.task import Task
from research.tasks.text.language_modeling import Text
from research.training.budget import COUNTED_AS, training_flops
from research.training.program import abstract_state, build_program, task_id, task_of
from research.training.step import Member, State, make_init, make_step

ASSUMED_TOKENS = 100_000_000
"""Length of a corpus that is not here."""
CHARACTERS_PER_TOKEN = 3
"""Of BPE; a low guess, so that the corpus is not taken to be too small."""


class Vocabulary:
    """Stands for a tokenizer of which only the number of tokens is known."""

    characters = np.zeros(0, np.float32)

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def encode(self, text: str) -> np.ndarray:
        """Raises NotImplementedError."""
        raise NotImplementedError("a plan reads no text")

    def decode(self, tokens: list[int]) -> str:
        """Raises NotImplementedError."""
        raise NotImplementedError("a plan writes no text")

    def pieces(self, tokens: list[int]) -> list[str]:
        """Raises NotImplementedError."""
        raise NotImplementedError("a plan writes no text")

    def to_json(self) -> str:
        """Raises NotImplementedError."""
        raise NotImplementedError("a plan keeps no tokenizer")


def abstract_task(config: ConfigDict) -> Task:
    """Returns the task of a config; for BPE text one whose data are shapes, so no file is read.

    Raises UserError for what does not fit.
    """
    if config.model.name != "decoder":
        raise UserError(
            f"model.name={config.model.name!r} cannot be planned for; 'decoder' can. Train it on "
            "one device, or on several with parallel.data."
        )
    task = config.task
    if task.name != "text" or task.tokenizer != "bpe":
        return task_of(task_id(config))
    return _text(task.length, task.batch_size, task.bpe_vocab_size, _tokens(task.path))


def _text(length: int, batch_size: int, vocab_size: int, tokens: int) -> Any:
    data: Any = {
        "train": jax.ShapeDtypeStruct((int(0.9 * tokens),), jnp.int32),
        "validation": jax.ShapeDtypeStruct((int(0.1 * tokens),), jnp.int32),
        "characters": jax.ShapeDtypeStruct((vocab_size,), jnp.float32),
    }
    return Text(
        length=length,
        batch_size=batch_size,
        vocab_size=vocab_size,
        tokenizer=Vocabulary(vocab_size),
        data=data,
    )


def _tokens(path: str) -> int:
    file = data_directory() / TEXTS[path].path if path in TEXTS else Path(path).expanduser()
    return file.stat().st_size // CHARACTERS_PER_TOKEN if file.is_file() else ASSUMED_TOKENS


def shapes_of(tree: Any) -> Any:
    """Returns a tree of arrays as one of shapes."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)


class Traced(NamedTuple):
    """What is known of a step without compiling it.

    Attributes:
      implementation: how the mixers are computed.
      kept: bytes that one device keeps between steps, by what for.
      need: of one device, of its part of the population.
      weights: bytes of the layers' parameters on one device.
      model_flops: of one step of the whole population as the budget counts them, every query with
        every key, and without what remat computes again.
      flops: with it, and without the blocks that a mask forbids where they are left out.
      parameters: trained values of one member.
    """

    implementation: str
    kept: dict[str, float]
    need: Need
    weights: float
    model_flops: float
    flops: float
    parameters: int


def trace_step(
    config: ConfigDict, task: Task, layout: Layout, members: int, platform: str
) -> Traced:
    """Returns what one optimizer step of `members` members on a layout needs.

    The step is traced with the shapes that one device has: its part of the batch, of the positions,
    of the heads and of the vocabulary.

    Args:
      config: the whole config.
      task: see `abstract_task`.
      layout: which devices do what.
      members: P.
      platform: "tpu", "cpu" or "gpu", which implementations depend on.

    Raises UserError for a config that makes no sense.
    """
    local, small = _one_device(config, task, layout)
    member = _member(())
    # Neither platform nor devices of a slice need to be here to trace for them.
    with jax.default_device(platform):
        model = make_model(local.model, small.vocab_size, small.length)
        state = jax.eval_shape(make_init(local, small, model), member)
        index = jax.ShapeDtypeStruct((), jnp.int32)
        arguments = (state, member, shapes_of(small.data), index)
        jaxpr = jax.make_jaxpr(make_step(local, small, model))(*arguments)
        # What the state looks like does not depend on how mixers are computed.
        whole = make_model(config.model, task.vocab_size, task.length, SLOW_TO_TRACE)
        population = jax.eval_shape(jax.vmap(make_init(config, task, whole)), _member((members,)))
        model_flops, flops = _flops(apply_deltas(config, {"model.remat": False}), task)
        if config.model.remat:
            _, flops = _flops(config, task)
    part = _parameter_parts(model, state, layout)
    # The state is donated: the new one is written where the old one was.
    need = measure(jaxpr.jaxpr, part, range(len(jax.tree.leaves(state))))
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    weights = sum(
        math.prod(a.shape) * a.dtype.itemsize * part(a.shape, a.dtype)
        for path, a in leaves
        if getattr(path[0], "key", "") == "layers"
    )
    here = members // layout.member
    return Traced(
        model.implementation,
        kept(config, whole, population, shapes_of(task.data), layout),
        Need(*(here * n for n in need)),
        here * weights,
        *(members * f * config.task.batch_size for f in (model_flops, flops)),
        parameters=sum(math.prod(a.shape[1:]) for a in jax.tree.leaves(population.params)),
    )


def _one_device(config: ConfigDict, task: Task, layout: Layout) -> tuple[ConfigDict, Any]:
    """Returns the config and the task with the shapes of one device."""
    model = config.model
    width = model.head_width or model.width // max(model.num_heads, 1)
    local = apply_deltas(
        config,
        {
            "task.batch_size": config.task.batch_size // layout.data,
            "task.length": config.task.length // layout.context,
            "model.head_width": width if layout.model > 1 else model.head_width,
            "model.num_heads": model.num_heads // layout.model,
            "model.num_kv_heads": -(-model.num_kv_heads // layout.model),
            "model.feedforward": model.feedforward // layout.model,
        },
    )
    if layout.data == layout.context == layout.model == 1:
        return local, task
    vocabulary = task.vocab_size
    if vocabulary % layout.model == 0:
        vocabulary //= layout.model
    # Metrics differ between tasks; their memory does not matter, that of the logits does.
    return local, _text(local.task.length, local.task.batch_size, vocabulary, ASSUMED_TOKENS)


def _parameter_parts(model: Model, state: State, layout: Layout) -> Any:
    """Returns which part of arrays with a parameter's shape is on one device under fsdp.

    The layers' parameters and gradients lie in pieces, and so does what is kept of the others; what
    a layer works with is gathered.
    """
    if not layout.fsdp:
        return lambda shape, dtype: 1.0
    params = state.params
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(matrices(model, params)), strict=True)
    pieces = {leaf.shape for leaf, matrix in leaves if matrix}

    def part(shape: tuple[int, ...], dtype: Any) -> float:
        split = shape in pieces and (len(shape) >= 3 or dtype == jnp.float32)
        return 1 / layout.data if split else 1.0

    return part


def _member(shape: tuple[int, ...]) -> Member:
    value: Any = jax.ShapeDtypeStruct(shape, jnp.float32)
    seed: Any = jax.ShapeDtypeStruct(shape, jnp.uint32)
    return Member(seed, value, value, value)


COUNTED_UP_TO = 4096
"""Tokens up to which products are counted at full length; a mask of it would fill the memory."""
SKIPPING, BLOCK = ("splash", "blockwise", "ring"), 512
"""Implementations that leave out blocks which the mask forbids, and how large these are taken."""


def _flops(config: ConfigDict, task: Task) -> tuple[float, float]:
    """Returns the FLOPs of one training step of one sequence: all, and of those that are not left
    out.

    They are counted as the budget counts them, and taken to be a T + b T^2 for what is longer than
    `COUNTED_UP_TO` and for what is quadratic, attention.
    """
    length = task.length
    short = min(length, COUNTED_UP_TO // 2) // 2
    one, two = (_counted(config, task, n) for n in (short, 2 * short))
    square = (two - 2 * one) / (2 * short**2)
    if length == 2 * short:
        whole = two
    elif length <= COUNTED_UP_TO:
        whole = _counted(config, task, length)
    else:
        whole = (one / short - square * short) * length + square * length**2
    layers = read_model(config.model).layers()
    seen = [_visited(layer.spec(length), length) for layer in layers]
    return whole, whole - (1 - sum(seen) / len(seen)) * square * length**2


def _counted(config: ConfigDict, task: Task, length: int) -> float:
    model = make_model(config.model, task.vocab_size, length, COUNTED_AS)
    return training_flops(model, {"inputs": jax.ShapeDtypeStruct((1, length), jnp.int32)})


def _visited(spec: MixerSpec, length: int) -> float:
    """Returns the part of all blocks of pairs that attention computes."""
    if spec.implementation not in SKIPPING or spec.mask is None:
        return 1.0
    first = np.arange(0, length, BLOCK)
    last = np.minimum(first + BLOCK, length) - 1
    some, _ = spec.mask.blocks(first[:, None], last[:, None], first[None], last[None])
    return float(np.mean(some))


class OutOfMemory(Exception):
    """The compiler's temporaries alone do not fit; `bytes` of them would be needed."""

    def __init__(self, needed: float):
        super().__init__(f"{needed:.4g} bytes of temporaries")
        self.bytes = needed


def compile_step(
    config: ConfigDict, task: Task, layout: Layout, members: int, devices: Sequence[Any]
) -> Any:
    """Returns the compiled training program of a population on devices that need not exist.

    What it is compiled from is what `research.train` runs: a loop over a number of steps that is
    an argument.

    Raises OutOfMemory, and UserError when the compiler refuses it for another reason.
    """
    mesh = make_mesh(layout, devices)
    # Programs for devices that are not here can be written to the cache, but not read from it.
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
        put(_member((members,)), program.members),
        put(task.data, everywhere),
        *(put(jax.ShapeDtypeStruct((), jnp.int32), everywhere),) * 2,
    )


def _explained(error: Exception) -> Exception:
    text = str(error)
    found = re.search(r"\(([\d.]+)([KMG])\) exceeds available", text)
    if "RESOURCE_EXHAUSTED" in text and found:
        return OutOfMemory(float(found[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[found[2]])
    return UserError(f"the compiler refuses it: {' '.join(text.split())[:300]}")
