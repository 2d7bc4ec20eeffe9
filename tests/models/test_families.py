"""Whole decoders against the transformers library's, of random weights: logits and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.registry import make_model
from research.models.transformer import init_state
from tests import small
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
ALTERNATING = (f"mask=window, window={WINDOW}", "mask=causal")
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
    ),
    "llama": (lambda: transformers.LlamaConfig(**SIZES, rms_norm_eps=1e-6), {}),
    "mistral": (
        lambda: transformers.MistralConfig(**SIZES, rms_norm_eps=1e-6, sliding_window=WINDOW),
        {"mask": "window", "window": WINDOW, "rope_base": 10000.0},
    ),
    "qwen2": (lambda: transformers.Qwen2Config(**SIZES), {"qkv_bias": True}),
    "qwen3": (lambda: transformers.Qwen3Config(**SIZES), {"qk_norm": "rms"}),
    "gemma2": (
        lambda: transformers.Gemma2Config(
            **SIZES, sliding_window=WINDOW, query_pre_attn_scalar=D,
            attn_logit_softcapping=2.0, final_logit_softcapping=3.0,
            hidden_activation="gelu_pytorch_tanh",
        ),
        {
            "norm_placement": "sandwich", "activation": "geglu", "softcap": 2.0,
            "output_cap": 3.0, "pattern": ALTERNATING,
        },
    ),
}  # fmt: skip

NAMES = {
    "gpt2": "GPT-2: position=learned, use_bias=true",
    "llama": "Llama: position=rope, num_kv_heads=2",
    "mistral": f"Mistral: mask=window, window={WINDOW}",
    "qwen2": "Qwen2: qkv_bias=true",
    "qwen3": "Qwen3: qk_norm=rms",
    "gemma2": "Gemma 2: norm_placement=sandwich, activation=geglu, softcap=2.0, output_cap=3.0",
}


def array(tensor):
    return jnp.asarray(tensor.detach().numpy())


def of_gpt2(model):
    """A GPT-2's parameters by our names, without the leading axis of the layers' scan."""
    body, layers = model.transformer, []
    for block in body.h:
        split = array(block.attn.c_attn.weight).reshape(M, 3, H, D)
        biases = array(block.attn.c_attn.bias).reshape(3, H, D)
        mixer = {n: split[:, i] for i, n in enumerate(("query", "key", "value"))}
        mixer |= {f"{n}_bias": biases[i] for i, n in enumerate(("query", "key", "value"))}
        mixer["out"] = array(block.attn.c_proj.weight).reshape(H, D, M)
        mixer["out_bias"] = array(block.attn.c_proj.bias)
        feed = {
            "in": array(block.mlp.c_fc.weight),
            "in_bias": array(block.mlp.c_fc.bias),
            "out": array(block.mlp.c_proj.weight),
            "out_bias": array(block.mlp.c_proj.bias),
        }
        norms = {"norm1": block.ln_1, "norm2": block.ln_2}
        layers.append({"mixer": mixer, "feedforward": feed} | {
            n: {"scale": array(one.weight), "bias": array(one.bias)} for n, one in norms.items()
        })  # fmt: skip
    return layers, {
        "embedding": array(body.wte.weight),
        "position": array(body.wpe.weight),
        "norm": {"scale": array(body.ln_f.weight), "bias": array(body.ln_f.bias)},
    }


def of_llama(model, family):
    """The parameters of a Llama or of one of its kin by our names."""
    # Gemma's norms multiply by one more than their parameter, its embeddings by sqrt(M).
    more = 1.0 if family == "gemma2" else 0.0
    norms = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
    if family == "gemma2":
        norms |= {
            "norm1_out": "post_attention_layernorm",
            "norm2": "pre_feedforward_layernorm",
            "norm2_out": "post_feedforward_layernorm",
        }

    def scale(norm):
        return {"scale": array(norm.weight) + more}

    layers = []
    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        mixer = {"out": array(attention.o_proj.weight).T.reshape(H, D, M)}
        for name in ("query", "key", "value"):
            one = getattr(attention, f"{name[0]}_proj")
            mixer[name] = array(one.weight).T.reshape(M, -1, D)
            if one.bias is not None:
                mixer[f"{name}_bias"] = array(one.bias).reshape(-1, D)
        if family == "qwen3":
            mixer["query_scale"] = array(attention.q_norm.weight)
            mixer["key_scale"] = array(attention.k_norm.weight)
        feed = {"in": mlp.gate_proj, "gate": mlp.up_proj, "out": mlp.down_proj}
        layers.append(
            {
                "mixer": mixer,
                "feedforward": {n: array(one.weight).T for n, one in feed.items()},
                **{n: scale(getattr(block, theirs)) for n, theirs in norms.items()},
            }
        )
    factor = M**0.5 if family == "gemma2" else 1.0
    return layers, {
        "embedding": array(model.model.embed_tokens.weight) * factor,
        "head": array(model.lm_head.weight).T,
        "norm": scale(model.model.norm),
    }


def as_ours(model, family, slots):
    layers, rest = of_gpt2(model) if family == "gpt2" else of_llama(model, family)
    stacks = {
        str(slot): jax.tree.map(lambda *a: jnp.stack(a), *layers[slot::slots])
        for slot in range(slots)
    }
    return rest | {"layers": stacks}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_gradients_and_decoding(family):
    """Logits, the gradient of the input embeddings, and logits decoded in chunks."""
    config, own = FAMILIES[family]
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config()).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    tokens = np.random.default_rng(0).integers(0, V, (B, T))
    embedded = theirs.get_input_embeddings()(torch.tensor(tokens)).detach().requires_grad_()
    expected = theirs(inputs_embeds=embedded).logits
    out_gradient = torch.randn(B, T, V)
    expected.backward(out_gradient)

    options = {f"model__{k}": v for k, v in (OURS | own).items()}
    model = make_model(small.recall(**options).model, V, 32)
    params = as_ours(theirs, family, len(own.get("pattern", (1,))))
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    assert jax.tree.map(lambda a: a.shape, params) == jax.tree.map(lambda a: a.shape, shapes)

    def logits(params, tokens, state=None):
        return model.apply({"params": params}, tokens, state)

    found, pull = jax.vjp(lambda p: jax.jit(logits)(p, tokens)[0], params)
    assert jnp.abs(found).max() > 1
    row = NAMES[family], of(transformers, type(theirs).__name__)
    compare(*row, outputs=(found, expected))

    # Of a table, the gradient is the sum over where each token stands; a tied one is the head too.
    (gradient,) = pull(array(out_gradient))
    if family != "gpt2":
        scattered = np.zeros((V, M), np.float32)
        np.add.at(scattered, tokens, embedded.grad.numpy())
        gradients = {"embedding": (gradient["embedding"], scattered)}
        compare(*row, gradients=gradients, tolerance=2e-5)

    state, decoded = init_state(model.config, B, T), []
    for start, stop in ((0, 1), (1, 2), (2, 9), (9, T)):
        y, state = jax.jit(logits)(params, tokens[:, start:stop], state)
        decoded.append(y)
    compare(*row, decoded=(jnp.concatenate(decoded, 1), expected))
