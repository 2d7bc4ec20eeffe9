"""Packed documents: a decoder reads each of them as if it were alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.parts.segments import places_of_ids
from research.tasks.task import cross_entropy
from tests.models.test_decoder import decoder, parameters

LENGTH, STARTS = 24, (0, 7, 8, 17)
IDS = np.searchsorted(STARTS, np.arange(LENGTH), side="right").astype(np.int32)
# Everything that a mixer can do about segments: masks, windows, decays, matrices, convolutions,
# states; and the implementations that take them.
MODELS = {
    "dense, blockwise": {
        "num_layers": 2,
        "position": "learned",
        "pattern": ("implementation=dense", "implementation=blockwise, mask=window, window=4"),
    },
    "splash": {"num_layers": 1, "implementation": "splash"},
    "states": {
        "num_layers": 4,
        "position": "sinusoidal",
        "pattern": (
            "mixer=gated_delta, short_convolution=3",
            "mixer=state_space",
            "mixer=gated_convolution",
            "mixer=gru",
        ),
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_a_packed_document_is_read_as_if_alone(name):
    """Row 0 has all documents; every other row has one of them in front, and others behind it."""
    model = decoder(LENGTH, LENGTH, tie_embeddings=False, **MODELS[name])
    params = parameters(model)
    tokens = np.stack([np.roll(np.arange(LENGTH), -start) for start in (0, *STARTS)])
    ids = np.stack([np.roll(IDS, -start) for start in (0, *STARTS)])
    targets = (7 * tokens + 3) % LENGTH

    @jax.jit
    def run(params, segments):
        positions = places_of_ids(segments)

        def losses(table):
            batch = {"inputs": jnp.asarray(tokens), "segments": segments, "positions": positions}
            variables = {"params": {**params, "embedding": table}}
            return cross_entropy(model.apply(variables, batch, method="forward"), targets)

        # Every token has an embedding of its own, so gradients tell places apart.
        found, pull = jax.vjp(losses, params["embedding"])
        documents = [jnp.zeros_like(found).at[0].set(IDS == i) for i in range(1, len(STARTS) + 1)]
        return found, jax.lax.map(lambda w: pull(w)[0], jnp.stack(documents))

    (packed, *alone), reached = jax.device_get(run(params, jnp.asarray(ids)))
    reached = np.abs(reached).max(-1)
    for number, (start, one) in enumerate(zip(STARTS, alone, strict=True)):
        own = number + 1 == IDS
        np.testing.assert_allclose(packed[own], one[: own.sum()], atol=1e-5)
        assert reached[number, own].min() > 0
        # Sums of decays to both ends of a document differ by rounding.
        assert reached[number, ~own].max() < 1e-6 * reached[number].max()
        assert start == np.flatnonzero(own)[0]
    unpacked = jax.device_get(run(params, jnp.zeros_like(ids)))[0][0]
    assert np.abs(unpacked - packed)[STARTS[1] :].max() > 1e-2


def test_documents_are_for_whole_sequences():
    model = decoder()
    with pytest.raises(ValueError, match="not for decoding"):
        jax.eval_shape(
            lambda t: model.apply({"params": {}}, t, {"step": 0}, segments=t),
            jnp.zeros((1, 2), int),
        )
