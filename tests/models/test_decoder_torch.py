"""The decoder and its gradients against PyTorch's, written from the papers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small
from tests.models.test_decoder import VOCAB, decoder, parameters, some_tokens
from tests.parity import compare, of


def torch_logits(torch, p, tokens, model):
    """A decoder in PyTorch, written from the papers: nanoGPT's, or the one of LLaMA."""
    functional = torch.nn.functional
    heads, kv_heads = model["num_heads"], model["num_kv_heads"] or model["num_heads"]
    size, epsilon = model["width"] // heads, model["norm_epsilon"]

    def norm(x, weights):
        if model["norm"] == "layernorm":
            shape = (x.shape[-1],)
            return functional.layer_norm(x, shape, weights["scale"], weights.get("bias"), epsilon)
        return functional.rms_norm(x, (x.shape[-1],), weights["scale"], epsilon)

    def rotated(x):
        """Complex numbers instead of sines and cosines; x is (B, T, H, D)."""
        angle = torch.arange(x.shape[1])[:, None] * 10000.0 ** (
            -torch.arange(0, size, 2).double() / size
        )
        turn = torch.polar(torch.ones_like(angle), angle)[:, None]
        left, right = x.double().chunk(2, -1)
        turned = torch.complex(left, right) * turn
        return torch.cat([turned.real, turned.imag], -1).to(x.dtype)

    def linear(x, weights, name):
        y = torch.tensordot(x, weights[name], dims=1)
        return y + weights[f"{name}_bias"] if f"{name}_bias" in weights else y

    x = p["embedding"][tokens]
    if model["position"] == "learned":
        x = x + p["position"][: tokens.shape[1]]
    place, canon = model["norm_placement"], model["canon"]

    def filtered(x, layer, point):
        """x plus the convolution with four taps, newest input first, by torch.conv1d."""
        if point not in canon.replace("none", ""):
            return x
        if point == "d":
            taps = layer["feedforward"]["canon_d"]["hidden_taps"]
        else:
            taps = layer[f"canon_{point}"]["taps"]
        past = functional.pad(x.transpose(1, 2), (len(taps) - 1, 0))
        y = functional.conv1d(past, taps.flip(0).T[:, None], groups=taps.shape[1])
        return x + y.transpose(1, 2)

    def before(x, name):
        return norm(x, layer[name]) if place in ("pre", "sandwich") else x

    def added(x, y, name):
        if place == "post":
            return norm(x + y, layer[name])
        if place == "pre":
            return x + y
        return x + norm(y, layer[name if place == "output" else f"{name}_out"])

    for i in range(model["num_layers"]):
        layer = select(torch, p["layers"]["0"], i)
        y = filtered(before(x, "norm1"), layer, "a")
        q, k, v = (linear(y, layer["mixer"], name) for name in ("query", "key", "value"))
        if model["position"] == "rope":
            q, k = rotated(q), rotated(k)
        k, v = (a.repeat_interleave(heads // kv_heads, 2) for a in (k, v))
        y = functional.scaled_dot_product_attention(
            *(a.transpose(1, 2) for a in (q, k, v)), is_causal=True
        ).transpose(1, 2)
        y = torch.tensordot(y, layer["mixer"]["out"], dims=2)
        x = added(x, y + layer["mixer"].get("out_bias", 0.0), "norm1")
        y = filtered(before(x, "norm2"), layer, "c")
        feed = layer["feedforward"]
        names = ["in", "gate"] if model["activation"] in ("swiglu", "geglu") else ["in"]
        opened = torch.cat([linear(y, feed, name) for name in names], -1)
        y, *gate = filtered(opened, layer, "d").chunk(len(names), -1)
        y = {
            "swiglu": functional.silu,
            "geglu": functools.partial(functional.gelu, approximate="tanh"),
            "gelu": functional.gelu,
        }[model["activation"]](y)
        y = y * gate[0] if gate else y
        x = added(x, linear(y, feed, "out"), "norm2")
    x = x if place == "post" else norm(x, p["norm"])
    return x @ p["embedding"].T if model["tie_embeddings"] else linear(x, p, "head")


def select(torch, tree, i):
    return {k: v[i] if torch.is_tensor(v) else select(torch, v, i) for k, v in tree.items()}


NANOGPT = {"norm": "layernorm", "position": "learned", "activation": "gelu"}
LLAMA = {"norm": "rmsnorm", "position": "rope", "activation": "swiglu", "tie_embeddings": False}
PEERS = {
    "nanogpt": NANOGPT,
    "nanogpt with biases": NANOGPT | {"use_bias": True},
    "llama": LLAMA,
    # So large that it shows.
    "norms after the sum": NANOGPT | {"norm_placement": "post"},
    "norms around, gated": LLAMA | {"norm_placement": "sandwich", "activation": "geglu"},
    "norms of outputs": LLAMA | {"norm_placement": "output"},
    "canon layers": LLAMA | {"canon": "acd"},
    "a canon layer": NANOGPT | {"canon": "d"},
    "llama with grouped heads": LLAMA | {"num_heads": 4, "num_kv_heads": 2, "norm_epsilon": 0.1},
}


def described(name):
    """nanoGPT or Llama, and what is changed of it."""
    title, base = ("nanoGPT", NANOGPT) if "learned" in PEERS[name].values() else ("Llama", LLAMA)
    changed = [f"{k}={v}".lower() for k, v in PEERS[name].items() if base.get(k) != v]
    return f"{title}: {', '.join(changed)}" if changed else title


# Each is one of the others without something.
LESS = {"nanogpt", "llama", "norms of outputs", "a canon layer"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in LESS else ()) for n in PEERS]
)
def test_logits_and_gradients_equal_pytorch(name):
    torch = pytest.importorskip("torch")
    model = decoder(**PEERS[name])
    config = small.recall(**{f"model__{k}": v for k, v in PEERS[name].items()}).model.to_dict()
    params, tokens = parameters(model), some_tokens()
    targets = np.random.default_rng(2).integers(0, VOCAB, tokens.shape)

    def loss(params):
        logits = model.apply({"params": params}, tokens)[0]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)
        return -chosen.mean(), logits

    (ours, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    copied = jax.tree.map(lambda a: torch.tensor(np.asarray(a), requires_grad=True), params)
    theirs = torch_logits(torch, copied, torch.tensor(np.asarray(tokens)), config)
    cross_entropy = torch.nn.functional.cross_entropy(
        theirs.flatten(0, 1), torch.tensor(targets).flatten()
    )
    cross_entropy.backward()
    np.testing.assert_allclose(ours, cross_entropy.item(), rtol=1e-5)
    gradients = {}
    for (path, mine), (_, leaf) in zip(
        jax.tree_util.tree_leaves_with_path(gradient),
        jax.tree_util.tree_leaves_with_path(copied),
        strict=True,
    ):
        where = jax.tree_util.keystr(path)
        scale = leaf.grad.abs().max().item()
        if "key_bias" in where and config["position"] != "rope":
            assert scale < 1e-6  # softmax does not see a shift of all keys
            continue
        assert scale > 1e-5, f"{where} does not take part"
        gradients[where] = mine, leaf.grad
    row = described(name), of(torch, "the papers' equations")
    compare(*row, outputs=(logits, theirs))
    compare(*row, gradients=gradients, tolerance=2e-5)
