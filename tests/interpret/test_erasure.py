"""Examples without some of their tokens, against examples that never had them."""

import functools

import jax
import numpy as np
import pytest

from research.interpret.erasure import (
    BATCH,
    batched_logits,
    keep_only,
    leave_one_out_masks,
    leave_one_out_tokens,
    logits_of_subsets,
)
from research.tasks.task import PAD, UNKNOWN
from tests.attention.cases import close
from tests.interpret.test_capture import applied, problem

TOKENS = np.array([5, 7, 6, 3, 4, PAD, PAD, PAD], np.int32)
REAL = np.arange(8) < 5

kept = jax.jit(keep_only)
of_kept = functools.partial(jax.jit, static_argnums=0)(logits_of_subsets)
of = functools.partial(jax.jit, static_argnums=0)(batched_logits)


def test_what_is_kept_moves_together():
    tokens, length = kept(TOKENS, np.array([0, 1, 0, 1, 1, 0, 0, 0], bool))
    np.testing.assert_array_equal(tokens, [7, 3, 4, PAD, PAD, PAD, PAD, PAD])
    assert length == 3
    tokens, length = kept(TOKENS, np.zeros(8, bool))
    np.testing.assert_array_equal(tokens, [UNKNOWN] + 7 * [PAD])
    assert length == 1


def test_masks_of_each_token():
    without = np.asarray(leave_one_out_masks(REAL))
    for place in range(8):
        expected = REAL.copy()
        expected[place] = False
        np.testing.assert_array_equal(without[place], expected)
    blanked = np.asarray(jax.jit(leave_one_out_tokens)(TOKENS, REAL))
    for place in range(8):
        expected = TOKENS.copy()
        if place < 5:
            expected[place] = UNKNOWN
        np.testing.assert_array_equal(blanked[place], expected)


@pytest.mark.parametrize("name", ["bilstm attention", "class token"])
def test_logits_without_a_token_are_those_of_a_text_that_never_had_it(name):
    model, params, _ = problem(name)
    found = np.asarray(of_kept(model, params, TOKENS, leave_one_out_masks(REAL)))
    assert found.shape == (8, 2)
    for place in (0, 2, 4, 6):
        rest = np.delete(TOKENS[:5], [place] if place < 5 else [])
        batch = {"inputs": rest[None], "length": np.array([len(rest)])}
        close(found[place], np.asarray(applied(model, params, batch))[0], 1e-5)


def test_any_number_of_versions():
    """More than a batch of them, and one: each is what it is alone."""
    model, params, _ = problem("bilstm attention")
    number = BATCH + 3
    versions = np.stack([np.roll(TOKENS[:5], i) for i in range(number)])
    lengths = np.array([1 + i % 5 for i in range(number)])
    found = np.asarray(of(model, params, versions, lengths))
    alone = np.asarray(of(model, params, versions[-1:], lengths[-1:]))
    assert found.shape == (number, 2)
    close(found[-1], alone[0], 1e-6)
    assert np.abs(found[0] - found[-1]).max() > 1e-3
