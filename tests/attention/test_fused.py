"""Attention by kernels that others wrote: the same function, or a refusal that names what lacks.

What needs a GPU or a TPU is checked as far as a CPU can: the kernel for TPUs is interpreted, what
cuDNN would be asked is computed by XLA instead, and both are lowered for their devices. Where there
is a GPU, cuDNN itself is asked as well.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.errors import Unsupported
from research.attention.implementations import dense, fused, splash
from research.attention.implementations.attend import IMPLEMENTATIONS, attend, choose_implementation
from research.attention.parts import biases, masks, normalizers
from research.attention.parts.mechanism import Mechanism
from research.attention.parts.normalizers import NORMALIZERS
from research.attention.parts.part_options import Sizes
from research.attention.parts.segments import segments
from tests.attention.cases import close, qkv, weighted
from tests.attention.test_attend import BIASES, HEADS

PLATFORM = jax.default_backend()
runs_splash = pytest.mark.skipif(PLATFORM == "gpu", reason="splash runs on TPUs; CPUs interpret it")
SOFTMAX = Mechanism(mask=masks.causal())


def value_and_gradients(function, q, k, v, normalizer, **mechanism):
    at = {name: mechanism.pop(name) for name in ("q_index", "kv_index") if name in mechanism}

    def loss(q, k, v, normalizer):
        out = function(q, k, v, Mechanism(normalizer=normalizer, **mechanism), **at)
        return weighted(out.astype(jnp.float32)), out

    grad = jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)
    return jax.jit(grad)(q, k, v, normalizer)


def bfloat16(*arrays):
    return [x.astype(jnp.bfloat16) for x in arrays]


@pytest.mark.parametrize("name", [name for name in BIASES if name not in ("none", "learned")])
def test_biases_marked_additive_are_those_that_add(name):
    """XLA is given the bias of a score of 0."""
    (bias,) = BIASES[name]
    q_index, kv_index = np.arange(6)[:, None], np.arange(6)[None, :]
    score = np.float32(3 * np.random.default_rng(0).normal(size=(2, HEADS, 6, 6)))
    head = np.arange(HEADS)[:, None, None]
    run = jax.jit(lambda score: bias(score, head, q_index, kv_index))
    adds = np.allclose(run(score) - score, run(0 * score), atol=1e-5)
    assert adds == bias.additive


def test_jax_xla_refuses_what_it_lacks():
    q, k, v = qkv(4, 4, HEADS, HEADS)
    for parts, message in (
        (
            {"biases": (biases.softcap(2.0),)},
            "lacks bias Softcap.*; dense, blockwise, rows have it",
        ),
        ({"normalizer": normalizers.SoftmaxPlusOne()}, "lacks normalizer 'softmax_plus_one'"),
    ):
        with pytest.raises(Unsupported, match=message):
            attend(q, k, v, Mechanism(**parts), implementation="jax_xla")


@pytest.fixture
def xla_for_cudnn(monkeypatch):
    """What cuDNN is asked, computed by XLA; the list of what it was asked."""
    asked, attention = [], jax.nn.dot_product_attention

    def record(q, k, v, *, implementation, **options):
        assert implementation == "cudnn"
        # What cuDNN can do (jax/_src/cudnn/fused_attention_stablehlo.py).
        assert {x.dtype for x in (q, k, v)} == {jnp.dtype(jnp.bfloat16)}
        assert q.shape[-1] % 8 == 0 and "bias" not in options and "mask" not in options
        asked.append(options)
        return attention(q, k, v, implementation="xla", **options)

    monkeypatch.setattr(fused, "platform", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    return asked


@pytest.mark.parametrize("mask", [masks.full(), masks.causal(), masks.window(4)], ids=str)
def test_what_cudnn_is_asked_is_what_dense_computes(xla_for_cudnn, mask):
    # Head widths of 10 and 6 have to be padded, and padding must not change the scale.
    q, k, v = bfloat16(*qkv(13, 13, HEADS, 2, width=10))
    mechanism = {"mask": mask, "q_index": np.arange(7, 20), "kv_index": np.arange(7, 20)}
    sharp = normalizers.Softmax(sharpening=2.0)
    found = value_and_gradients(fused.attend_cudnn, q, k, v, sharp, **mechanism)
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    close(found[1][:3], value_and_gradients(dense.attend, *wide, sharp, **mechanism)[1][:3], 0.03)
    assert all(
        options.get("is_causal", False) == (mask != masks.full()) for options in xla_for_cudnn
    )


def test_jax_cudnn_refuses_what_it_lacks(xla_for_cudnn, monkeypatch):
    q, k, v = bfloat16(*qkv(12, 12, HEADS, HEADS))

    def refused(message, *, dtype=jnp.bfloat16, q_index=None, **parts):
        arrays = [x.astype(dtype) for x in (q, k, v)]
        with pytest.raises(Unsupported, match=message):
            attend(*arrays, Mechanism(**parts), q_index=q_index, implementation="jax_cudnn")

    refused("lacks bias Alibi; dense, blockwise", biases=(biases.alibi(HEADS),))
    refused("lacks mask Prefix .*; dense, blockwise", mask=masks.prefix(3))
    refused("lacks mask And", mask=masks.causal() & masks.padding(jnp.ones((2, 12), bool)))
    refused("lacks normalizer 'softmax_sink'", normalizer=normalizers.SinkSoftmax(sink=0.0))
    refused("lacks float32 .*use 'blockwise'", dtype=jnp.float32)
    causal = {"mask": masks.causal()}
    refused("same consecutive positions", **causal, q_index=np.arange(1, 13))
    refused("same consecutive positions", **causal, q_index=np.arange(12)[::-1])
    # A query beyond the window of all keys would get their mean instead of zeros.
    with pytest.raises(Unsupported, match="same consecutive positions"):
        attend(q, k[:, :5], v[:, :5], Mechanism(mask=masks.window(2)), implementation="jax_cudnn")
    with pytest.raises(Unsupported, match="known while tracing"):
        jax.jit(lambda i: attend(q, k, v, SOFTMAX, q_index=i, implementation="jax_cudnn"))(
            jnp.arange(12)
        )
    assert not xla_for_cudnn
    monkeypatch.undo()
    monkeypatch.setattr(fused, "platform", lambda: "cpu")
    refused("needs an NVIDIA GPU, not a cpu; use 'blockwise'", **causal)


@pytest.mark.skipif(PLATFORM != "gpu", reason="cuDNN runs on NVIDIA GPUs")
@pytest.mark.parametrize("mask", [masks.full(), masks.causal(), masks.window(40)], ids=str)
def test_cudnn_equals_dense(mask):
    """A population of two, whose head widths have to be padded."""
    arrays = [jnp.stack([x, x[::-1]]) for x in bfloat16(*qkv(130, 130, HEADS, 2, width=10))]

    def run(function, dtype):
        def one(q, k, v):
            return value_and_gradients(function, q, k, v, normalizers.Softmax(), mask=mask)

        return jax.jit(jax.vmap(one))(*(x.astype(dtype) for x in arrays))[1][:3]

    close(run(fused.attend_cudnn, jnp.bfloat16), run(dense.attend, jnp.float32), 0.03)


def test_jax_cudnn_lowers_to_cudnn(monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused, "platform", lambda: "gpu")
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    q, k, v = bfloat16(*qkv(16, 16, HEADS, 2, width=8, value_width=8))

    def loss(q, k, v):
        out = attend(q, k, v, Mechanism(mask=masks.window(4)), implementation="jax_cudnn")
        return jnp.square(out).sum()

    population = [jnp.stack([x] * 3) for x in (q, k, v)]
    run = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1, 2))))
    text = run.trace(*population).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__cudnn$fmhaSoftmax") == 2
    assert "CAUSAL" in text and "sliding_window_length" in text


SEGMENTS = jnp.asarray(np.sort(np.random.default_rng(3).integers(0, 4, (2, 140)), axis=1))
# Sequence 0 is padded, sequence 1 is nothing else.
VALID = jnp.asarray(np.arange(140)[None] < np.asarray([[100], [0]]))
SINK = normalizers.SinkSoftmax(sharpening=2.0, sink=jnp.asarray([0.5, -1.0, 2.0, 0.0]))
SPLASH = {
    # A causal mask is computed in the kernel.
    "causal": (256, 256, {"mask": masks.causal()}, normalizers.softmax),
    # No length is a multiple of 128, the first queries see nothing, and all else that it has.
    "everything": (
        130,
        140,
        {
            "mask": masks.window(40) & ~masks.window(3) & segments(SEGMENTS, SEGMENTS),
            "biases": (biases.softcap(2.0),),
            "q_index": np.arange(130),
        },
        SINK,
    ),
    "padding": (
        130,
        140,
        {"mask": masks.prefix(20) & masks.padding(VALID)},
        normalizers.softmax,
    ),
}


@runs_splash
@pytest.mark.parametrize("case", SPLASH.values(), ids=SPLASH.keys())
def test_splash_equals_dense(case):
    t, s, mechanism, normalizer = case
    q, k, v = qkv(t, s, HEADS, 2)
    expected = value_and_gradients(dense.attend, q, k, v, normalizer, **mechanism)
    close(value_and_gradients(splash.attend, q, k, v, normalizer, **mechanism), expected, 1e-4)
    if mechanism["mask"] != masks.causal():
        assert (np.asarray(expected[0][1]) == 0).all(-1).any()


@pytest.mark.parametrize("case", SPLASH.values(), ids=SPLASH.keys())
def test_splash_lowers_for_tpus(case, monkeypatch):
    """A population of three, forward and both backward kernels."""
    monkeypatch.setattr(splash, "platform", lambda: "tpu")
    t, s, mechanism, normalizer = case

    def loss(q, k, v, normalizer):
        at = {"q_index": mechanism.get("q_index")}
        parts = {name: part for name, part in mechanism.items() if name not in at}
        return splash.attend(q, k, v, Mechanism(normalizer=normalizer, **parts), **at).sum()

    one = (*bfloat16(*qkv(t, s, HEADS, 2)), normalizer)
    population = jax.tree.map(lambda x: np.stack([np.asarray(x)] * 3), one)
    run = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1, 2, 3))))
    text = run.trace(*population).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 3


@runs_splash
def test_splash_of_a_population():
    """Members with inputs and a sink of their own."""
    one = jax.tree.map(np.asarray, (*qkv(128, 128, HEADS, 2), SINK))
    members = jax.tree.map(lambda x: np.stack([x, x[::-1]]), one)

    def run(function):
        def one(*arrays):
            return value_and_gradients(function, *arrays, mask=masks.window(40))

        return jax.jit(jax.vmap(one))(*members)

    close(run(splash.attend), run(dense.attend), 1e-4)


def test_splash_refuses_what_it_lacks(monkeypatch):
    q, k, v = qkv(4, 4, HEADS, HEADS)

    def refused(message, **parts):
        with pytest.raises(Unsupported, match=message):
            attend(q, k, v, Mechanism(**parts), implementation="splash")

    refused("lacks bias Alibi .*; dense, blockwise", biases=(biases.alibi(HEADS),))
    refused("lacks a cap that is an array", biases=(biases.Softcap(jnp.float32(2.0)),))
    refused("lacks mask Not", mask=~masks.padding(VALID))
    refused(
        "lacks mask Segments & Padding",
        mask=segments(SEGMENTS, SEGMENTS) & masks.padding(VALID),
    )
    refused("lacks normalizer 'sparsemax'", normalizer=normalizers.Sparsemax())
    with pytest.raises(Unsupported, match="known while tracing"):
        jax.jit(lambda i: attend(q, k, v, q_index=i, implementation="splash"))(jnp.arange(4))
    with pytest.raises(Unsupported, match="lacks float16"):
        attend(*(x.astype(jnp.float16) for x in (q, k, v)), implementation="splash")
    monkeypatch.setattr(splash, "platform", lambda: "gpu")
    refused("needs a TPU, not a gpu")


def test_choose():
    """By length, device, dtype and what each can do."""
    assert choose_implementation(1024, SOFTMAX, backend="cpu") == "dense"
    assert choose_implementation(1025, SOFTMAX, backend="cpu") == "blockwise"
    assert choose_implementation(4096, Mechanism(normalizer=normalizers.Sparsemax())) == "rows"
    known = {"dtype": "bfloat16", "head_width": 64}
    assert choose_implementation(512, SOFTMAX, **known, backend="gpu") == "jax_cudnn"
    assert (
        choose_implementation(512, SOFTMAX, dtype="float32", head_width=64, backend="gpu")
        == "dense"
    )
    assert (
        choose_implementation(512, SOFTMAX, dtype="bfloat16", head_width=192, backend="gpu")
        == "dense"
    )
    assert choose_implementation(512, SOFTMAX, head_width=64, backend="gpu") == "dense"
    assert choose_implementation(2048, SOFTMAX, **known, backend="tpu") == "splash"
    assert choose_implementation(2048, SOFTMAX, dtype=jnp.float16, backend="tpu") == "blockwise"
    assert choose_implementation(2000, SOFTMAX, **known, backend="tpu") == "blockwise"
    assert choose_implementation(2048, SOFTMAX, backend="tpu") == "blockwise"


def test_normalizers_that_each_implementation_takes():
    """What is registered later is refused by all but those that have whole rows of scores."""
    family = {"softmax", "softmax_plus_one", "softmax_sink"}
    expected = {
        "dense": set(NORMALIZERS),
        "blockwise": {*family, "smoothed", "sigmoid", "squared_relu", "softpick"},
        "ring": {*family, "smoothed", "sigmoid", "squared_relu", "softpick"},
        "rows": set(NORMALIZERS),
        "gather": set(NORMALIZERS),
        "jax_xla": {"softmax"},
        "jax_cudnn": {"softmax"},
        "splash": family,
    }
    sizes = Sizes(16, HEADS, HEADS, 16 // HEADS, 8)
    for implementation, found in IMPLEMENTATIONS.items():
        takes = {
            name
            for name, part in NORMALIZERS.items()
            if not found.unsupported_part(Mechanism(normalizer=part().build(sizes)))
        }
        assert takes == expected[implementation]
