"""Training on eight devices in every layout, against one device: see tests/eight_devices.py."""

import functools
import tempfile
import unittest.mock
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from research.configuration import apply_deltas
from research.parallel.parallelize import to_global_arrays
from research.runs.parameters import PARAMETERS, Described, Stored, write_parameters
from research.runs.store import CONFIG, write_json
from research.training.initial import load_initial
from research.training.program import make_members, make_program
from research.training.schema import resolve, run_record
from tests import small

MEMBERS, STEPS = 8, 50
# Plain gradients with clipping, and batches whose number of targets differs by sequence: Adam and
# a constant count would hide a gradient that is scaled by the number of devices. Wide heads and a
# low rate, because where training is unstable rounding grows to any size.
BASE = {
    "task.batch_size": 8,
    "model.num_layers": 1,
    "model.width": 32,
    "model.num_heads": 4,
    "model.position": "none",
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.05,
    "optimizer.clip_norm": 0.5,
    "train.steps": STEPS,
}
MECHANISMS = {
    "softmax": {},
    "window": {"model.mask": "window", "model.window": 5},
    "gated_delta": {"model.mixer": "gated_delta"},
}
# Not of a mechanism, but of the step.
STEPS_OF = {"accumulated": {"optimizer.accumulate": 2, "model.dropout": 0.2}}
# Rules that normalize by the gradient: a sign, a root of squares, factors of a matrix, or its
# orthogonal part, which sees the whole matrix.
UPDATE_RULES = {
    name: {"optimizer.name": name, "optimizer.learning_rate": 3e-3}
    | ({"optimizer.schedule": "constant"} if name == "schedule_free" else {})
    for name in ("adamw", "lion", "adafactor", "muon", "schedule_free")
}
RULE_STEPS = 4
# Models of pairs, whose sources differ in length too.
PAIRS = {
    name: {key: value for key, value in BASE.items() if key != "model.position"}
    | {"model.num_heads": 2, "optimizer.learning_rate": 0.1, **own}
    for name, own in {
        "recurrent": {},
        "encoder_decoder": {"model.name": "encoder_decoder", **small.TRANSFORMER},
    }.items()
}
CLASSIFIER = BASE | {
    "task.length": 16,
    "task.vocab_size": 16,
    "model.body": "transformer",
    "model.feedforward": 16,
    "optimizer.learning_rate": 0.1,
}
PAIR_STEPS = 4
PAIR_LAYOUTS = ("data=8", "data=4 x member=2", "data=8, fsdp", "pmap, data=8")
LAYOUTS = {
    "data=8": {"member": 1, "data": 8},
    "data=8, fsdp": {"member": 1, "data": 8, "fsdp": True},
    "data=4 x model=2": {"member": 1, "data": 4, "model": 2},
    "data=4 x member=2": {"member": 2, "data": 4},
    "data=2 x context=4": {"member": 1, "data": 2, "context": 4},
    "member=8": {"member": 8},
    "member=2 x data=2 x model=2, fsdp": {"member": 2, "data": 2, "model": 2, "fsdp": True},
    "pmap, data=8": {"how": "pmap", "member": 1, "data": 8},
    "pmap, member=8": {"how": "pmap", "member": 8, "data": 1},
}


@functools.cache
def trained(mechanism: str, layout: str, steps: int = STEPS) -> tuple:
    """Returns parameters, best parameters, training and validation sums, on the host."""
    parallel = LAYOUTS.get(layout, {"member": 1, "data": 1})
    deltas = {f"parallel.{key}": value for key, value in parallel.items()}
    if mechanism in PAIRS:
        config = apply_deltas(small.transduction(), PAIRS[mechanism] | deltas)
    elif mechanism == "classifier":
        config = apply_deltas(small.rule(), CLASSIFIER | deltas)
    else:
        own = (MECHANISMS | STEPS_OF | UPDATE_RULES)[mechanism]
        config = apply_deltas(small.recall(), BASE | own | deltas)
    program = make_program(config, MEMBERS)
    assert layout == "one device" or program.layout.devices == 8, program.layout
    configs = [apply_deltas(config, {"seed": seed}) for seed in range(MEMBERS)]
    members = to_global_arrays(make_members(configs), program.members)
    state = program.init(members)
    state, sums = program.train(state, members, program.data, np.int32(0), np.int32(steps))
    validation = program.evaluate["validation"](state.params, program.data).sums
    state = program.keep_best(state, validation["loss"].total, np.int32(STEPS))
    return jax.tree.map(np.asarray, (state.params, state.best.params, sums, validation))


def agrees(mechanism: str, layout: str) -> None:
    """Everything that training leaves is that of one device, to float tolerance."""
    steps = PAIR_STEPS if mechanism in PAIRS else STEPS
    one, many = (trained(mechanism, which, steps) for which in ("one device", layout))
    start = trained(mechanism, "one device", steps=0)
    moved = [
        abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (one[0], start[0])), strict=True)
    ]
    assert max(moved) > 1e-2
    norm = one[2]["gradient_norm"]
    assert (norm.total / norm.count > BASE["optimizer.clip_norm"]).all()
    for a, b in zip(*map(jax.tree.leaves, (one[:2], many[:2])), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (one[2:], many[2:])), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)


def rule_agrees(rule: str, layout: str) -> None:
    """Parameters after an update rule's steps are those of one device, but for gradients near zero.

    What such rules make of an entry does not shrink with its gradient, so where rounding decides
    the gradient's sign, whole updates differ. They must be few.
    """
    start, one, many = (
        trained(rule, which, steps)[0]
        for which, steps in (("one device", 0), ("one device", RULE_STEPS), (layout, RULE_STEPS))
    )
    away = total = 0
    moved = []
    for a, b, before in zip(*map(jax.tree.leaves, (one, many, start)), strict=True):
        away += int((abs(a - b) > 1e-4).sum())
        total += a.size
        moved.append(abs(a - before).max())
    assert max(moved) > 1e-3, max(moved)
    assert away < 2e-3 * total, (away, total)


def lies_in_parts() -> None:
    """fsdp and model leave no device with more than its part of the large parameters."""
    layout = {"parallel.data": 2, "parallel.model": 2, "parallel.fsdp": True}
    config = apply_deltas(small.recall(), BASE | layout | {"parallel.member": 2})
    program = make_program(config, 2)
    members = [apply_deltas(config, {"seed": seed}) for seed in range(2)]
    state = program.init(to_global_arrays(make_members(members), program.members))
    for tree in (state.params, state.best.params):
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            part = leaf.addressable_shards[0].data.size / leaf.size
            is_matrix = "scale" not in jax.tree_util.keystr(path)
            assert part == (1 / 8 if is_matrix else 1 / 2), (path, leaf.sharding)


def items_agree() -> None:
    """Results of each test item are those of one device, and add up to those of the split."""
    for make, own in ((small.recall, BASE), (small.rule, CLASSIFIER)):
        found = []
        for layout in ({"member": 1, "data": 1}, {"member": 2, "data": 2, "model": 2}):
            deltas = {f"parallel.{key}": value for key, value in layout.items()}
            program = make_program(apply_deltas(make(), own | deltas), 2)
            random = np.random.default_rng(0)
            params = jax.tree.map(
                lambda leaf, random=random: random.normal(0, 0.3, (2, *leaf.shape[1:])),
                program.state.params,
            )
            placed = jax.tree.map(lambda leaf: leaf.sharding, program.state.params)
            params = to_global_arrays(jax.tree.map(np.float32, params), placed)
            found.append(jax.device_get(program.evaluate["test"](params, program.data)))
            assert found[-1].ids.shape == found[-1].items["loss"].total.shape
            for name, sums in found[-1].items.items():
                added = jax.tree.map(lambda a: a.sum(1), sums)
                for a, b in zip(added, found[-1].sums[name], strict=True):
                    np.testing.assert_allclose(a, b, rtol=1e-4, err_msg=name)
        one, many = found
        np.testing.assert_array_equal(one.ids, many.ids)
        for a, b in zip(*map(jax.tree.leaves, (one.items, many.items)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)


def begins() -> None:
    """Given parameters lie on devices as random ones do, and so does all that starts at them."""
    config = apply_deltas(small.recall(), BASE | UPDATE_RULES["schedule_free"])
    found = []
    for layout in ({"member": 1, "data": 1}, {"member": 2, "data": 2, "model": 2, "fsdp": True}):
        deltas = {f"parallel.{key}": value for key, value in layout.items()}
        program = make_program(apply_deltas(config, deltas), 2)
        random = np.random.default_rng(0)
        given = jax.tree.map(
            lambda s, random=random: random.normal(size=(2, *s.shape)).astype(s.dtype),
            program.parameters,
        )
        lies = jax.tree.map(lambda leaf: leaf.sharding, program.state.params)
        state = program.begin(to_global_arrays(given, lies))
        for leaf, wanted in zip(*map(jax.tree.leaves, (state, program.state)), strict=True):
            assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
        found.append(jax.device_get(state))
        jax.tree.map(np.testing.assert_array_equal, found[-1].params, given)
    jax.tree.map(np.testing.assert_array_equal, *found)


def begins_from_a_file() -> None:
    """Parameters of a file go to devices in parts: none is read as a whole that lies in parts."""
    config = apply_deltas(small.recall(), BASE)
    shapes = flatten_dict(make_program(config).parameters, sep="/")
    described = {n: Described(tuple(s.shape), "bfloat16") for n, s in shapes.items()}
    read, found = [], []
    original = Stored.__getitem__

    def reading(self: Stored, index: object) -> np.ndarray:
        part = original(self, index)
        read.append((self.shape, part.size))
        return part

    with tempfile.TemporaryDirectory() as home:
        runs = [Path(home) / str(seed) for seed in range(2)]
        for seed, run in enumerate(runs):
            random = np.random.default_rng(seed)
            drawn = {n: 0.3 * random.normal(size=s.shape) for n, s in sorted(shapes.items())}
            write_parameters(
                run / PARAMETERS,
                described,
                lambda n, drawn=drawn: drawn[n].astype(jnp.bfloat16),
            )
            write_json(run / CONFIG, run_record(resolve(config)))
        for layout in (
            {"data": 1, "member": 1},
            {"member": 2, "data": 2, "model": 2, "fsdp": True},
        ):
            deltas = {f"parallel.{key}": value for key, value in layout.items()}
            own = apply_deltas(config, deltas)
            program = make_program(own, 2)
            configs = [apply_deltas(own, {"train.init_from": str(run)}) for run in runs]
            initial = load_initial(program, configs)
            assert initial is not None
            read.clear()
            with unittest.mock.patch.object(Stored, "__getitem__", reading):
                lies = jax.tree.map(lambda leaf: leaf.sharding, program.state.params)
                placed = to_global_arrays(initial.params, lies)
            sums = program.evaluate["validation"](placed, program.data).sums
            found.append((jax.device_get((placed, sums)), [r["digest"] for r in initial.records]))
    for shape, size in read:
        whole = np.prod(shape)
        assert size == whole if whole < 100 else size <= whole / 2, (shape, size)
    (one, names), (many, others) = found
    assert names == others and len(set(names)) == 2
    jax.tree.map(np.testing.assert_array_equal, one[0], many[0])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), one[1], many[1])


EVERY = {
    f"{name} {layout}": functools.partial(agrees, name, layout)
    for name in (*MECHANISMS, *PAIRS)
    for layout in (PAIR_LAYOUTS if name in PAIRS else LAYOUTS)
}
EVERY |= {
    f"{name} {layout}": functools.partial(agrees, name, layout)
    for name, layouts in {
        "classifier": (*PAIR_LAYOUTS, "data=4 x model=2"),
        "accumulated": ("data=2 x context=4", "member=2 x data=2 x model=2, fsdp"),
    }.items()
    for layout in layouts
}
# Every axis, dropout and parts of batches under jit; pairs under pmap, where each device counts its
# own targets. What a mechanism does with a sequence that is split is in
# tests/attention/context_checks.py; what is left out here is in slow_layout_checks.
FAST = (
    "accumulated data=2 x context=4",
    "accumulated member=2 x data=2 x model=2, fsdp",
    "encoder_decoder pmap, data=8",
)
SLOW = {name: check for name, check in EVERY.items() if name not in FAST} | {
    f"{rule} {layout}": functools.partial(rule_agrees, rule, layout)
    for rule in UPDATE_RULES
    for layout in ("data=8, fsdp", "member=2 x data=2 x model=2, fsdp")
}
CHECKS = {name: EVERY[name] for name in FAST} | {"parts": lies_in_parts, "items": items_agree}
CHECKS |= {"begins": begins, "begins from a file": begins_from_a_file}
