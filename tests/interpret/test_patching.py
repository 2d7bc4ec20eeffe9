"""Patching of a small network in which it is known who carries what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.interpret.patching import patch_effects, single_sites

T, M = 4, 3
TABLE = np.random.default_rng(0).normal(size=(6, M)).astype(np.float32)
# The last position reads the others in the second layer, a half, a third and nothing.
READ = np.eye(T, dtype=np.float32)
READ[-1] = [0.5, 0.3, 0.0, 0.2]
OUT = np.random.default_rng(1).normal(size=M).astype(np.float32)


def activations(tokens):
    """Inputs of both layers, (2, T, M)."""
    x = TABLE[tokens]
    return np.stack([x, READ @ x])


def run(tokens, cache, sites):
    x = jnp.where(sites[0][:, None], cache[0], jnp.asarray(TABLE)[tokens])
    x = jnp.where(sites[1][:, None], cache[1], READ @ x)
    return x[-1] @ OUT


CLEAN, CORRUPTED = np.array([1, 2, 3, 4]), np.array([5, 0, 2, 4])


def effects(clean, corrupted, sites, batch_size=3):
    return jax.jit(lambda cache: patch_effects(run, clean, corrupted, cache, sites, batch_size))(
        activations(clean)
    )


def test_effects_of_single_sites_are_what_the_last_position_reads():
    found = np.asarray(effects(CLEAN, CORRUPTED, single_sites(2, T))).reshape(2, T)
    parts = READ[-1] * ((TABLE[CLEAN] - TABLE[CORRUPTED]) @ OUT)
    np.testing.assert_allclose(found[0], parts / parts.sum(), atol=1e-4)
    # The third differs but is not read, the fourth is read but does not differ.
    assert np.abs(found[0, 2:]).max() < 1e-4 < np.abs(found[0, :2]).min()
    np.testing.assert_allclose(found[1], [0, 0, 0, 1], atol=1e-4)


def test_groups_of_sites_and_both_directions():
    sites = np.zeros((3, 2, T), bool)
    sites[0, 0], sites[1, 0, :2] = True, True
    for clean, corrupted in ((CLEAN, CORRUPTED), (CORRUPTED, CLEAN)):
        found = effects(clean, corrupted, sites, batch_size=8)
        np.testing.assert_allclose(found, [1, 1, 0], atol=1e-4)


def test_single_sites_are_in_the_order_of_the_shape():
    sites = np.asarray(single_sites(2, 3))
    assert sites.shape == (6, 2, 3) and sites[4, 1, 1] and sites.sum() == 6


def test_inputs_with_the_same_metric_have_nothing_to_recover():
    same = np.array([1, 2, 0, 4])
    found = effects(CLEAN, same, single_sites(2, T))
    assert not np.isfinite(np.asarray(found)[[0, 1, 2, 3]]).any()
    assert float(run(CLEAN, activations(CLEAN), np.zeros((2, T), bool))) == pytest.approx(
        float(run(same, activations(same), np.zeros((2, T), bool)))
    )
