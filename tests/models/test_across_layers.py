"""Layers that use the values or keys of earlier ones, written a second time in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.interpret.capture import record, stacked
from research.models.transformer import init_state
from tests.models.test_decoder import VOCAB, decoder, parameters, some_tokens
from tests.models.test_decoder_torch import select
from tests.parity import compare, paper

MODEL = {"num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "position": "none"}
OWN, SHARED = "mask=causal", "mask=causal, share_kv=true"
CASES = {
    "half": {"value_residual": "half"},
    "learned": {"value_residual": "learned", "pattern": (OWN, "mask=window, window=4")},
    "pairs": {"pattern": (OWN, SHARED)},
    "one cache": {"pattern": ("mask=window, window=4", OWN, SHARED, SHARED)},
    "both": {"value_residual": "half", "pattern": (OWN, "value_residual=none, share_kv=true")},
}
NAMES = {
    "half": "value_residual=half",
    "learned": "value_residual=learned",
    "pairs": "share_kv=true",
    "one cache": "share_kv=true",
    "both": "share_kv=true, value_residual=half",
}


def made(case):
    model = decoder(**MODEL, **CASES[case])
    return model, parameters(model)


def torch_logits(torch, p, tokens, model, case):
    """The decoder of the papers' equations; every layer keeps what later ones may read."""
    functional = torch.nn.functional
    pattern = CASES[case].get("pattern", (OWN,))
    heads, kv_heads = MODEL["num_heads"], MODEL["num_kv_heads"]
    c = model.config
    place = torch.arange(tokens.shape[1])
    distance = place[:, None] - place

    def norm(x, weights):
        return functional.rms_norm(x, (c.width,), weights["scale"], c.norm_epsilon)

    x = p["embedding"][tokens]
    first = keys = values = None
    for i in range(MODEL["num_layers"]):
        text = pattern[i % len(pattern)]
        layer = select(torch, p["layers"][str(i % len(pattern))], i // len(pattern))
        mixer, y = layer["mixer"], norm(x, layer["norm1"])
        q = torch.tensordot(y, mixer["query"], dims=1)
        if "share_kv" not in text:
            keys, own = (torch.tensordot(y, mixer[n], dims=1) for n in ("key", "value"))
            first = own if first is None else first
            a, b = mixer.get("value_mix", torch.tensor([0.5, 0.5]))
            mixes = CASES[case].get("value_residual") and i > 0
            values = a * own + b * first if mixes else own
        k, v = (z.repeat_interleave(heads // kv_heads, 2) for z in (keys, values))
        seen = (distance >= 0) & (distance < (4 if "window" in text else len(place)))
        scores = torch.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        x = x + torch.einsum("bhts,bshd,hdm->btm", weights, v, mixer["out"])
        feed = layer["feedforward"]
        y = functional.gelu(norm(x, layer["norm2"]) @ feed["in"])
        x = x + y @ feed["out"]
    return norm(x, p["norm"]) @ p["embedding"].T


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_equal_pytorch(case):
    torch = pytest.importorskip("torch")
    model, params = made(case)
    tokens = some_tokens()
    out_gradient = np.random.default_rng(3).normal(size=(*tokens.shape, VOCAB)).astype("float32")

    def logits(params):
        return model.apply({"params": params}, tokens)[0]

    found, pull = jax.vjp(jax.jit(logits), params)
    copied = jax.tree.map(lambda a: torch.tensor(np.asarray(a), requires_grad=True), params)
    theirs = torch_logits(torch, copied, torch.tensor(np.asarray(tokens)), model, case)
    theirs.backward(torch.tensor(out_gradient))
    gradients = {}
    for (path, mine), leaf in zip(
        jax.tree_util.tree_leaves_with_path(pull(out_gradient)[0]),
        jax.tree.leaves(copied),
        strict=True,
    ):
        where = jax.tree_util.keystr(path)
        assert leaf.grad.abs().max() > 0, f"{where} does not take part"
        gradients[where] = mine, leaf.grad
    row = NAMES[case], paper(NAMES[case], "in PyTorch")
    compare(*row, outputs=(found, theirs))
    compare(*row, gradients=gradients, tolerance=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_decoding_in_chunks_equals_the_whole(case):
    model, params = made(case)
    tokens = some_tokens()
    extend = jax.jit(lambda t, state: model.apply({"params": params}, t, state))
    whole = model.apply({"params": params}, tokens)[0]
    state = init_state(model.config, *tokens.shape)
    for start, stop in ((0, 1), (1, 2), (2, 9), (9, 12)):
        found, state = extend(tokens[:, start:stop], state)
        np.testing.assert_allclose(found, whole[:, start:stop], atol=1e-4)


def test_shared_keys_are_not_cached():
    def state_bytes(*pattern):
        return decoder(**MODEL, pattern=pattern).state_bytes(100)

    whole, halved = state_bytes(OWN, OWN), state_bytes(OWN, SHARED)
    assert halved == whole / 2 + 2 * 4  # and a counter for each of the two layers
    assert state_bytes(OWN, SHARED, SHARED, SHARED) == whole / 4 + 3 * 4


@pytest.mark.parametrize("case", ["half", "one cache"])
def test_recomputed_and_captured(case):
    """Recomputed layers give the same gradients, and captured weights give the outputs."""
    model, params = made(case)
    again = decoder(**MODEL, **CASES[case], remat=True)
    tokens = some_tokens()
    one, other = (
        jax.jit(jax.grad(lambda p, m=m: m.apply({"params": p}, tokens)[0].std()))(params)
        for m in (model, again)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, other)
    recorded = record(model, params, {"inputs": tokens}, ("weights", "gap"))[1]
    assert stacked(recorded, "weights").shape == (4, 2, 4, 12, 12)
    assert stacked(recorded, "gap").max() < 1e-5


def test_segments_stay_apart():
    model, params = made("one cache")
    tokens = some_tokens()
    segments = jnp.asarray(np.repeat([[0, 1]], 6, axis=1) * np.ones((2, 1), int))
    packed = model.apply({"params": params}, tokens, segments=segments)[0]
    alone = model.apply({"params": params}, tokens[:, 6:])[0]
    np.testing.assert_allclose(packed[:, 6:], alone, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"share_kv": True}, "needs an earlier layer of the pattern"),
        ({"pattern": (SHARED, OWN)}, "needs an earlier layer of the pattern"),
        ({"pattern": ("mixer=gated_delta", SHARED)}, "needs an earlier layer"),
        ({"pattern": (OWN, f"{SHARED}, num_kv_heads=1")}, "number of heads, width or rotation"),
        ({"pattern": (OWN, f"{SHARED}, position=rope")}, "number of heads, width or rotation"),
        ({"pattern": ("mask=window, window=3", SHARED)}, "set the same mask"),
        ({"pattern": (OWN, f"{SHARED}, forget_gate=true")}, "share_kv.*looks at tokens"),
        ({"pattern": (OWN, f"{SHARED}, value_residual=half")}, "share_kv.*no values"),
        (
            {"pattern": ("mixer=gated_delta", "value_residual=half")},
            "the first layer, which must have mixer='softmax'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options, says):
    with pytest.raises(UserError, match=says):
        decoder(**MODEL, **options)
