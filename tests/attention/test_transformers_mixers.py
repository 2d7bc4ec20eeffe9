"""Parity of whole mixers with the transformers library's, of random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.mixers.differential import LAMBDA, DifferentialAttention, HalvesRotary
from research.attention.mixers.linear.delta import GatedDeltaNet
from research.attention.mixers.linear.kimi_delta import KimiDelta
from research.attention.mixers.linear.linear_time import NORM_EPSILON
from research.attention.spec import make_mixer
from tests.parity import compare, of

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

B, T, M, H, K, D, N = 2, 21, 32, 4, 2, 16, 6


def array(tensor):
    return jnp.asarray(tensor.detach().numpy())


def check(mechanism, ours, theirs, as_ours, *others, tolerance=1e-5):
    """Outputs, gradients of every parameter and of the input, and outputs token by token.

    `as_ours` makes of a function of parameters of theirs those by our names and in our layout.
    """
    x, out_gradient = torch.randn(B, T, M, requires_grad=True), torch.randn(B, T, M)
    expected = theirs(x, *others)
    expected = expected[0] if isinstance(expected, tuple) else expected
    expected.backward(out_gradient)
    params, inputs = as_ours(lambda p: p), array(x)
    found, pull = jax.vjp(ours, params, inputs)
    of_params, of_inputs = pull(array(out_gradient))
    gradients = {name: (of_params[name], one) for name, one in as_ours(lambda p: p.grad).items()}
    gradients["x"] = of_inputs, x.grad
    shapes = {name: p.shape for name, p in ours.parameters().items()}
    assert {name: a.shape for name, a in params.items()} == shapes
    state, pieces, extend = ours.init_state(B, T, "float32"), [], jax.jit(ours.extend)
    for t in range(T):
        state, y = extend(params, state, inputs[:, t : t + 1])
        pieces.append(y)
    compare(
        mechanism,
        of(transformers, type(theirs).__name__),
        outputs=(found, expected),
        gradients=gradients,
        decoded=(jnp.concatenate(pieces, 1), expected),
        tolerance=tolerance,
    )


def test_differential_attention_of_diffllama():
    """Their two halves of the heads are the two halves of each of our heads."""
    from transformers.models.diffllama import modeling_diffllama as diffllama

    torch.manual_seed(0)
    made = transformers.DiffLlamaConfig(
        hidden_size=M,
        num_attention_heads=2 * H,
        num_key_value_heads=2 * K,
        head_dim=D // 2,
        rms_norm_eps=1e-5,
        attn_implementation="eager",
    )
    theirs = diffllama.DiffLlamaAttention(made, 0)
    theirs.lambda_init = LAMBDA
    lambdas = theirs.lambda_q1, theirs.lambda_k1, theirs.lambda_q2, theirs.lambda_k2
    for one in lambdas:
        torch.nn.init.normal_(one, std=0.4)

    def as_ours(value):
        found = {"out": array(value(theirs.o_proj.weight)).T.reshape(H, D, M)}
        for name, heads in (("query", H), ("key", K), ("value", K)):
            weight = array(value(getattr(theirs, f"{name[0]}_proj").weight))
            halves = weight.reshape(2, heads, D // 2, M)
            found[name] = halves.transpose(3, 1, 0, 2).reshape(M, heads, D)
        return found | {"lambda": jnp.stack([array(value(one)) for one in lambdas])}

    gain = {"norm_scale": jnp.ones(D)}  # theirs has none

    class Gained(DifferentialAttention):
        """With the gains at one."""

        def parameters(self):
            return {k: p for k, p in super().parameters().items() if k not in gain}

        def merge(self, params, x, head_outputs):
            return super().merge(params | gain, x, head_outputs)

    ours = Gained(M, H, K, D, rotary=HalvesRotary())
    angles = diffllama.DiffLlamaRotaryEmbedding(made)(torch.zeros(B, T, M), torch.arange(T)[None])
    forbidden = torch.full((T, T), float("-inf")).triu(1)[None, None]
    # That of lambda is what is left of larger terms of both signs.
    row, bound = "mixer=differential, position=rope", 3e-5
    check(row, ours, theirs, as_ours, angles, forbidden, tolerance=bound)


@pytest.mark.parametrize("biased", [False, True], ids=["", "as published"])
def test_state_space_of_mamba2(biased):
    from transformers.models.mamba2 import modeling_mamba2 as mamba2

    torch.manual_seed(0)
    made = transformers.Mamba2Config(
        hidden_size=M,
        num_hidden_layers=1,
        num_heads=H,
        head_dim=D,
        expand=H * D // M,
        state_size=N,
        n_groups=1,
        use_conv_bias=biased,
        layer_norm_epsilon=NORM_EPSILON,
        chunk_size=8,
    )
    theirs = mamba2.Mamba2Mixer(made, 0)
    for one in (theirs.dt_bias, theirs.A_log, theirs.D, theirs.conv1d.bias):
        if one is not None:
            torch.nn.init.normal_(one)
    ends = np.cumsum([H * D, H * D, N, N])

    def as_ours(value):
        inward = jnp.split(array(value(theirs.in_proj.weight)).T, ends, axis=1)
        # Theirs has the oldest input first.
        taps = jnp.split(array(value(theirs.conv1d.weight))[:, 0, ::-1].T, ends[1:3] - H * D, 1)
        found = {f"{name}_taps": a for name, a in zip(("value", "key", "query"), taps, strict=True)}
        if biased:
            biases = jnp.split(array(value(theirs.conv1d.bias)), ends[1:3] - H * D)
            found |= {
                f"{n}_taps_bias": a for n, a in zip(("value", "key", "query"), biases, strict=True)
            }
        for name, a in zip(("gate", "value", "key", "query"), inward, strict=False):
            found[name] = a.reshape(M, -1, D if name in ("gate", "value") else N)
        return found | {
            "step": inward[-1],
            "step_bias": array(value(theirs.dt_bias)),
            "log_rate": array(value(theirs.A_log)),
            "skip": array(value(theirs.D)),
            "out": array(value(theirs.out_proj.weight)).T.reshape(H, D, M),
        }

    options = {"width": M, "num_heads": H, "head_width": D, "feature_width": N, "max_length": T}
    options |= {"short_convolution": 4, "convolution_bias": biased, "block_size": 8}
    ours = make_mixer(mixer="state_space", **options)
    check(f"mixer=state_space{', convolution_bias=true' * biased}", ours, theirs, as_ours)


@pytest.mark.parametrize(
    ("size", "values"), [(1.0, D), (1e-3, D), (1.0, 2 * D)], ids=["ordinary", "small", "wide"]
)
def test_gated_delta_of_qwen3_next(size, values):
    """Outputs and gradients, also where values are so small that the norm's epsilon shows."""
    from transformers.models.qwen3_next import modeling_qwen3_next as qwen

    torch.manual_seed(0)
    made = transformers.Qwen3NextConfig(
        hidden_size=M,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_num_value_heads=H,
        linear_num_key_heads=H,
        linear_key_head_dim=D,
        linear_value_head_dim=values,
        linear_conv_kernel_dim=4,
        rms_norm_eps=NORM_EPSILON,
    )
    theirs = qwen.Qwen3NextGatedDeltaNet(made, 0)
    ends = np.cumsum([D, D, values])
    with torch.no_grad():
        # Queries, keys, values and gates lie one after the other within each head.
        theirs.in_proj_qkvz.weight.reshape(H, -1, M)[:, ends[1] : ends[2]].mul_(size)
    # As wide as keys, also if nothing is said of it.
    value_width = values if values != D else 0
    ours = GatedDeltaNet(
        width=M, num_heads=H, head_width=D, value_width=value_width, short_convolution=4
    )

    def as_ours(value):
        """What `value` makes of a parameter of theirs, by our names and in our layout."""
        inward = array(value(theirs.in_proj_qkvz.weight)).reshape(H, -1, M).transpose(2, 0, 1)
        inward = jnp.split(inward, ends, axis=2)
        rates = array(value(theirs.in_proj_ba.weight)).reshape(H, 2, M).transpose(1, 2, 0)
        # Theirs has the oldest input first.
        taps = jnp.split(array(value(theirs.conv1d.weight))[:, 0, ::-1].T, H * ends[:2], axis=1)
        found = dict(zip(("query", "key", "value", "gate"), inward, strict=True))
        found |= dict(zip(("beta", "step"), rates, strict=True))
        found |= dict(zip(("query_taps", "key_taps", "value_taps"), taps, strict=True))
        return found | {
            "step_bias": array(value(theirs.dt_bias)),
            "log_rate": array(value(theirs.A_log)),
            "out": array(value(theirs.out_proj.weight)).T.reshape(H, values, M),
        }

    # Sums over tokens of both signs are what is left of larger terms.
    name, bound = ("", 2e-5) if size == 1 else (f", values of size {size}", 1e-3)
    name += f", value_width={values}" if value_width else ""
    check(f"mixer=gated_delta{name}", ours, theirs, as_ours, tolerance=bound)


def test_kimi_delta_of_kimi_linear():
    """Outputs, gradients and decoding, with decays from almost none to all within a token."""
    from transformers.models.kimi_linear import modeling_kimi_linear as kimi

    torch.manual_seed(0)
    made = transformers.KimiLinearConfig(
        hidden_size=M,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_num_heads=H,
        linear_head_dim=D,
        linear_conv_kernel_dim=4,
        rms_norm_eps=NORM_EPSILON,
    )
    theirs = kimi.KimiLinearDeltaAttention(made, 0)
    torch.nn.init.normal_(theirs.forget_gate.dt_bias, std=2.0)
    torch.nn.init.normal_(theirs.forget_gate.A_log)
    ours = KimiDelta(width=M, num_heads=H, head_width=D, short_convolution=4, block_size=8)

    def as_ours(value):
        """What `value` makes of a parameter of theirs, by our names and in our layout."""
        heads = {"query": theirs.q_proj, "key": theirs.k_proj, "value": theirs.v_proj}
        heads |= {"step_out": theirs.forget_gate.f_b_proj, "gate_out": theirs.g_b_proj}
        found = {k: array(value(p.weight)).T.reshape(-1, H, D) for k, p in heads.items()}
        flat = {"step_in": theirs.forget_gate.f_a_proj, "gate_in": theirs.g_a_proj}
        flat |= {"beta": theirs.b_proj}
        found |= {k: array(value(p.weight)).T for k, p in flat.items()}
        # Theirs has the oldest input first.
        taps = array(value(theirs.conv1d.weight))[:, 0, ::-1].reshape(3, H * D, 4)
        found |= {f"{name}_taps": taps[i].T for i, name in enumerate(("query", "key", "value"))}
        return found | {
            "step_bias": array(value(theirs.forget_gate.dt_bias)).reshape(H, D),
            "log_rate": array(value(theirs.forget_gate.A_log)).reshape(H),
            "out": array(value(theirs.o_proj.weight)).T.reshape(H, D, M),
        }

    check("mixer=kimi_delta", ours, theirs, as_ours)
