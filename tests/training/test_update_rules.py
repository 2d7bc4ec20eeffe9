"""Update rules against optax's optimizers, one matrix at a time, and against their papers in numpy.

optax knows nothing of stacked layers and heads: it is given each matrix by itself, cut out and
flattened by hand, and has to find the same.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.attention.parameters import Axes, matrix_axes, table_axes, vector_axes
from research.errors import UserError
from research.training.optimizer import make_optimizer, read_optimizer
from tests import small

STEPS, RATE, DECAY = 6, 0.05, 0.3
AXES = {
    "embedding": table_axes("vocab", "width"),
    "query": matrix_axes("width", "heads", "head_width").stacked(),
    "out": matrix_axes("heads", "head_width", "width", roles="iio").stacked(),
    "gates": matrix_axes("width", "", "hidden", roles="iso"),
    "score": matrix_axes("heads", "head_width", "", roles="sio").stacked(),
    "taps": table_axes("taps", "width", roles="oo"),
    "scale": vector_axes("width").stacked(),
    "temperature": vector_axes("heads"),
}
SHAPES = {
    "embedding": (6, 4),
    "query": (2, 4, 2, 3),
    "out": (2, 2, 3, 4),
    "gates": (4, 3, 5),
    "score": (2, 2, 3, 3),
    "taps": (3, 4),
    "scale": (2, 4),
    "temperature": (2,),
}
# Written by hand: each array as a list of what an update must not mix, matrices as such.
PIECES = {
    "embedding": lambda a: [a],
    "query": lambda a: [a[i].reshape(4, 6) for i in range(2)],
    "out": lambda a: [a[i].reshape(6, 4) for i in range(2)],
    "gates": lambda a: [a[:, i] for i in range(3)],
    "score": lambda a: [a[i, j] for i in range(2) for j in range(2)],
    "taps": lambda a: [a.reshape(12)],
    "scale": lambda a: [a[i] for i in range(2)],
    "temperature": lambda a: [a],
}
ORTHOGONAL = ("query", "out", "gates", "score")
MATRICES = ("embedding", *ORTHOGONAL, "taps")


def pieces(tree):
    return {f"{n}/{i}": p for n, a in tree.items() for i, p in enumerate(PIECES[n](np.asarray(a)))}


def options(name, **others):
    given = {"schedule": "constant", "warmup_steps": 3, "clip_norm": 0.0} | others
    return read_optimizer(
        small.recall(optimizer__name=name, **{f"optimizer__{k}": v for k, v in given.items()})
    )


def rate(step):
    return RATE * jnp.minimum((step + 1) / 3, 1)


def drawn(seed):
    generator = np.random.default_rng(seed)
    return {n: generator.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}


GRADIENTS = [drawn(1 + i) for i in range(STEPS)]


@functools.cache
def ours(name, **others):
    """Returns the parameters after each step."""
    transform = make_optimizer(options(name, **others), STEPS, RATE, DECAY, AXES)
    return followed(transform, drawn(0), GRADIENTS)


def followed(transform, params, gradients):
    state, update, found = transform.init(params), jax.jit(transform.update), []
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        found.append(params)
    return found


def same(mine, theirs, **tolerance):
    tolerance = {"rtol": 1e-4, "atol": 1e-5} | tolerance
    mine = pieces(mine)
    assert mine.keys() == theirs.keys()
    for name, piece in mine.items():
        np.testing.assert_allclose(piece, theirs[name], err_msg=name, **tolerance)


def decayed(name):
    return name.split("/")[0] in MATRICES


MASK = {name: decayed(name) for name in pieces(drawn(0))}


def test_lion_is_that_of_optax():
    lion = optax.lion(rate, 0.8, 0.95, weight_decay=DECAY, mask=MASK)
    theirs = followed(lion, pieces(drawn(0)), [pieces(g) for g in GRADIENTS])
    same(ours("lion", beta1=0.8, beta2=0.95)[-1], theirs[-1])


def test_lion_is_that_of_the_paper():
    for name, p in pieces(drawn(0)).items():
        m = np.zeros_like(p)
        for i, gradients in enumerate(GRADIENTS):
            g = pieces(gradients)[name]
            c = np.sign(0.8 * m + (1 - 0.8) * g)
            p = p - float(rate(i)) * (c + DECAY * decayed(name) * p)
            m = 0.95 * m + (1 - 0.95) * g
        found = pieces(ours("lion", beta1=0.8, beta2=0.95)[-1])[name]
        np.testing.assert_allclose(found, p, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("relative", [True, False])
def test_adafactor_is_that_of_optax(relative):
    settings = {"min_dim_size_to_factor": 1, "multiply_by_parameter_scale": relative}
    adafactor = optax.chain(
        optax.adafactor(None, clipping_threshold=0.9, decay_rate=0.7, **settings),
        optax.scale(-1),
        optax.add_decayed_weights(DECAY, MASK),
        optax.scale_by_learning_rate(rate),
    )
    theirs = followed(adafactor, pieces(drawn(0)), [pieces(g) for g in GRADIENTS])
    changed = {"clip_update": 0.9, "decay_exponent": 0.7, "relative": relative}
    same(ours("adafactor", **changed)[-1], theirs[-1])


def test_adafactor_is_that_of_the_paper():
    """Algorithm 4, with the step size as it is given here and weight decay beside it."""
    for name, p in pieces(drawn(0)).items():
        row = column = full = 0.0
        p = p.astype(np.float64)
        for i, gradients in enumerate(GRADIENTS):
            g = pieces(gradients)[name].astype(np.float64)
            beta = 1 - (i + 1) ** -0.8
            squares = g * g + 1e-30
            if p.ndim == 2:
                row = beta * row + (1 - beta) * squares.sum(1)
                column = beta * column + (1 - beta) * squares.sum(0)
                estimate = np.outer(row, column) / row.sum()
            else:
                estimate = full = beta * full + (1 - beta) * squares
            u = g / np.sqrt(estimate)
            u = u / max(1, np.sqrt(np.mean(u * u)))
            size = max(1e-3, np.sqrt(np.mean(p * p)))
            p = p - float(rate(i)) * (size * u + DECAY * decayed(name) * p)
        np.testing.assert_allclose(
            pieces(ours("adafactor")[-1])[name], p, rtol=1e-4, atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("match_rms", [0.2, 0.0])
def test_muon_is_that_of_optax(match_rms):
    orthogonal = {name: name.split("/")[0] in ORTHOGONAL for name in MASK}
    numbers = optax.contrib.MuonDimensionNumbers()
    muon = optax.contrib.muon(
        rate,
        beta=0.9,
        weight_decay=DECAY,
        adam_b2=0.95,
        muon_weight_dimension_numbers={n: numbers if o else None for n, o in orthogonal.items()},
        consistent_rms=match_rms or None,
    )
    theirs = followed(muon, pieces(drawn(0)), [pieces(g) for g in GRADIENTS])
    adam = optax.adamw(rate, 0.9, 0.95, weight_decay=DECAY, mask=MASK)
    others = followed(adam, pieces(drawn(0)), [pieces(g) for g in GRADIENTS])
    wanted = {n: theirs[-1][n] if o else others[-1][n] for n, o in orthogonal.items()}
    same(ours("muon", momentum=0.9, beta2=0.95, match_rms=match_rms)[-1], wanted, atol=5e-5)


def newton_schulz(g):
    """Five iterations of Jordan et al. 2024, in float64."""
    x = g / np.linalg.norm(g)
    x = x.T if len(x) > len(x.T) else x
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x if x.shape == g.shape else x.T


def test_muon_moves_every_matrix_by_an_orthogonal_one():
    """The first update is that of a multiple of G, whose factor U V^T is known from its SVD."""
    before, after = pieces(drawn(0)), pieces(ours("muon", match_rms=0.0)[0])
    for name, g in pieces(GRADIENTS[0]).items():
        if name.split("/")[0] not in ORTHOGONAL:
            continue
        moved = (before[name] * (1 - float(rate(0)) * DECAY) - after[name]) / float(rate(0))
        size = max(1.0, g.shape[1] / g.shape[0]) ** 0.5
        u, singular, v = np.linalg.svd(g, full_matrices=False)
        np.testing.assert_allclose(moved / size, newton_schulz(g.astype(np.float64)), atol=1e-3)
        found = np.diag(u.T @ moved @ v.T) / size
        # Five steps of the quintic iteration leave singular values in about 0.7 to 1.2, except
        # those that are tiny at first (Jordan et al. 2024, "Muon", on its coefficients).
        assert np.all(found[singular > 0.05 * singular[0]] > 0.65), name
        assert np.all(found < 1.25), name
        assert np.abs(u.T @ moved @ v.T / size - np.diag(found)).max() < 0.01, name


def test_muon_matches_the_root_mean_square_of_adamw():
    before, after = pieces(drawn(0)), pieces(ours("muon", match_rms=0.2)[0])
    for name in before:
        if name.startswith(("query", "out")):
            moved = (before[name] * (1 - float(rate(0)) * DECAY) - after[name]) / float(rate(0))
            assert 0.15 < np.sqrt(np.mean(moved**2)) < 0.25, name


def loss(tree):
    """A narrow valley, in which the place where the gradient is taken makes a difference."""
    return sum(jnp.sum((1 + jnp.arange(a.size).reshape(a.shape) % 7) * a**2) for a in tree.values())


def test_schedule_free_is_that_of_optax():
    config = options("schedule_free", beta1=0.8, beta2=0.95)
    transform = make_optimizer(config, STEPS, RATE, DECAY, AXES)
    average = drawn(0)
    state, gradient = transform.init(average), jax.jit(jax.grad(loss))
    base = optax.chain(
        optax.scale_by_rms(0.95, 1e-8, eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(DECAY, MASK),
        optax.scale_by_learning_rate(rate),
    )
    # optax counts from 1 for the weights of the average and from 0 for the rate itself.
    free = optax.contrib.schedule_free(base, lambda step: rate(step - 1), 0.8)
    theirs, inner = pieces(drawn(0)), None
    inner = free.init(theirs)
    update, their_update = jax.jit(transform.update), jax.jit(free.update)
    for _ in range(4 * STEPS):
        point = config.name.gradient_point(state, average)
        same(point, theirs, rtol=1e-3, atol=1e-4)
        gradients = gradient(point)
        updates, state = update(gradients, state, average)
        average = optax.apply_updates(average, updates)
        updates, inner = their_update(pieces(gradients), inner, theirs)
        theirs = optax.apply_updates(theirs, updates)
    same(average, optax.contrib.schedule_free_eval_params(inner, theirs), rtol=1e-3, atol=1e-4)
    gap = max(
        np.abs(a - b).max() for a, b in zip(pieces(average).values(), theirs.values(), strict=True)
    )
    assert gap > 1e-2, "average and gradient point are not the same"


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "muon", "sgd"])
def test_other_rules_take_gradients_at_the_parameters(name):
    params = drawn(0)
    assert options(name).name.gradient_point((), params) is params


@pytest.mark.parametrize("name", ["lion", "adafactor", "muon", "schedule_free"])
def test_members_with_rates_of_their_own_are_trained_as_one(name):
    rates, decays = jnp.array([0.01, 0.05]), jnp.array([0.0, 0.3])

    def member(rate, decay):
        transform = make_optimizer(options(name), STEPS, rate, decay, AXES)
        params = drawn(0)
        state = transform.init(params)
        for gradient in GRADIENTS[:3]:
            updates, state = transform.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    both = jax.jit(jax.vmap(member))(rates, decays)
    for i in range(2):
        alone = jax.jit(member)(rates[i], decays[i])
        for key, value in alone.items():
            np.testing.assert_allclose(both[key][i], value, rtol=2e-4, atol=1e-5, err_msg=key)


def test_a_schedule_of_schedule_free_is_refused():
    with pytest.raises(UserError) as error:
        options("schedule_free", schedule="cosine")
    assert str(error.value) == (
        "optimizer.schedule='cosine' must be 'constant' for optimizer.name='schedule_free', which "
        "has no schedule."
    )


def test_roles_have_to_fit():
    with pytest.raises(ValueError, match="roles 'io' do not fit"):
        Axes(("width", "heads", "head_width"), True, "io")
