"""Rotary scalings and relative biases, by loops and by what their papers promise."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.implementations import blockwise, dense
from research.attention.parameters import bind, collect_parameters
from research.attention.parts import masks
from research.attention.parts.mechanism import Mechanism
from research.attention.parts.part_options import Sizes
from research.attention.parts.positions import Rotary, rope
from research.attention.parts.relative_biases import BIAS_POSITIONS, bucket_edges, t5
from research.options import read
from tests.parity import compare, paper

HEADS, T, S = 4, 11, 17
Q_INDEX = np.arange(S - T, S)


def rotated(x, frequencies, positions, scale=1.0):
    """By complex numbers: the first half of the turning channels is real, the second imaginary."""
    pairs = len(frequencies)
    x = np.asarray(x, np.float64)
    z = x[..., :pairs] + 1j * x[..., pairs : 2 * pairs]
    z = z * np.exp(1j * np.outer(positions, frequencies))[:, None]
    return scale * np.concatenate([z.real, z.imag, x[..., 2 * pairs :]], -1)


def dots(q, k):
    return jnp.einsum("bthd,bshd->bhts", q, k)


def vectors(width, length=T):
    shape = (2, length, 3, width)
    return jnp.asarray(np.random.default_rng(width).normal(size=shape), jnp.float32)


def test_partial_rotation_turns_the_first_channels():
    x, positions = vectors(12), np.arange(T) * 3 + 1
    frequencies = [100.0 ** (-i / 3) for i in range(3)]
    y = Rotary(base=100.0, fraction=0.5)(x, positions)
    np.testing.assert_allclose(y, rotated(x, frequencies, positions), atol=2e-5)
    assert np.array_equal(y[..., 6:], x[..., 6:])
    assert np.array_equal(Rotary(base=100.0)(x, positions), rope(x, positions, 100.0))


def test_linear_scaling_is_a_fractional_position():
    """Chen et al. 2023, equation 4: position m becomes m / factor."""
    x, stretched = vectors(8), Rotary(scaling="linear", factor=4.0)
    np.testing.assert_allclose(stretched(x, 4 * np.arange(T)), rope(x, np.arange(T)), atol=1e-5)


def test_ntk_scaling_interpolates_the_slowest_pair_only():
    """Its definition: the lowest frequency is divided by the factor, the highest is not."""
    plain, ntk = Rotary(), Rotary(scaling="ntk", factor=8.0)
    ratio = plain.frequencies(16) / ntk.frequencies(16)
    assert ratio[0] == pytest.approx(1)
    assert ratio[-1] == pytest.approx(8)
    np.testing.assert_allclose(np.diff(np.log(ratio)), math.log(8) / 7)
    assert Rotary(scaling="ntk", factor=8.0).frequencies(2) == pytest.approx([1.0])


def test_yarn_keeps_fast_pairs_and_interpolates_slow_ones():
    """Peng et al. 2023, section 3.2, in terms of the rotations within the original length."""
    rotary = Rotary(scaling="yarn", factor=8.0, original_length=2048)
    plain = Rotary().frequencies(128)
    rotations = 2048 * plain / (2 * math.pi)
    ratio = plain / rotary.frequencies(128)
    # One pair more on both sides, because the ramp starts and ends on whole channels.
    fast, slow = np.flatnonzero(rotations > 32), np.flatnonzero(rotations < 1)
    np.testing.assert_allclose(ratio[fast[:-1]], 1)
    np.testing.assert_allclose(ratio[slow[1:]], 8)
    between = ratio[fast[-1] + 1 : slow[0]]
    assert between.size > 20
    assert (np.diff(between) > 0).all() and 1 < between[0] and between[-1] < 8
    # Linear in the channel, between the frequency and the interpolated one.
    kept = (1 / between - 1 / 8) / (1 - 1 / 8)
    np.testing.assert_allclose(np.diff(kept, 2), 0, atol=1e-12)


def test_llama3_by_its_published_rule():
    """By wavelengths, pair by pair, with the numbers of Llama 3.1."""
    rotary = Rotary(5e5, scaling="llama3", factor=8.0, original_length=8192)
    expected, cases = [], set()
    for pair in range(64):
        frequency = 5e5 ** (-2 * pair / 128)
        length = 2 * math.pi / frequency
        if length < 8192 / 4:
            cases.add("kept")
        elif length > 8192 / 1:
            cases.add("divided")
            frequency /= 8
        else:
            cases.add("between")
            smooth = (8192 / length - 1) / (4 - 1)
            frequency = (1 - smooth) * frequency / 8 + smooth * frequency
        expected.append(frequency)
    assert len(cases) == 3
    np.testing.assert_allclose(rotary.frequencies(128), expected, rtol=1e-12)
    assert rotary.scale == 1.0


def test_yarn_scales_the_scores_by_its_temperature():
    rotary = Rotary(scaling="yarn", factor=16.0, original_length=64, fraction=0.5)
    q, k = vectors(16), vectors(16)[:, ::-1]
    here = np.zeros(T, int)
    found = dots(rotary(q, here), rotary(k, here))
    temperature = (0.1 * math.log(16) + 1) ** 2
    np.testing.assert_allclose(found, temperature * dots(q, k), rtol=1e-4, atol=1e-5)
    x, positions = vectors(16), np.arange(T) + 50
    expected = rotated(x, rotary.frequencies(16), positions, 0.1 * math.log(16) + 1)
    np.testing.assert_allclose(rotary(x, positions), expected, atol=5e-5)


@pytest.mark.parametrize("scaling", ["none", "linear", "ntk", "yarn", "llama3"])
def test_rotary_scores_depend_on_distance_only(scaling):
    rotary = Rotary(1000.0, 0.5, scaling, 1.0 if scaling == "none" else 4.0, 32)
    q, k = vectors(16), vectors(16)[:, ::-1]
    here, there = np.arange(T), np.arange(T) + 23
    expected = dots(rotary(q, here), rotary(k, here))
    np.testing.assert_allclose(dots(rotary(q, there), rotary(k, there)), expected, atol=1e-4)
    assert np.abs(dots(rotary(q, there), rotary(k, here)) - expected).max() > 0.1


def test_rotary_in_other_dtypes_and_compiled():
    rotary = Rotary(scaling="yarn", factor=2.0, original_length=32)
    x = vectors(8).astype(jnp.bfloat16)
    positions = np.arange(T) + 200
    y = jax.jit(rotary)(x, jnp.asarray(positions))
    assert y.dtype == jnp.bfloat16
    expected = rotated(x, rotary.frequencies(8), positions, rotary.scale)
    np.testing.assert_allclose(np.asarray(y, np.float32), expected, rtol=0.01, atol=0.01)
    with jax.enable_x64(True):
        exact = rotary(jnp.asarray(np.asarray(x, np.float64)), positions)
        np.testing.assert_allclose(exact, expected, atol=1e-12)
    assert not jax.tree.leaves(rotary)
    assert hash(rotary) == hash(Rotary(scaling="yarn", factor=2.0, original_length=32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": 1.0}, "base = 1.0"),
        ({"fraction": 0.0}, "fraction = 0.0"),
        ({"fraction": 1.5}, "fraction = 1.5"),
        ({"scaling": "more"}, "scaling = 'more'; it is one of none, linear, ntk, yarn, llama3"),
        ({"scaling": "linear", "factor": 0.5}, "factor = 0.5"),
        ({"scaling": "yarn", "factor": 2.0}, "original_length = 0"),
        ({"scaling": "llama3", "factor": 2.0}, "'llama3' needs the length before scaling"),
        ({"low_freq_factor": 4.0}, "low_freq_factor = 4.0; it must be less than"),
    ],
)
def test_bad_rotary_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Rotary(**options)


def test_rotary_needs_an_even_number_of_channels():
    with pytest.raises(ValueError, match="head width = 10, of which 5 rotate"):
        Rotary(fraction=0.5)(vectors(10), np.arange(T))
    with pytest.raises(ValueError, match="head width = 4, of which 0 rotate"):
        Rotary(fraction=0.1).rotated_width(4)


# The biases.


def bucket_by_logarithm(distance, buckets, farthest):
    """Of the paper's code, for distances of at least 0, in the order it computes."""
    exact = buckets // 2
    if distance < exact:
        return distance
    ratio = math.log(distance / exact) / math.log(farthest / exact)
    # Where the ratio is a whole number in exact arithmetic, floating point must not fall short.
    return min(exact + int(ratio * (buckets - exact) + 1e-9), buckets - 1)


@pytest.mark.parametrize(
    ("buckets", "farthest"), [(32, 128), (16, 128), (8, 20), (9, 30), (2, 5), (32, 17), (64, 4096)]
)
def test_bucket_edges_are_the_logarithms(buckets, farthest):
    edges = bucket_edges(buckets, farthest)
    assert len(edges) == buckets - 1
    for distance in range(2 * farthest):
        bucket = np.searchsorted(edges, distance, side="right")
        assert bucket == bucket_by_logarithm(distance, buckets, farthest)


def built(name, mask, max_length=80, seed=0):
    """A registered bias with random arrays in place of what it learns, and those by name."""
    sizes = Sizes(8 * HEADS, HEADS, HEADS, 8, max_length, bidirectional=mask.prefix_length != 0)
    part = read(BIAS_POSITIONS[name], {"num_buckets": 8, "max_distance": 10}).build(sizes)
    shapes = {k: p.shape for k, p in collect_parameters(part, "bias").items()}
    rng = np.random.default_rng(seed)

    def drawn(shape):
        """Of both signs, and away from zero, so that FIRE's threshold is among the positions."""
        size = rng.uniform(0.5, 1.0, shape) * rng.choice([-1, 1], shape)
        return jnp.asarray(size, jnp.float32)

    return part, {k: drawn(shape) for k, shape in shapes.items()}


def softplus(x):
    return np.log1p(np.exp(x))


def by_loops(name, params, bidirectional):
    """The bias of each head and pair of positions from its equation, in float64."""
    p = {key.removeprefix("bias_"): np.asarray(a, np.float64) for key, a in params.items()}
    slopes = [2.0 ** (-8 * (h + 1) / HEADS) for h in range(HEADS)]
    found = np.zeros((HEADS, T, S))
    for h, t, k in np.ndindex(found.shape):
        q = int(Q_INDEX[t])
        d = abs(q - k)
        if name == "alibi":
            found[h, t, k] = -slopes[h] * d
        elif name == "t5" and bidirectional:
            found[h, t, k] = p["table"][bucket_by_logarithm(d, 4, 10) + 4 * (k > q), h]
        elif name == "t5":
            found[h, t, k] = p["table"][bucket_by_logarithm(max(q - k, 0), 8, 10), h]
        elif name == "kerple":
            r1, r2 = softplus(p["raw_r1"][h]), softplus(p["raw_r2"][h])
            found[h, t, k] = -r1 * np.log(1 + r2 * d)
        else:
            c, limit = abs(p["c"]), abs(p["multiplier"]) * 20
            x = np.log(c * d + 1) / (np.log(c * max(q, k, limit) + 1) + 1e-6)
            units = np.maximum(x * p["hidden"] + p["hidden_bias"], 0)
            found[h, t, k] = units @ p["out"][:, h]
    return found


MASKS = {False: masks.causal(), True: masks.full()}
HEAD = np.arange(HEADS)[:, None, None]


@pytest.mark.parametrize("name", BIAS_POSITIONS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_biases_are_their_equations(name, bidirectional):
    part, params = built(name, MASKS[bidirectional])
    bias = bind(part, "bias", params)
    raw = np.float32(np.random.default_rng(1).normal(size=(2, HEADS, T, S)))
    expected = by_loops(name, params, bidirectional)
    # Positions known while tracing, and then not.
    run = jax.jit(lambda s: bias(s, HEAD, Q_INDEX[:, None], np.arange(S)[None]))
    found = np.asarray(run(raw))
    compare(
        f"position={name}",
        paper(f"position={name}", "loops in NumPy float64"),
        outputs=(found - raw, np.broadcast_to(expected, raw.shape)),
        tolerance=2e-6,
    )
    # Any block of heads, queries and keys.
    block = raw[:, 1:3, 2:7, 3:12], HEAD[1:3], Q_INDEX[2:7, None], np.arange(3, 12)[None]
    part_of = jax.jit(bias.__call__)(*block)
    np.testing.assert_allclose(part_of, found[:, 1:3, 2:7, 3:12], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "bidirectional"),
    [
        # Only T5's are others where keys ahead are seen.
        pytest.param(n, ahead, marks=pytest.mark.slow if ahead and n != "t5" else ())
        for n in BIAS_POSITIONS
        for ahead in (False, True)
    ],
)
def test_blockwise_gives_dense_values_and_gradients(name, bidirectional):
    mask = MASKS[bidirectional]
    part, params = built(name, mask)
    q, k, v = np.float32(np.random.default_rng(2).normal(size=(3, 2, S, HEADS, 8)))

    def run(attend, *arrays, **options):
        def loss(q, k, v, params):
            bias = bind(part, "bias", params)
            out = attend(q, k, v, Mechanism(mask=mask, biases=(bias,)), q_index=Q_INDEX, **options)
            return jnp.sum(out * jnp.cos(jnp.arange(out.size)).reshape(out.shape))

        return jax.value_and_grad(loss, (0, 1, 3))(*arrays)

    @jax.jit
    def both(*arrays):
        return run(blockwise.attend, *arrays, block_size=5), run(dense.attend, *arrays)

    found, expected = both(q[:, -T:], k, v, params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, atol=1e-4 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("name", BIAS_POSITIONS)
def test_biases_over_a_population(name):
    part, first = built(name, masks.causal())
    if not first:
        return
    members = [first, built(name, masks.causal(), seed=1)[1]]
    stacked = jax.tree.map(lambda *x: np.stack(x), *members)
    raw, index = jnp.zeros((1, HEADS, S, S)), np.arange(S)

    def run(params):
        return bind(part, "bias", params)(raw, HEAD, index[:, None], index[None])

    both = jax.jit(jax.vmap(run))(stacked)
    for i, member in enumerate(members):
        np.testing.assert_allclose(both[i], jax.jit(run)(member), atol=1e-5)


@pytest.mark.parametrize("name", BIAS_POSITIONS)
def test_what_biases_start_from(name):
    part = built(name, masks.causal())[0]
    assert part == built(name, masks.causal())[0]
    hash(part)
    learned = collect_parameters(part, "bias")
    for p in learned.values():
        assert len(p.axes.names) == len(p.shape)
    start = {k: p.init(jax.random.key(0), p.shape, "float32") for k, p in learned.items()}
    bias = bind(part, "bias", start)
    index = np.arange(S)
    raw = jnp.zeros((1, HEADS, S, S))
    table = jax.jit(lambda s: bias(s, HEAD, index[:, None], index[None]))(raw)[0]
    if name in ("alibi", "kerple"):
        # Falls with the distance, to each head at a rate of its own.
        assert (np.diff(table[:, -1]) > 0).all()
        assert len(np.unique(np.round(table[:, -1, 0], 4))) == HEADS
    if name == "kerple":
        np.testing.assert_allclose(jax.nn.softplus(start["bias_raw_r1"]), [0.25, 0.75, 1.25, 1.75])
    if name == "fire":
        assert part.length == 20.0
        assert start["bias_c"] == pytest.approx(0.1)


def test_fire_is_the_same_function_of_relative_position_beyond_its_threshold():
    """Li et al. 2024, section 3.2: the input of the network stays in [0, 1] at any length."""
    part, params = built("fire", masks.causal())
    fixed = {"bias_c": jnp.float32(0.1), "bias_multiplier": jnp.float32(0.5)}
    bias = bind(part, "bias", params | fixed)
    far = np.array([[10**6]])
    zero = jnp.zeros((1, HEADS, 1, 1))
    ends = [bias(zero, HEAD, far, far - d) for d in (0, 10**6)]
    short = [bias(zero, HEAD, np.array([[20]]), np.array([[20 - d]])) for d in (0, 20)]
    np.testing.assert_allclose(ends, short, atol=1e-4)


def test_bad_bias_options_are_refused():
    with pytest.raises(ValueError, match="num_buckets = 1; it must be at least 2"):
        t5(2, 1, 10, bidirectional=False)
    with pytest.raises(ValueError, match="num_buckets = 7; it must be at least 4 and even"):
        t5(2, 7, 10, bidirectional=True)
    with pytest.raises(ValueError, match="max_distance = 4; it must be more than 4"):
        t5(2, 8, 4, bidirectional=False)
