"""What Mamba-3 adds to Mamba-2, from the paper's equations with complex numbers in PyTorch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.mixers.linear.state_space import StateSpace
from research.attention.mixers.mixer import state_bytes
from research.attention.spec import mixer_spec
from research.options import OptionError
from tests.attention.in_torch import equals_torch, in_every_form

B, T, M, H, D, N = 2, 11, 6, 2, 4, 6
SIZES = {"width": M, "num_heads": H, "head_width": D, "state_width": N}
OPTIONS = ("trapezoidal", "rotating", "biased_state")


def published(torch, p, x, options):
    """The output of the layer, token by token and head by head, with a complex state."""
    functional = torch.nn.functional

    def state_vector(token, name, h):
        y = token @ p[name][:, 0]
        if "biased_state" in options:
            y = y / (y.square().mean() + 1e-5).sqrt() * p[f"{name}_scale"]
            y = y + p[f"state_{name}_bias"][h]
        return torch.complex(y[: N // 2], y[N // 2 :])

    rows = []
    for row in x:
        state = torch.zeros(H, N // 2, D, dtype=torch.complex128)
        before = torch.zeros(H, N // 2, D, dtype=torch.complex128)
        for token in row:
            heads, inputs = [], []
            for h in range(H):
                value, gate = token @ p["value"][:, h], token @ p["gate"][:, h]
                step = functional.softplus(token @ p["step"][:, h] + p["step_bias"][h])
                decay = torch.exp(-step * p["log_rate"][h].exp()).to(torch.complex128)
                if "rotating" in options:
                    decay = decay * torch.exp(-1j * step * (token @ p["angle"]))[:, None]
                share = torch.ones((), dtype=torch.float64)
                if "trapezoidal" in options:
                    share = torch.sigmoid(token @ p["present"][:, h])
                put = state_vector(token, "key", h)[:, None] * value
                old = decay * (state[h] + (1 - share) * step * before[h])
                inputs.append((old + share * step * put, put))
                read = state_vector(token, "query", h).conj() @ inputs[-1][0]
                heads.append((read.real + p["skip"][h] * value) * functional.silu(gate))
            state, before = (torch.stack(both) for both in zip(*inputs, strict=True))
            y = torch.stack(heads)
            y = y / (y.square().mean() + 1e-6).sqrt()
            rows.append(torch.einsum("hd,hdm->m", y, p["out"]))
    return torch.stack(rows).reshape(x.shape)


@pytest.mark.parametrize("options", [("trapezoidal",), ("rotating",), OPTIONS], ids=",".join)
def test_it_is_the_paper_in_torch(options):
    """In float32 against float64, outputs and gradients of every parameter and of the input."""
    torch = pytest.importorskip("torch")
    equals_torch(
        ", ".join(("state_space", *(f"{name}=true" for name in options))),
        in_every_form(StateSpace, SIZES | dict.fromkeys(options, True)),
        lambda p, x: published(torch, p, x, options),
        (B, T, M),
        {"xla_backend_optimization_level": 0},
        "Lahoti et al. 2026 (Mamba-3), section 3",
    )


def test_state_has_the_last_input_and_the_angles():
    sizes = {"width": M, "num_heads": H, "head_width": D, "max_length": 64, "feature_width": N}
    spec = mixer_spec(mixer="state_space", **sizes, **dict.fromkeys(OPTIONS, True))
    assert state_bytes(spec.make(), 1, 64, "float32") == 4 * H * (N * D + N + D + N // 2)


def test_angles_stay_exact_in_long_sequences():
    """That of ten thousand tokens, one by one, is their sum in float64 but for whole turns."""
    mixer = StateSpace(**SIZES, rotating=True)
    params = {name: jnp.zeros(p.shape) for name, p in mixer.parameters().items()}
    params["angle"] += 0.1
    tokens, state = jnp.ones((10_000, 1, 1, M)), mixer.init_state(1, 1, "float32")

    @jax.jit
    def run(state):
        return jax.lax.scan(lambda state, x: mixer.extend(params, state, x), state, tokens)[0]

    # Every step is softplus(0) = log 2, and every rate 0.1 M.
    exact = 10_000 * math.log(2) * float(np.float32(0.1)) * M
    apart = np.float64(run(state)["angle"]) - exact
    assert np.abs(np.sin(apart / 2)).max() < 2e-3


def test_an_odd_state_cannot_turn():
    with pytest.raises(OptionError, match="turns channels of the state in pairs"):
        mixer_spec(width=6, num_heads=2, max_length=8, mixer="state_space", rotating=True).make()
