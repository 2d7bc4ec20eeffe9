"""Parity with the transformers library: its modules with random weights, nothing downloaded."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.implementations import dense
from research.attention.mixers.self_attention import SelfAttention
from research.attention.parameters import bind, collect_parameters
from research.attention.parts import biases, masks, normalizers, scores
from research.attention.parts.mechanism import Mechanism
from research.attention.parts.part_options import Sizes
from research.attention.parts.positions import Rotary
from research.attention.parts.relative_biases import t5
from research.options import read
from tests.parity import compare, of

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

B, T, M, H, K, D = 2, 23, 48, 4, 2, 16


def config(**options):
    """A small Llama; ``options`` are its rope parameters."""
    return transformers.LlamaConfig(
        hidden_size=M,
        num_attention_heads=H,
        num_key_value_heads=K,
        head_dim=D,
        max_position_embeddings=64,
        attention_bias=True,
        rope_parameters={"rope_theta": 10000.0, "rope_type": "default", **options},
        attn_implementation="eager",
    )


ROPES = {
    "default": ({}, Rotary()),
    "base": ({"rope_theta": 500.0}, Rotary(500.0)),
    "linear": (
        {"rope_type": "linear", "factor": 4.0},
        Rotary(scaling="linear", factor=4.0),
    ),
    "yarn": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        Rotary(scaling="yarn", factor=4.0, original_length=64),
    ),
    # With these numbers pairs of all three kinds are among the eight.
    "llama3": (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        Rotary(scaling="llama3", factor=8.0, original_length=64),
    ),
}


def array(tensor):
    return jnp.asarray(tensor.detach().numpy())


def weights(module, name, heads):
    """A torch projection as ours: (M, heads, D), and its bias (heads, D)."""
    linear = getattr(module, name)
    return array(linear.weight.T).reshape(M, heads, D), array(linear.bias).reshape(heads, D)


def one_by_one(mixer, params, x):
    """The outputs of a mixer that is fed token by token."""
    state, pieces, step = mixer.init_state(B, T, "float32"), [], jax.jit(mixer.extend)
    for t in range(T):
        state, y = step(params, state, x[:, t : t + 1])
        pieces.append(y)
    return jnp.concatenate(pieces, 1)


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
def test_llama_attention(rope, implementation):
    from transformers.models.llama import modeling_llama as llama

    torch.manual_seed(0)
    made = config(**ROPES[rope][0])
    theirs, rotary = llama.LlamaAttention(made, 0), llama.LlamaRotaryEmbedding(made)
    x, out_gradient = torch.randn(B, T, M, requires_grad=True), torch.randn(B, T, M)
    angles = rotary(x, torch.arange(T)[None])
    forbidden = torch.full((T, T), float("-inf")).triu(1)[None, None]
    expected = theirs(x, angles, forbidden)[0]
    expected.backward(out_gradient)
    ours = SelfAttention(
        M, H, K, D, rotary=ROPES[rope][1], implementation=implementation, use_bias=True
    )
    params = {"out": array(theirs.o_proj.weight.T).reshape(H, D, M)}
    params["out_bias"] = array(theirs.o_proj.bias)
    for name, heads in (("query", H), ("key", K), ("value", K)):
        params[name], params[f"{name}_bias"] = weights(theirs, f"{name[0]}_proj", heads)
    assert {k: a.shape for k, a in params.items()} == {
        k: p.shape for k, p in ours.parameters().items()
    }
    found, pull = jax.vjp(ours, params, array(x))
    of_params, of_inputs = pull(array(out_gradient))
    gradients = {"x": (of_inputs, x.grad)}
    for name, heads in (("query", H), ("key", K), ("value", K)):
        of_theirs = array(getattr(theirs, f"{name[0]}_proj").weight.grad.T)
        gradients[name] = of_params[name], of_theirs.reshape(M, heads, D)
    scaling = ROPES[rope][1].scaling
    compare(
        "position=rope, num_kv_heads=2"
        + (f", rope_scaling={scaling}" if scaling != "none" else ""),
        of(transformers, "LlamaAttention"),
        outputs=(found, expected),
        gradients=gradients,
        decoded=(one_by_one(ours, params, array(x)), expected),
        tolerance=2e-6,
    )


PUBLISHED = {
    "qwen2": ("Qwen2Config", "Qwen2Attention", "Qwen2RotaryEmbedding", {}),
    "gemma2": (
        "Gemma2Config",
        "Gemma2Attention",
        "Gemma2RotaryEmbedding",
        {"attn_logit_softcapping": 0.5, "query_pre_attn_scalar": D},
    ),
    "qwen3": ("Qwen3Config", "Qwen3Attention", "Qwen3RotaryEmbedding", {"rms_norm_eps": 1e-6}),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3Attention",
        "Gemma3RotaryEmbedding",
        {"rms_norm_eps": 1e-6, "query_pre_attn_scalar": D, "layer_types": ["full_attention"]},
    ),
}
MECHANISMS = {"qwen2": "qkv_bias=true", "gemma2": "softcap=0.5"}
MECHANISMS |= dict.fromkeys(("qwen3", "gemma3"), "qk_norm=rms")


@pytest.mark.parametrize("model", PUBLISHED)
@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
def test_published_attention(model, implementation):
    """Outputs, gradients and decoding: Qwen2's biases, Gemma 2's soft-cap, Qwen3's RMSNorm."""
    config_name, attention, embedding, options = PUBLISHED[model]
    made = getattr(transformers, config_name)(
        hidden_size=M,
        num_hidden_layers=1,
        num_attention_heads=H,
        num_key_value_heads=K,
        head_dim=D,
        attn_implementation="eager",
        **options,
    )
    code = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    torch.manual_seed(0)
    theirs = getattr(code, attention)(made, 0)
    vectors = {}
    if model == "qwen2":
        for name, heads in (("query", H), ("key", K), ("value", K)):
            bias = getattr(theirs, f"{name[0]}_proj").bias
            vectors[f"{name}_bias"] = bias, (heads, D)
    elif model != "gemma2":
        gains = ("query", theirs.q_norm), ("key", theirs.k_norm)
        vectors = {f"{name}_scale": (norm.weight, (D,)) for name, norm in gains}
    for vector, _ in vectors.values():
        torch.nn.init.normal_(vector)
    x, out_gradient = torch.randn(B, T, M, requires_grad=True), torch.randn(B, T, M)
    layer_type = ("full_attention",) if model == "gemma3" else ()
    angles = getattr(code, embedding)(made)(x, torch.arange(T)[None], *layer_type)
    forbidden = torch.full((T, T), float("-inf")).triu(1)[None, None]
    theirs_out = theirs(x, position_embeddings=angles, attention_mask=forbidden)[0]
    theirs_out.backward(out_gradient)

    def as_ours(value):
        """What `value` makes of a parameter of theirs, by our names and in our layout."""
        found = {"out": array(value(theirs.o_proj.weight)).T.reshape(H, D, M)}
        for name, heads in (("query", H), ("key", K), ("value", K)):
            weight = getattr(theirs, f"{name[0]}_proj").weight
            found[name] = array(value(weight)).T.reshape(M, heads, D)
        return found | {name: array(value(x)).reshape(s) for name, (x, s) in vectors.items()}

    params = as_ours(lambda p: p)
    if model == "gemma3":  # its gain is 1 + the weight
        params |= {name: params[name] + 1 for name in vectors}
    ours = SelfAttention(
        *(M, H, K, D),
        Mechanism(mask=masks.causal(), biases=(biases.softcap(0.5),) if model == "gemma2" else ()),
        rotary=Rotary(1e6 if model == "gemma3" else 1e4),
        implementation=implementation,
        qkv_bias=model == "qwen2",
        qk_norm="rms" if model in ("qwen3", "gemma3") else "none",
        norm_epsilon=1e-6,
    )
    assert {k: a.shape for k, a in params.items()} == {
        k: p.shape for k, p in ours.parameters().items()
    }
    found, pull = jax.vjp(ours, params, array(x))
    of_params, of_inputs = pull(array(out_gradient))
    of_theirs = as_ours(lambda p: p.grad)
    gradients = {name: (of_params[name], one) for name, one in of_theirs.items()}
    gradients["x"] = of_inputs, x.grad
    row = MECHANISMS[model], of(transformers, attention)
    compare(*row, gradients=gradients)
    decoded = one_by_one(ours, params, array(x)), theirs_out
    compare(*row, outputs=(found, theirs_out), decoded=decoded, tolerance=3e-6)


def their_frequencies(kind, made, length=None):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, scale = ROPE_INIT_FUNCTIONS[kind](made, "cpu", seq_len=length)
    return frequencies.numpy(), scale


@pytest.mark.parametrize("original", [64, 512, 4096])
@pytest.mark.parametrize("factor", [2.0, 16.0])
@pytest.mark.parametrize("width", [16, 64, 128])
@pytest.mark.parametrize("base", [10000.0, 500000.0])
def test_yarn_frequencies(original, factor, width, base):
    made = config(
        rope_type="yarn",
        factor=factor,
        original_max_position_embeddings=original,
        rope_theta=base,
    )
    made.head_dim = width
    frequencies, scale = their_frequencies("yarn", made)
    ours = Rotary(base, scaling="yarn", factor=factor, original_length=original)
    np.testing.assert_allclose(ours.frequencies(width), frequencies, rtol=2e-6)
    assert ours.scale == pytest.approx(scale)


@pytest.mark.parametrize(("original", "low", "high"), [(8192, 1.0, 4.0), (64, 0.5, 2.0)])
@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("width", [16, 64, 128])
def test_llama3_frequencies(original, low, high, factor, width):
    """Those of Llama 3.1 and 3.2, and others; and queries that are rotated by them."""
    from transformers.models.llama import modeling_llama as llama

    made = config(
        rope_type="llama3",
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=original,
        rope_theta=500000.0,
    )
    made.head_dim = width
    frequencies, scale = their_frequencies("llama3", made)
    ours = Rotary(500000.0, 1.0, "llama3", factor, original, low, high)
    np.testing.assert_allclose(ours.frequencies(width), frequencies, rtol=2e-6)
    assert ours.scale == scale == 1.0
    q = torch.randn(B, H, T, width)
    cos, sin = llama.LlamaRotaryEmbedding(made)(q, torch.arange(T)[None])
    expected = llama.apply_rotary_pos_emb(q, q, cos, sin)[0].transpose(1, 2)
    found = ours(array(q.transpose(1, 2)), np.arange(T))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_ntk_frequencies_are_the_dynamic_ones_of_a_length():
    """At length n their base grows by factor * n / original - (factor - 1) instead of factor."""
    made = config(rope_type="dynamic", factor=2.0, original_max_position_embeddings=64)
    for length, factor in ((64, 1.0), (128, 3.0), (192, 5.0)):
        frequencies, scale = their_frequencies("dynamic", made, length)
        ours = Rotary(scaling="ntk", factor=factor).frequencies(D)
        np.testing.assert_allclose(ours, frequencies, rtol=2e-6)
        assert scale == 1.0


def test_partial_rotation_is_that_of_gpt_neox():
    from transformers.models.gpt_neox import modeling_gpt_neox as neox

    parameters = {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 0.25}
    made = transformers.GPTNeoXConfig(
        hidden_size=H * D, num_attention_heads=H, rope_parameters=parameters
    )
    x = torch.randn(B, H, T, D)
    cos, sin = neox.GPTNeoXRotaryEmbedding(made)(x, torch.arange(T)[None])
    expected, _ = neox.apply_rotary_pos_emb(x, x, cos, sin)
    ours = Rotary(fraction=0.25)(array(x.transpose(1, 2)), np.arange(T))
    compare(
        "position=rope, rope_fraction=0.25",
        of(transformers, "GPTNeoXRotaryEmbedding"),
        outputs=(ours, expected.transpose(1, 2)),
        tolerance=5e-7,
    )


@pytest.mark.parametrize("heads", [8, 12])
def test_alibi_of_bloom(heads):
    """Theirs adds slope * k instead of -slope * (q - k): the same weights."""
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    q, k = torch.randn(1, T, heads, D), torch.randn(1, T, heads, D)
    alibi = build_alibi_tensor(torch.ones(1, T), heads, torch.float32)
    raw = torch.einsum("bthd,bshd->bhts", q, k) / D**0.5 + alibi.reshape(1, heads, 1, T)
    expected = torch.softmax(raw + torch.full((T, T), float("-inf")).triu(1), -1)
    mechanism = Mechanism(mask=masks.causal(), biases=(biases.alibi(heads),))
    ours = dense.weights(array(q), array(k), mechanism)
    reference = of(transformers, "build_alibi_tensor of Bloom")
    compare("position=alibi", reference, outputs=(ours, expected), tolerance=1e-6)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_t5_attention(bidirectional):
    from transformers.models.t5.modeling_t5 import T5Attention

    torch.manual_seed(1)
    made = transformers.T5Config(d_model=M, d_kv=D, num_heads=H, dropout_rate=0.0)
    made.is_decoder = not bidirectional
    theirs = T5Attention(made, has_relative_attention_bias=True, layer_idx=0).eval()
    length = 200  # beyond the last bucket
    x = torch.randn(B, length, M)
    forbidden = torch.zeros(1, 1, length, length)
    if not bidirectional:
        forbidden = torch.full((length, length), float("-inf")).triu(1)[None, None]
    expected = theirs(x, mask=forbidden)[0].detach().numpy()
    bias = t5(H, 32, 128, bidirectional)
    table = array(theirs.relative_attention_bias.weight)
    mask = masks.full() if bidirectional else masks.causal()
    ours = SelfAttention(M, H, H, D, Mechanism(scores.dot(), mask, (bias,)))
    params = {"out": array(theirs.o.weight.T).reshape(H, D, M)}
    for name in ("query", "key", "value"):
        params[name] = array(getattr(theirs, name[0]).weight.T).reshape(M, H, D)
    (name,) = set(ours.parameters()) - set(params)
    params[name] = table
    outputs = ours(params, array(x)), expected
    compare("position=t5, score=dot", of(transformers, "T5Attention"), outputs=outputs)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (32, 256), (64, 1000)])
def test_t5_buckets(bidirectional, buckets, farthest):
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = np.arange(-2 * farthest, 2 * farthest)
    theirs = T5Attention._relative_position_bucket(
        torch.tensor(distances), bidirectional, buckets, farthest
    )
    ours = t5(H, buckets, farthest, bidirectional).bucket(np.zeros((1, 1), int), distances[None])
    assert np.array_equal(ours[0], theirs.numpy())


def test_sinks_of_gpt_oss():
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    shapes = (B, H, T, D), (B, K, T, D), (B, K, T, D)
    q, k, v = (torch.randn(*shape, requires_grad=True) for shape in shapes)
    module = torch.nn.Module()
    module.sinks, module.num_key_value_groups = torch.nn.Parameter(torch.randn(H)), H // K
    forbidden = torch.full((T, T), float("-inf")).triu(1)[None, None]
    module.eval()
    expected = eager_attention_forward(module, q, k, v, forbidden, scaling=D**-0.5)[0]
    out_gradient = torch.randn(*expected.shape)
    expected.backward(out_gradient)
    part = read(normalizers.NORMALIZERS["softmax_sink"], {}).build(Sizes(M, H, K, D, T))
    (name,) = collect_parameters(part, "normalizer")

    def ours(q, k, v, sinks):
        sink = bind(part, "normalizer", {name: sinks})
        return dense.attend(q, k, v, Mechanism(mask=masks.causal(), normalizer=sink))

    found, pull = jax.vjp(ours, *(array(x.transpose(1, 2)) for x in (q, k, v)), array(module.sinks))
    wanted = *(x.grad.transpose(1, 2) for x in (q, k, v)), module.sinks.grad
    compare(
        "normalizer=softmax_sink",
        of(transformers, "eager_attention_forward of gpt-oss"),
        outputs=(found, expected),
        gradients=dict(
            zip("qkvs", zip(pull(array(out_gradient)), wanted, strict=True), strict=True)
        ),
        tolerance=1e-6,
    )
