"""What `config.parallel` means for so many devices, members and sequences."""

import dataclasses

import jax
import pytest
from jax.sharding import PartitionSpec

from research.errors import UserError
from research.models.registry import make_model
from research.parallel.layout import Layout, parse_layout, resolve_layout
from research.parallel.mesh import make_mesh
from research.parallel.rules import constrain, partition_spec
from tests import small

SIZES = {"member": 2, "data": 2, "context": 1, "model": 4}


@pytest.mark.parametrize(
    ("deltas", "members", "devices", "expected"),
    [
        ({}, 1, 1, (1, 1, 1, 1)),
        ({}, 1, 4, (1, 4, 1, 1)),
        ({}, 8, 8, (8, 1, 1, 1)),
        ({}, 4, 8, (4, 2, 1, 1)),
        ({}, 3, 8, (1, 4, 1, 1)),  # 3 members do not divide 8 devices, 4 sequences use half
        ({"model": 2}, 2, 8, (2, 2, 1, 2)),
        ({"context": 4, "data": 2}, 1, 8, (1, 2, 4, 1)),
        ({"data": 2}, 4, 8, (4, 2, 1, 1)),
        ({"member": 1}, 4, 8, (1, 4, 1, 1)),
        ({"how": "pmap"}, 4, 4, (4, 1, 1, 1)),
        ({"how": "pmap"}, 4, 8, (4, 1, 1, 1)),
        ({"how": "pmap"}, 1, 4, (1, 4, 1, 1)),
        ({"how": "pmap", "data": 4}, 4, 8, (1, 4, 1, 1)),
    ],
)
def test_axes_that_are_left_open_are_filled(deltas, members, devices, expected):
    config = small.recall(**{f"parallel__{k}": v for k, v in deltas.items()})
    assert resolve_layout(config, members, devices).shape == expected


def test_accumulated_parts_are_what_is_split():
    assert resolve_layout(small.recall(optimizer__accumulate=2), 1, 8).data == 2


@pytest.mark.parametrize(
    ("deltas", "message"),
    [
        ({"how": "pmpa"}, "Did you mean 'pmap'?"),
        ({"data": -1}, "parallel.data=-1 must be at least 0"),
        ({"data": 3}, "parallel.data=3 does not divide task.batch_size=4; 1, 2, 4 do"),
        ({"member": 2}, "parallel.member=2 does not divide a population of 1"),
        ({"context": 5}, "parallel.context=5 does not divide task.length=16"),
        ({"model": 4}, "parallel.model=4 does not divide model.num_heads=2; 1, 2 do"),
        (
            {"data": 4, "model": 4},
            "parallel.data=4, parallel.model=4 takes 16 devices; there are 8",
        ),
        ({"how": "pmap", "model": 2}, "splits the batch or the members only"),
        ({"how": "pmap", "fsdp": True}, "splits the batch or the members only"),
    ],
)
def test_what_does_not_divide_is_named(deltas, message):
    config = small.recall(**{f"parallel__{k}": v for k, v in deltas.items()})
    with pytest.raises(UserError) as error:
        resolve_layout(config, 1, 8)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("axes", "shape", "fsdp", "expected"),
    [
        (("width", "heads", "head_width"), (8, 4, 2), False, (None, "model", None)),
        (("width", "heads", "head_width"), (8, 4, 2), True, ("data", "model", None)),
        (("member", "layers", "width"), (4, 3, 8), True, ("member", None, None)),  # a norm's scale
        (("width", "kv_heads", "head_width"), (8, 1, 2), False, (None, None, None)),
        (("heads", "feedforward"), (4, 8), False, ("model", None)),  # one axis, one use
        (("batch", "length", "vocab"), (2, 8, 6), False, ("data", None, None)),  # 4 not in 6
    ],
)
def test_rules(axes, shape, fsdp, expected):
    assert partition_spec(axes, shape, SIZES, fsdp) == PartitionSpec(*expected)


@pytest.mark.parametrize(
    "deltas",
    [
        {"model__use_bias": True, "model__tie_embeddings": False},
        {"model__mixer": "latent", "model__position": "none"},
        {"model__pattern": ("mixer=state_space, position=none", "normalizer=softmax_sink")},
    ],
)
def test_every_parameter_has_named_axes(deltas):
    config = small.recall(model__activation="swiglu", **deltas)
    model = make_model(config.model, 16, 16)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.numpy.zeros((1, 16), int))["params"]
    axes = model.parameter_axes(shapes)
    jax.tree.map(
        lambda s, a: None if len(a.names) == s.ndim else pytest.fail(f"{a} {s}"), shapes, axes
    )


@dataclasses.dataclass(frozen=True)
class Device:
    """What `make_mesh` looks at."""

    process_index: int
    slice_index: int = 0


def test_no_process_may_be_left_without_work():
    devices = [Device(process_index=i // 2) for i in range(8)]
    with pytest.raises(UserError, match="3 processes would have nothing to do"):
        make_mesh(Layout(data=2), devices)


def test_slices_have_to_divide_members_or_batch():
    devices = [Device(process_index=0, slice_index=i // 2) for i in range(6)]
    with pytest.raises(UserError, match="3 slices divide neither parallel.member=1 nor"):
        make_mesh(Layout(data=2, model=3), devices)


def test_a_layout_in_words():
    given = parse_layout("data=4, model=2,fsdp=true,how=pmap", small.recall().parallel)
    assert given == {
        "parallel.data": 4,
        "parallel.model": 2,
        "parallel.fsdp": True,
        "parallel.how": "pmap",
    }
    assert parse_layout("", small.recall().parallel) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [("dta=2", "Did you mean 'data'?"), ("data=x", "data='x' takes int"), ("fsdp", "takes bool")],
)
def test_a_layout_that_makes_no_sense(text, message):
    with pytest.raises(UserError) as error:
        parse_layout(text, small.recall().parallel)
    assert message in str(error.value)


def test_without_a_mesh_nothing_is_constrained():
    x = jax.numpy.ones((2, 3))
    assert constrain(x, "batch", "length") is x
