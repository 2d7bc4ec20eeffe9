"""Values wider than keys, as in the papers that have them: layers in PyTorch float64."""

import re

import pytest

from research.attention.mixers.linear.gated import GatedLinearAttention, Retention
from research.attention.registry import MIXERS
from research.attention.spec import make_mixer
from research.options import OptionError, declarations
from tests.attention.in_torch import B, T, equals_torch, in_every_form

torch = pytest.importorskip("torch")

M, H = 12, 2


def heads(p, name, x):
    return torch.einsum("btm,mhd->bthd", x, p[name])


def read_out(p, x, y):
    """Group norm without a scale, swish gate and output projection."""
    y = torch.nn.functional.layer_norm(y, y.shape[-1:], eps=1e-6)
    return torch.einsum(
        "bthd,hdm->btm", y * torch.nn.functional.silu(heads(p, "gate", x)), p["out"]
    )


def retention(p, x):
    """RetNet, equation 5: (Q K^T * D) V with q e^(i n theta) and k e^(-i m theta)."""
    q, k, v = (heads(p, name, x) for name in ("query", "key", "value"))
    half, length = q.shape[-1] // 2, x.shape[1]
    index = torch.arange(length, dtype=torch.float64)
    theta = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    turn = torch.polar(torch.ones(length, half, dtype=torch.float64), index[:, None] * theta)
    q, k = (torch.complex(a[..., :half], a[..., half:]) * turn[:, None] for a in (q, k))
    scores = torch.einsum("bthd,bshd->bhts", q, k.conj()).real / (2 * half) ** 0.5
    gamma = 1 - 2.0 ** (-5 - torch.arange(H, dtype=torch.float64))
    back = index[:, None] - index
    decays = torch.where(back >= 0, gamma[:, None, None] ** back.clamp(min=0), 0)
    return read_out(p, x, torch.einsum("bhts,bshd->bthd", scores * decays, v))


def gated_linear(p, x):
    """GLA, equation 3: S_t = (alpha_t^T 1) * S_{t-1} + k_t^T v_t, alpha of section 4.4."""
    q, k, v = (heads(p, name, x) for name in ("query", "key", "value"))
    low = torch.einsum("btr,rhd->bthd", x @ p["decay_in"], p["decay_out"]) + p["decay_bias"]
    alpha = torch.sigmoid(low) ** (1 / 16)
    state, out = torch.zeros(len(x), H, k.shape[-1], v.shape[-1], dtype=torch.float64), []
    for t in range(x.shape[1]):
        state = alpha[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        out.append(torch.einsum("bhd,bhde->bhe", q[:, t] / k.shape[-1] ** 0.5, state))
    return read_out(p, x, torch.stack(out, 1))


LAYERS = {
    # All heads together: keys M and values 2 M wide; keys M / 2 and values M wide.
    "retention": (Retention, {"head_width": M // H, "value_width": 2 * M // H}, retention),
    "gated_linear": (
        GatedLinearAttention,
        {"head_width": M // 2 // H, "value_width": M // H},
        gated_linear,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_form_is_the_paper_in_torch_at_its_widths(name):
    cls, widths, published = LAYERS[name]
    forms = in_every_form(cls, {"width": M, "num_heads": H, **widths})
    equals_torch(name, forms, published, (B, T, M))


WIDE = [name for name, entry in MIXERS.items() if "value_width" in declarations(entry)]


@pytest.mark.parametrize("name", WIDE)
def test_a_width_that_is_that_of_keys_changes_nothing(name):
    made = {
        width: make_mixer(mixer=name, width=M, num_heads=H, max_length=8, value_width=width)
        for width in (0, M // H, 10)
    }
    assert made[0].parameters() == made[M // H].parameters() != made[10].parameters()
    # Heads, keys, values.
    assert made[10].init_state(1, 8, "float32")["memory"].shape == (1, H, M // H, 10)
    out = made[10].parameters()["out"]
    assert out.shape == (H, 10, M)
    wider = make_mixer(
        mixer=name, width=M, num_heads=H, max_length=8, value_width=10, init_stddev=0.0
    )
    assert wider.parameters()["out"].init.stddev == pytest.approx((H * 10) ** -0.5 / 2**0.5)


@pytest.mark.parametrize("name", ["retention", "gated_linear"])
def test_heads_of_one_value_are_refused(name):
    message = f"value_width = 1: {name} normalizes each head; make it 2 or more"
    with pytest.raises(OptionError, match=re.escape(message)):
        make_mixer(mixer=name, width=M, num_heads=H, max_length=8, value_width=1)
    # A single key is no less than one.
    if name == "gated_linear":
        make_mixer(mixer=name, width=M, num_heads=H, max_length=8, value_width=2, head_width=1)
