"""The heavier checks on eight devices, those of kernels among them: see tests/eight_devices.py."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from research.attention.errors import Unsupported
from research.attention.implementations import fused, splash
from research.attention.implementations.attend import attend
from research.attention.parts import masks, normalizers
from research.attention.parts.mechanism import Mechanism
from research.attention.parts.segments import segments
from research.attention.spec import make_mixer
from tests.attention.cases import close, qkv
from tests.attention.context_checks import (
    CAUSAL,
    HEADS,
    MESHES,
    SINK,
    SLOW,
    members,
    on,
    with_gradients,
)

DATA2_MODEL2 = (1, 2, 1, 2)


def splash_is_split_over_every_axis() -> None:
    """Interpreted: heads, rows of the batch and queries on devices of their own."""
    arrays = qkv(130, 140, HEADS, 2)
    mask = masks.window(40) & segments(*ids(130, 140))
    normalizer = normalizers.SinkSoftmax(sharpening=2.0, sink=SINK)

    def run(q, k, v, normalizer, implementation):
        mechanism = Mechanism(mask=mask, normalizer=normalizer)
        return attend(q, k, v, mechanism, implementation=implementation)

    given = members((*arrays, normalizer))
    with on(MESHES["member2-context2-model2"]):
        found = with_gradients(functools.partial(run, implementation="splash"), *given)
    close(found, with_gradients(functools.partial(run, implementation="dense"), *given), 1e-4)


def ids(*lengths):
    drawn = jnp.sort(jax.random.randint(jax.random.key(3), (2, max(lengths)), 0, 4), axis=1)
    return [drawn[:, :length] for length in lengths]


def splash_lowers_for_tpus_on_a_mesh() -> None:
    """Forward and both backward kernels, of a population on every axis."""

    def loss(q, k, v):
        return attend(q, k, v, Mechanism(mask=masks.window(40)), implementation="splash").sum()

    run = jax.vmap(jax.grad(loss, argnums=(0, 1, 2)), spmd_axis_name="member")
    arrays = (x.astype(jnp.bfloat16) for x in qkv(512, 512, HEADS, 2))
    with (
        on(MESHES["member2-context2-model2"]),
        mock.patch.object(splash, "platform", lambda: "tpu"),
    ):
        traced = jax.jit(run).trace(*members(tuple(arrays)))
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 3


def cudnn_gets_what_its_device_has() -> None:
    """cuDNN's place taken by XLA, which is asked on each device for a share of rows and heads."""
    asked, attention = [], jax.nn.dot_product_attention

    def record(q, k, v, *, implementation, **options):
        assert implementation == "cudnn"
        asked.append((q.shape[0], q.shape[2], k.shape[2]))
        return attention(q, k, v, implementation="xla", **options)

    arrays = [x.astype(jnp.bfloat16) for x in qkv(12, 12, HEADS, 1)]

    def run(implementation):
        options = {"mechanism": CAUSAL, "implementation": implementation}
        return with_gradients(functools.partial(attend, **options), *members(arrays))

    with (
        mock.patch.object(fused, "platform", lambda: "gpu"),
        mock.patch.object(jax.nn, "dot_product_attention", record),
    ):
        with on(DATA2_MODEL2):
            found = run("jax_cudnn")
        assert set(asked) == {(1, HEADS // 2, 1)}
        with on(MESHES["context8"]):
            try:
                run("jax_cudnn")
                raise AssertionError("it was not refused")
            except Unsupported as error:
                assert "use 'ring' or 'gather'" in str(error)
    close(found, run("dense"), 0.03)


def memory_is_that_of_the_devices_share() -> None:
    """A layer with its feed-forward part, forwards and backwards, as compiled."""
    length, width = 8192, 128

    def temporary(implementation, mesh):
        options = {"width": width, "num_heads": 4, "max_length": length, "block_size": 128}
        mixer = make_mixer(**options, implementation=implementation)

        def loss(params, x, inward, outward):
            def unit(x):
                return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5)

            x = x + mixer(params, unit(x))
            return (x + jax.nn.gelu(unit(x) @ inward) @ outward).sum()

        def shape(*sizes, spec=()):
            where = mesh and NamedSharding(mesh, PartitionSpec(*spec))
            return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=where)

        params = {name: shape(*p.shape) for name, p in mixer.parameters().items()}
        given = (params, shape(1, length, width, spec=(None, "context")))
        given += shape(width, 4 * width), shape(4 * width, width)
        compiled = jax.jit(jax.grad(loss, (0, 1, 2, 3))).lower(*given).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = temporary("blockwise", None)
    with on(MESHES["context8"]):
        share = temporary("ring", jax.sharding.get_mesh())
    assert share < 1.3 * whole / 8, (share, whole)


STRUCTURE = (
    splash_is_split_over_every_axis,
    splash_lowers_for_tpus_on_a_mesh,
    cudnn_gets_what_its_device_has,
    memory_is_that_of_the_devices_share,
)
CHECKS = {check.__name__: check for check in STRUCTURE} | SLOW
