"""Compares every form of a mixer of linear time with the same layer in PyTorch."""

import jax
import numpy as np
import pytest

from tests.parity import compare, paper

B, T = 2, 11
FORMS = [{"implementation": form} for form in ("parallel", "recurrent")]
FORMS += [{"implementation": "chunkwise", "block_size": 4}]


def equals_torch(name, cls, sizes, published):
    """In float32 against float64, outputs and gradients of every parameter and of the input."""
    torch = pytest.importorskip("torch")
    shape = B, T, sizes["width"]
    rng = np.random.default_rng(0)
    described = sorted(cls(**sizes).parameters().items())
    arrays = {n: np.float32(0.7 * rng.normal(size=p.shape)) for n, p in described}
    arrays["x"] = np.float32(rng.normal(size=shape))
    weights = np.float32(rng.normal(size=shape))

    wide = {n: torch.tensor(np.float64(a), requires_grad=True) for n, a in arrays.items()}
    expected = published(wide, wide["x"])
    expected.backward(torch.tensor(np.float64(weights)))
    assert expected.detach().abs().max() > 0.1

    for form in FORMS:
        mixer = cls(**sizes, **form)

        @jax.jit
        def run(arrays, mixer=mixer):
            out, pull = jax.vjp(lambda a: mixer(a, a["x"]), arrays)
            return out, pull(weights)[0]

        out, grads = run(arrays)
        assert out.dtype == np.float32
        compare(
            f"mixer={name}",
            paper(f"mixer={name}", "in PyTorch float64"),
            outputs=(out, expected),
            gradients={f"{n} {form}": (g, wide[n].grad) for n, g in grads.items()},
        )
