"""Whole decoders against the transformers library's, of random weights: logits and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.registry import make_model
from research.models.transformer import init_state
from tests import small
from tests.models import families
from tests.parity import compare, of

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

B, T, V, M, L, H, K, D, F = 2, 14, 61, 48, 4, 4, 2, 12, 80
WINDOW = 5
SIZES = {
    "vocab_size": V,
    "hidden_size": M,
    "num_hidden_layers": L,
    "num_attention_heads": H,
    "num_key_value_heads": K,
    "head_dim": D,
    "intermediate_size": F,
    "max_position_embeddings": 32,
    "attn_implementation": "eager",
}
OURS = {
    "width": M,
    "num_layers": L,
    "feedforward": F,
    "num_heads": H,
    "num_kv_heads": K,
    "head_width": D,
    "norm_epsilon": 1e-6,
    "activation": "swiglu",
    "tie_embeddings": False,
}
GEMMA = {
    "norm": "zero_centered_rmsnorm",
    "activation": "geglu",
    "embedding_scale": M**0.5,
    "tie_embeddings": True,
}
WITH_BIASES = {
    "num_kv_heads": 0,
    "head_width": 0,
    "norm_epsilon": 1e-5,
    "norm": "layernorm",
    "use_bias": True,
    "activation": "gelu",
}
BLOOM = WITH_BIASES | {
    "feedforward": 4 * M,
    "activation": "gelu_tanh",
    "position": "alibi",
    "embedding_norm": True,
    "tie_embeddings": True,
}
MPT = BLOOM | {"use_bias": False, "embedding_norm": False, "activation": "gelu"}
MAMBA2 = {
    "mixer": "state_space",
    "position": "none",
    "feedforward": 0,
    "num_heads": 8,
    "num_kv_heads": 0,
    "feature_width": 7,
    "norm_epsilon": 1e-5,
    "activation": "gelu",
    "short_convolution": 4,
    "convolution_bias": True,
    "output_norm_gain": True,
    "output_norm_epsilon": 1e-5,
}
SCALAR = 31


def mpt(heads, **attention):
    return transformers.MptConfig(
        vocab_size=V, d_model=M, n_layers=L, n_heads=heads, max_seq_len=32,
        attn_config=attention, attn_implementation="eager",
    )  # fmt: skip


def mamba2(groups):
    return transformers.Mamba2Config(
        vocab_size=V, hidden_size=M, num_hidden_layers=L, num_heads=8, head_dim=D, state_size=7,
        n_groups=groups, chunk_size=8,
    )  # fmt: skip


def neox(fraction, **changes):
    return transformers.GPTNeoXConfig(
        vocab_size=V, hidden_size=M, num_hidden_layers=L, num_attention_heads=H,
        intermediate_size=F, attn_implementation="eager", **changes,
        rope_parameters={
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": fraction,
        },
    )  # fmt: skip


"""What Gemma's scores are divided by the root of."""
FAMILIES = {
    "gpt2": (
        lambda: transformers.GPT2Config(
            vocab_size=V, n_positions=32, n_embd=M, n_layer=L, n_head=H, n_inner=F,
            layer_norm_epsilon=1e-5, attn_implementation="eager",
        ),
        {
            "num_kv_heads": 0, "head_width": 0, "norm_epsilon": 1e-5, "activation": "gelu_tanh",
            "norm": "layernorm", "use_bias": True, "position": "learned", "tie_embeddings": True,
        },
        families.of_gpt2,
        "GPT-2: position=learned, use_bias=true",
    ),
    "llama": (
        lambda: transformers.LlamaConfig(**SIZES, rms_norm_eps=1e-6),
        {},
        families.of_llama,
        "Llama: position=rope, num_kv_heads=2",
    ),
    "mistral": (
        lambda: transformers.MistralConfig(**SIZES, rms_norm_eps=1e-6, sliding_window=WINDOW),
        {"mask": "window", "window": WINDOW, "rope_base": 10000.0},
        families.of_llama,
        f"Mistral: mask=window, window={WINDOW}",
    ),
    "qwen2": (
        lambda: transformers.Qwen2Config(**SIZES),
        {"qkv_bias": True},
        families.of_llama,
        "Qwen2: qkv_bias=true",
    ),
    "qwen3": (
        lambda: transformers.Qwen3Config(**SIZES),
        {"qk_norm": "rms"},
        families.of_llama,
        "Qwen3: qk_norm=rms",
    ),
    "gemma": (
        lambda: transformers.GemmaConfig(**SIZES, hidden_activation="gelu_pytorch_tanh"),
        GEMMA,
        families.of_llama,
        "Gemma: norm=zero_centered_rmsnorm, activation=geglu, embedding_scale=6.9",
    ),
    "gemma2": (
        lambda: transformers.Gemma2Config(
            **SIZES, sliding_window=WINDOW, query_pre_attn_scalar=SCALAR,
            attn_logit_softcapping=2.0, final_logit_softcapping=3.0,
            hidden_activation="gelu_pytorch_tanh",
        ),
        GEMMA | {
            "norm_placement": "sandwich", "softcap": 2.0, "output_cap": 3.0,
            "score_scale": SCALAR**-0.5,
            "pattern": (f"mask=window, window={WINDOW}", "mask=causal"),
        },
        families.of_llama,
        "Gemma 2: norm_placement=sandwich, activation=geglu, softcap=2.0, output_cap=3.0",
    ),
    "gemma3": (
        lambda: transformers.Gemma3TextConfig(
            **SIZES, sliding_window=WINDOW, query_pre_attn_scalar=SCALAR,
            layer_types=["sliding_attention", "full_attention"] * 2,
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            },
        ),
        GEMMA | {
            "norm_placement": "sandwich", "qk_norm": "zero_centered_rms",
            "score_scale": SCALAR**-0.5,
            "pattern": (
                f"mask=window, window={WINDOW}, rope_base=10000",
                "mask=causal, rope_base=1000000, rope_scaling=linear, rope_factor=8",
            ),
        },
        families.of_llama,
        "Gemma 3: qk_norm=zero_centered_rms, pattern of rope_base=10000 and rope_base=1000000",
    ),
    "gpt_neox": (
        lambda: neox(0.5),
        WITH_BIASES | {"parallel_residual": True, "rope_fraction": 0.5},
        families.of_neox,
        "GPT-NeoX: parallel_residual=true, rope_fraction=0.5, use_bias=true",
    ),
    "gpt_neox, one by one": (
        lambda: neox(1.0, use_parallel_residual=False),
        WITH_BIASES,
        families.of_neox,
        "GPT-NeoX: parallel_residual=false, rope_fraction=1.0, use_bias=true",
    ),
    "bloom": (
        lambda: transformers.BloomConfig(
            vocab_size=V, hidden_size=M, n_layer=L, n_head=H, attn_implementation="eager"
        ),
        BLOOM,
        families.of_bloom,
        "BLOOM: embedding_norm=true, position=alibi, use_bias=true",
    ),
    "bloom, 6 heads": (
        lambda: transformers.BloomConfig(
            vocab_size=V, hidden_size=M, n_layer=L, n_head=6, attn_implementation="eager"
        ),
        BLOOM | {"num_heads": 6},
        families.of_bloom,
        "BLOOM: embedding_norm=true, position=alibi, use_bias=true",
    ),
    "mpt": (
        lambda: mpt(H),
        MPT,
        families.of_mpt,
        "MPT: position=alibi, norm=layernorm, use_bias=false",
    ),
    "mpt, 12 heads": (
        lambda: mpt(12, softmax_scale=0.3),
        MPT | {"num_heads": 12, "score_scale": 0.3},
        families.of_mpt,
        "MPT: position=alibi, norm=layernorm, use_bias=false",
    ),
    "qwen3_next": (
        lambda: transformers.Qwen3NextConfig(
            **SIZES, mlp_only_layers=list(range(L)),
            layer_types=["linear_attention"] * 3 + ["full_attention"],
            linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=6,
            linear_value_head_dim=10, linear_conv_kernel_dim=4,
            rope_parameters={
                "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
            },
        ),
        {
            "norm": "zero_centered_rmsnorm", "qk_norm": "zero_centered_rms", "output_gate": True,
            "rope_fraction": 0.5,
            "pattern": (
                "mixer=gated_delta, position=none, num_heads=4, num_key_heads=2, head_width=6, "
                "value_width=10, short_convolution=4, output_norm_gain=true",
            ) * 3 + ("mixer=softmax",),
        },
        families.of_qwen3_next,
        "Qwen3-Next: output_gate=true, output_norm_gain=true, pattern of mixer=gated_delta and "
        "mixer=softmax",
    ),
    "mamba2": (lambda: mamba2(1), MAMBA2, families.of_mamba2, "Mamba-2: mixer=state_space"),
    "mamba2, grouped": (
        lambda: mamba2(2),
        MAMBA2 | {"state_groups": 2},
        families.of_mamba2,
        "Mamba-2: mixer=state_space, state_groups=2",
    ),
}  # fmt: skip
"""{family: (a function that returns its config, our options, our names, the name of its row)}."""


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_gradients_and_decoding(family):
    """Logits, the gradients of all parameters, and logits decoded in chunks."""
    config, own, by_our_names, row = FAMILIES[family]
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config()).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    # The first few may be those that pad, whose embeddings have no gradient there.
    tokens = np.random.default_rng(0).integers(4, V, (B, T))
    expected = theirs(torch.tensor(tokens)).logits

    options = OURS | own
    model = make_model(small.recall(**{f"model__{k}": v for k, v in options.items()}).model, V, 32)

    def as_ours():
        layers, rest = by_our_names(theirs, options["head_width"] or M // options["num_heads"])
        return rest | {"layers": families.stacked(layers, len(own.get("pattern", (1,))))}

    params = as_ours()
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    assert jax.tree.map(lambda a: a.shape, params) == jax.tree.map(lambda a: a.shape, shapes)

    def logits(params, tokens, state=None):
        return model.apply({"params": params}, tokens, state)

    found, pull = jax.vjp(lambda p: jax.jit(logits)(p, tokens)[0], params)
    assert jnp.abs(found).max() > 1
    row = row, of(transformers, type(theirs).__name__)
    compare(*row, outputs=(found, expected))

    out_gradient = torch.randn(B, T, V)
    expected.backward(out_gradient)
    (gradient,) = pull(families.array(out_gradient))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    pairs = jax.tree.map(lambda *both: both, gradient, as_ours())
    gradients = {
        jax.tree_util.keystr(path, simple=True, separator="/"): pair
        for path, pair in jax.tree_util.tree_leaves_with_path(
            pairs, is_leaf=lambda x: isinstance(x, tuple)
        )
        # A softmax ignores what a bias of the keys adds to all scores, unless they are rotated.
        if getattr(path[-1], "key", "") != "key_bias"
    }
    compare(*row, gradients=gradients, tolerance=3e-5)

    state, decoded = init_state(model.config, B, T), []
    for start, stop in ((0, 1), (1, 2), (2, 9), (9, T)):
        y, state = jax.jit(logits)(params, tokens[:, start:stop], state)
        decoded.append(y)
    compare(*row, decoded=(jnp.concatenate(decoded, 1), expected))
