"""Collectives counted in HLO text, against programs whose messages are known."""

import os
import subprocess
import sys

import pytest

from research.cloud.collectives import Collective, merge, parse_collectives, total_by_kind
from tests.conftest import ROOT

HLO = """HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p: bf16[4,8]) -> bf16[32,8] {
  ROOT %all-gather.1 = bf16[32,8]{1,0} all-gather(%p), channel_id=3, replica_groups=mesh['x'=8,'y'=1] {'x'}, dimensions={0}
}

%overlapped (p: bf16[4,8]) -> bf16[32,8] {
  ROOT %all-gather.2 = bf16[32,8]{1,0} all-gather(%p), channel_id=3, replica_groups=mesh['x'=8,'y'=1] {'x'}, dimensions={0}
}

%condition (t: (s32[], f32[16])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  %i = s32[] get-tuple-element(%t), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (t: (s32[], f32[16])) -> (s32[], f32[16]) {
  %x = f32[16]{0} get-tuple-element(%t), index=1
  %kernel = f32[16]{0} custom-call(%x), custom_call_target="tpu_custom_call", backend_config={"text":"
}}, metadata={}
  %g = bf16[32,8]{1,0} fusion(%x), kind=kLoop, calls=%fused
  %h = bf16[32,8]{1,0} fusion(%x), kind=kLoop, calls=%overlapped
  %all-reduce.1 = (f32[16]{0:T(128)}, f32[4]{0}) all-reduce(%x, %x), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
  %collective-permute-start.1 = (f32[16]{0}, f32[16]{0}, u32[], u32[]) collective-permute-start(%x), channel_id=2, source_target_pairs={{0,1},{1,0}}
  ROOT %t2 = (s32[], f32[16]) tuple(%i, %x)
}

ENTRY %main (x: f32[16]) -> f32[16] {
  %loop = (s32[], f32[16]{0}) while(%t0), condition=%condition, body=%body
  %known = (s32[], f32[16]{0}) while(%t0), condition=%other, body=%body2, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %reduce-scatter.1 = f32[16]{0} reduce-scatter(%x), channel_id=9, replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
}
"""  # noqa: E501


def test_kinds_sizes_groups_and_turns():
    found = parse_collectives(HLO)
    assert set(found) == {
        Collective("all-gather", 32 * 8 * 2, 8, 12),  # twice on the same channel is once
        Collective("all-reduce", (16 + 4) * 4, 4, 12),
        Collective("collective-permute", 16 * 4, 2, 12),
        Collective("reduce-scatter", 4 * 16 * 4, 4, 1),
    }


@pytest.mark.parametrize(
    ("kind", "moved"),
    [
        ("all-gather", 750),
        ("reduce-scatter", 750),
        ("all-to-all", 750),
        ("all-reduce", 1500),
        ("collective-permute", 1000),
    ],
)
def test_bytes_that_a_ring_moves(kind, moved):
    assert Collective(kind, 1000, 4, 1).moved == moved


def test_equal_ones_are_counted_together():
    found = merge([Collective("all-reduce", 8, 2, 1), Collective("all-reduce", 8, 2, 3)])
    assert found == [Collective("all-reduce", 8, 2, 4)]
    assert total_by_kind(found) == {"all-reduce": (4, 32)}


PROGRAM = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from research.cloud.collectives import parse_collectives
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
def put(shape, spec):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
def step(w, x):
    def layer(x, w):
        return jnp.tanh(x @ w), None
    return jax.grad(lambda w: jax.lax.scan(layer, x, w)[0].sum())(w)
out = NamedSharding(mesh, P())
compiled = jax.jit(step, out_shardings=out).lower(put((6, 32, 32), P()), put((8, 32), P("data")))
for c in parse_collectives(compiled.compile().as_text()):
    print(c.kind, c.bytes * c.count, c.group)
"""


def test_gradients_of_a_replicated_model_are_summed_once():
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    # Six matrices of 32 x 32 in float32, over four devices, in the loop or after it.
    assert run.stdout.split() == ["all-reduce", str(float(6 * 32 * 32 * 4)), "4"]
