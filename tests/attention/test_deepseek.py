"""Parity of latent attention with the transformers library's DeepSeek models, of random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from research.attention.mixers import latent
from research.attention.mixers.latent import LatentAttention
from research.attention.parts.indexer import indexer
from research.attention.parts.positions import Rotary
from tests.parity import compare, of

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

B, T, M, H, D, R, LATENT, OF_QUERY = 2, 21, 48, 4, 16, 8, 20, 12
TOP, INDEX_HEADS = 6, 5
EXTENDED = {
    "rope_theta": 10000.0,
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}


def array(tensor):
    return jnp.asarray(tensor.detach().numpy())


def theirs_of(query_rank, interleaved, rope):
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek

    torch.manual_seed(0)
    config = transformers.DeepseekV3Config(
        hidden_size=M,
        num_attention_heads=H,
        num_key_value_heads=H,
        q_lora_rank=query_rank,
        kv_lora_rank=LATENT,
        qk_nope_head_dim=D,
        qk_rope_head_dim=R,
        v_head_dim=D,
        rope_interleave=interleaved,
        rope_parameters=rope,
        max_position_embeddings=64,
        attn_implementation="eager",
    )
    attention = deepseek.DeepseekV3Attention(config, 0)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.2)
    return attention, deepseek.DeepseekV3RotaryEmbedding(config)


def halves(a):
    """The last axis, whose neighbours rotate together, in our order: two halves that do."""
    return jnp.concatenate([a[..., ::2], a[..., 1::2]], axis=-1)


def as_ours(attention, interleaved, value):
    """What `value` makes of a parameter of theirs, by our names and in our layout."""
    place = halves if interleaved else (lambda a: a)

    def turned(a):
        return jnp.concatenate([a[..., :-R], place(a[..., -R:])], axis=-1)

    keys_values = array(value(attention.kv_b_proj.weight)).reshape(H, 2, D, LATENT)
    down = array(value(attention.kv_a_proj_with_mqa.weight)).T
    found = {
        "latent": down[:, :LATENT],
        "rotated_key": place(down[:, LATENT:]),
        "latent_scale": array(value(attention.kv_a_layernorm.weight)),
        "key": keys_values[:, 0].transpose(2, 0, 1),
        "value": keys_values[:, 1].transpose(2, 0, 1),
        "out": array(value(attention.o_proj.weight)).T.reshape(H, D, M),
    }
    if getattr(attention, "q_proj", None) is not None:
        query = attention.q_proj
    else:
        query = attention.q_b_proj
        found["query_latent"] = array(value(attention.q_a_proj.weight)).T
        found["query_latent_scale"] = array(value(attention.q_a_layernorm.weight))
    return found | {"query": turned(array(value(query.weight)).T.reshape(-1, H, D + R))}


def equals(row, ours, params, theirs, of_theirs):
    """Outputs and gradients of a whole sequence, and outputs in pieces, are those of theirs.

    Args:
      row: of the parity table: our mixer, and the name of their class.
      ours, params: our mixer and its parameters.
      theirs: their inputs, their outputs, and the gradient of the outputs.
      of_theirs: gradients of their parameters, by our names.
    """
    x, expected, out_gradient = theirs
    assert {k: a.shape for k, a in params.items()} == {
        k: p.shape for k, p in ours.parameters().items()
    }
    inputs = array(x)
    found, pull = jax.vjp(ours, params, inputs)
    of_params, of_inputs = pull(array(out_gradient))
    gradients = {name: (of_params[name], one) for name, one in of_theirs.items()}
    gradients["x"] = of_inputs, x.grad

    state, pieces = ours.init_state(B, T, "float32"), []
    for start, stop in ((0, 1), (1, 2), (2, 9), (9, T)):
        state, y = jax.jit(ours.extend)(params, state, inputs[:, start:stop])
        pieces.append(y)
    compare(
        row[0],
        of(transformers, row[1]),
        outputs=(found, expected),
        gradients=gradients,
        decoded=(jnp.concatenate(pieces, 1), expected),
    )


@pytest.mark.parametrize(
    ("query_rank", "interleaved", "rope", "rotary"),
    [
        (None, True, {"rope_theta": 10000.0, "rope_type": "default"}, Rotary()),
        (OF_QUERY, True, {"rope_theta": 10000.0, "rope_type": "default"}, Rotary()),
        (OF_QUERY, False, EXTENDED, Rotary(scaling="yarn", factor=4.0, original_length=64)),
    ],
    ids=["whole queries", "latent queries", "YaRN"],
)
def test_latent_attention_of_deepseek_v3(query_rank, interleaved, rope, rotary):
    """Outputs and gradients of a whole sequence, and outputs token by token."""
    theirs, embedding = theirs_of(query_rank, interleaved, rope)
    x, out_gradient = torch.randn(B, T, M, requires_grad=True), torch.randn(B, T, M)
    forbidden = torch.full((T, T), float("-inf")).triu(1)[None, None]
    expected = theirs(x, embedding(x, torch.arange(T)[None]), forbidden)[0]
    expected.backward(out_gradient)

    ours = LatentAttention(M, H, D, LATENT, query_rank or 0, R, rotary=rotary)
    params = as_ours(theirs, interleaved, lambda p: p)
    row = "mixer=latent, position=rope"
    row += f", query_latent_width={query_rank}" if query_rank else ""
    of_theirs = as_ours(theirs, interleaved, lambda p: p.grad)
    equals((row, "DeepseekV3Attention"), ours, params, (x, expected, out_gradient), of_theirs)


def sparse_theirs():
    """DeepSeek-V3.2's attention, of which each query reads `TOP` keys."""
    from transformers.models.deepseek_v32 import modeling_deepseek_v32 as deepseek

    torch.manual_seed(0)
    config = transformers.DeepseekV32Config(
        hidden_size=M,
        num_attention_heads=H,
        num_key_value_heads=H,
        q_lora_rank=OF_QUERY,
        kv_lora_rank=LATENT,
        qk_nope_head_dim=D,
        qk_rope_head_dim=R,
        v_head_dim=D,
        index_topk=TOP,
        index_n_heads=INDEX_HEADS,
        index_head_dim=2 * R,
        rope_parameters={"rope_theta": 10000.0, "rope_type": "default"},
        max_position_embeddings=64,
        attn_implementation="eager",
    )
    attention = deepseek.DeepseekV32Attention(config, 0)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.2)
    return attention, deepseek.DeepseekV32RotaryEmbedding(config)


def test_sparse_attention_of_deepseek_v32():
    """Which keys the indexer selects, outputs and gradients, and outputs token by token."""
    theirs, embedding = sparse_theirs()
    x, out_gradient = torch.randn(B, T, M, requires_grad=True), torch.randn(B, T, M)
    forbidden = torch.full((T, T), float("-inf")).triu(1)[None, None].repeat(B, 1, 1, 1)
    expected, weights = theirs(x, embedding(x, torch.arange(T)[None]), forbidden)
    expected.backward(out_gradient)

    rotary, inward = Rotary(), (M, OF_QUERY, INDEX_HEADS, 2 * R, TOP)
    mechanism = dataclasses.replace(latent.CAUSAL, selection=indexer(*inward, rotary))
    ours = LatentAttention(M, H, D, LATENT, OF_QUERY, R, mechanism, rotary)
    own, inputs = theirs.indexer, array(x)
    params = as_ours(theirs, True, lambda p: p) | {
        "selection_query": array(own.wq_b.weight).T.reshape(OF_QUERY, INDEX_HEADS, 2 * R),
        "selection_key": array(own.wk.weight).T,
        "selection_key_scale": array(own.k_norm.weight),
        "selection_key_bias": array(own.k_norm.bias),
        "selection_weight": array(own.weights_proj.weight).T,
    }
    selected = ours.attention_trace(params, inputs).weights > 0
    assert (selected == array(weights > 0)).all()
    assert (selected.sum(-1).max(), selected.sum(-1).min()) == (TOP, 1)
    row = f"mixer=latent, position=rope, query_latent_width={OF_QUERY}, index_top={TOP}"
    of_theirs = as_ours(theirs, True, lambda p: p.grad)
    equals((row, "DeepseekV32Attention"), ours, params, (x, expected, out_gradient), of_theirs)
