"""Compares mixers with the same layer in PyTorch: outputs and gradients of all parameters."""

import functools

import jax
import numpy as np
import pytest

from tests.parity import compare, paper

B, T = 2, 11
HOW = "in PyTorch float64"


def equals_torch(name, forms, published, shape, options=None, source=""):
    """In float32 against float64, outputs and gradients of every parameter and of the input.

    Args:
      name: of the mixer, with its options, as in `compare`.
      forms: {what tells it apart: mixer}, all with the same parameters.
      published: the layer in PyTorch, called with the parameters and the input.
      shape: of the input, (B, T, M).
      options: of the compiler.
      source: of the equations; "" is that of the mixer.
    """
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    described = sorted(next(iter(forms.values())).parameters().items())
    arrays = {n: np.float32(0.7 * rng.normal(size=p.shape)) for n, p in described}
    arrays["x"] = np.float32(rng.normal(size=shape))
    weights = np.float32(rng.normal(size=shape))

    wide = {n: torch.tensor(np.float64(a), requires_grad=True) for n, a in arrays.items()}
    expected = published(wide, wide["x"])
    expected.backward(torch.tensor(np.float64(weights)))
    assert expected.detach().abs().max() > 0.1

    for form, mixer in forms.items():

        @functools.partial(jax.jit, compiler_options=options)
        def run(arrays, mixer=mixer):
            out, pull = jax.vjp(lambda a: mixer(a, a["x"]), arrays)
            return out, pull(weights)[0]

        out, grads = run(arrays)
        assert out.dtype == np.float32
        compare(
            f"mixer={name}",
            f"{source}; {HOW}" if source else paper(f"mixer={name}", HOW),
            outputs=(out, expected),
            gradients={f"{n} {form}": (g, wide[n].grad) for n, g in grads.items()},
        )


def in_every_form(cls, sizes):
    """{form: mixer} of a mixer of linear time."""
    forms = [{"implementation": form} for form in ("parallel", "recurrent")]
    forms += [{"implementation": "chunkwise", "block_size": 4}]
    return {str(form): cls(**sizes, **form) for form in forms}
