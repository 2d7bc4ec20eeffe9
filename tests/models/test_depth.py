"""Layers are one program, however many there are."""

import itertools

import jax
import pytest

from research.attention.registry import MIXERS
from tests.models.test_decoder import decoder, some_tokens

OF_GRADIENT = {True: ("softmax",), False: ("softmax", "gated_delta", "gated_convolution", "lstm")}
"""Mixers whose programs are measured with and without their gradient, among the fast tests."""


@pytest.mark.parametrize(
    ("mixer", "gradient"),
    [
        pytest.param(m, g, marks=() if m in OF_GRADIENT[g] else pytest.mark.slow)
        for g in (False, True)
        for m in MIXERS
    ],
)
def test_the_program_does_not_grow_with_depth(mixer, gradient):
    sizes = []
    mask = "causal" if MIXERS[mixer].causal else "full"
    for layers in (2, 12):
        model = decoder(num_layers=layers, mixer=mixer, mask=mask, position="none")
        shapes = jax.eval_shape(model.init, jax.random.key(0), some_tokens())["params"]
        loss = lambda p, m=model: m.apply({"params": p}, some_tokens())[0].sum()  # noqa: E731
        program = jax.grad(loss) if gradient else loss
        sizes.append(count_equations(jax.make_jaxpr(program)(shapes).jaxpr))
    assert sizes[0] == sizes[1] > 50


def count_equations(jaxpr):
    inner = (p for equation in jaxpr.eqns for p in equation.params.values())
    bodies = itertools.chain.from_iterable(
        p if isinstance(p, tuple | list) else (p,) for p in inner
    )
    bodies = [getattr(b, "jaxpr", b) for b in bodies]
    return len(jaxpr.eqns) + sum(count_equations(b) for b in bodies if hasattr(b, "eqns"))
