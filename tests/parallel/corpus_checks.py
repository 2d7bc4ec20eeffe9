"""A corpus on eight devices, in every layout, against one device: see tests/eight_devices.py."""

import functools
import re
import tempfile
from pathlib import Path

import jax
import numpy as np

from research.configuration import apply_deltas
from research.parallel.parallelize import bind_mesh
from research.training.feeding import feed_steps
from research.training.program import make_members, make_program
from research.training.step import data_key, shard_batch
from tests import corpora, small

STEPS, MEMBERS = 6, 2
LAYOUTS = {
    "one device": {"member": 1, "data": 1},
    "data=2": {"member": 1, "data": 2},
    "data=4 x member=2": {"member": 2, "data": 4},
    "data=8, fsdp": {"member": 1, "data": 8, "fsdp": True},
    "data=2 x model=2 x context=2": {"member": 1, "data": 2, "model": 2, "context": 2},
}
COLLECTIVE = re.compile(r"\b(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\b")


@functools.cache
def corpus() -> Path:
    return corpora.corpus(Path(tempfile.mkdtemp()), shard_tokens=1000)


@functools.cache
def program_of(layout: str, data: str = "device"):
    deltas = {f"parallel.{key}": value for key, value in LAYOUTS[layout].items()}
    deltas |= {"task.batch_size": 8, "model.num_layers": 1, "model.position": "none"}
    deltas |= {"task.documents": "packed", "task.restart_positions": True}
    deltas |= {"train.log_every": 4, "train.eval_every": 3, "task.data": data}
    config = apply_deltas(small.tokens(corpus()), deltas)
    return config, make_program(config, MEMBERS)


def batches(layout: str) -> tuple[dict, str]:
    """Returns some training batches of two seeds and an evaluation batch, and the program's HLO."""
    _, program = program_of(layout)
    task = program.task

    def draw(data, steps):
        def one(seed, step):
            return shard_batch(task.batch(data, data_key(seed), step))

        members = jax.vmap(one, in_axes=(0, None), spmd_axis_name="member")
        seeds = np.arange(MEMBERS, dtype=np.uint32)
        train = jax.lax.map(lambda step: members(seeds, step), steps)
        return train, shard_batch(task.evaluation(data, "validation", 1, 3))

    compiled = jax.jit(draw)
    arguments = program.data, np.arange(5, dtype=np.int32)
    found = jax.device_get(bind_mesh(program.mesh, compiled)(*arguments))
    return found, bind_mesh(program.mesh, compiled).lower(*arguments).compile().as_text()


def draws_the_same(layout: str) -> None:
    """Batches of packed documents are those of one device to the bit, and no tokens are sent."""
    (expected, _), (found, text) = batches("one device"), batches(layout)
    for a, b in zip(*map(jax.tree.leaves, (expected, found)), strict=True):
        np.testing.assert_array_equal(a, b)
    # Where positions are split, the last target of a part is the first token of the next, and the
    # end tokens of all parts before are counted.
    split = LAYOUTS[layout].get("context", 1) > 1
    needed = {"collective-permute", "all-gather"} if split else set()
    assert set(COLLECTIVE.findall(text)) <= needed


def lies_in_parts() -> None:
    """No device has more than its part of the corpus."""
    for layout, parts in (("data=2", 2), ("data=4 x member=2", 4), ("data=8, fsdp", 8)):
        _, program = program_of(layout)
        for pieces in program.data.values():
            assert pieces.dtype == np.uint16
            for shard in pieces.addressable_shards:
                assert shard.data.size * parts == pieces.size


@functools.cache
def trained(layout: str, data: str) -> tuple:
    """Returns parameters and the sums of every span of steps."""
    config, program = program_of(layout, data)
    members = make_members([apply_deltas(config, {"seed": seed}) for seed in range(MEMBERS)])
    state, sums = program.init(members), []
    spans = [(0, 3), (3, 4), (4, STEPS)]
    feed = feed_steps(program, np.asarray(members.seed), spans)
    for (start, stop), batch in zip(spans, feed, strict=True):
        arguments = state, members, batch, np.int32(start), np.int32(stop)
        state, new = program.train(*arguments)
        sums.append(new)
    return jax.device_get((state.params, sums))


def streams_the_same(layout: str) -> None:
    """Read from disk, training is that of the corpus on the device, to the bit."""
    for a, b in zip(
        *map(jax.tree.leaves, (trained(layout, "device"), trained(layout, "streamed"))), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def agrees(layout: str) -> None:
    """Training is that of one device, to float tolerance."""
    for a, b in zip(
        *map(jax.tree.leaves, (trained("one device", "device"), trained(layout, "streamed"))),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)


def chunks_lie_in_parts() -> None:
    """A device gets the windows of its members and its rows."""
    _, program = program_of("data=4 x member=2", "streamed")
    windows = program.training_data(np.arange(2, dtype=np.uint32), 0, 3)["windows"]
    assert windows.shape == (2, 3, 8, 17)
    assert {s.data.shape for s in windows.addressable_shards} == {(1, 3, 2, 17)}


MANY = tuple(LAYOUTS)[1:]
CHECKS = {f"batches {layout}": functools.partial(draws_the_same, layout) for layout in MANY}
CHECKS |= {"parts": lies_in_parts, "chunks": chunks_lie_in_parts}
# Programs that take long to compile.
TRAINED = {
    f"{check.__name__} {layout}": functools.partial(check, layout)
    for layout in LAYOUTS
    for check in (streams_the_same, agrees)
}
FAST = ("streams_the_same one device", "streams_the_same data=4 x member=2")
CHECKS |= {name: TRAINED[name] for name in FAST}
SLOW = {name: check for name, check in TRAINED.items() if name not in FAST}
