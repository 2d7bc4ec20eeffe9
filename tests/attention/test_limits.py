"""Integers that no int32 holds, for every option: the same as a smaller one, or one line."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention import registry
from research.attention.errors import Unsupported
from research.attention.mixers.mixer_options import Context
from research.attention.mixers.sequential.monotonic import chunk_alignment
from research.attention.parts import bigbird, block_selection, masks, sparse_masks
from research.attention.parts.tables import MASKS as NAMED_MASKS
from research.attention.parts.tables import TABLES
from research.attention.spec import mechanism_options, mixer_spec
from research.options import OptionError, declarations, has_to_be_set
from tests.attention.cases import HEADS, LENGTH, WIDTH, needed

LARGE = (2**31 - 1, 2**31, 2**63)
BASE = {"width": WIDTH, "num_heads": HEADS, "max_length": LENGTH}
CONTEXT = [name for name, one in declarations(Context).items() if one.kind is int]
INTEGERS = [*CONTEXT, *(k for k, found in mechanism_options().items() if found[0].kind is int)]


def integers(part):
    return [name for name, one in declarations(part).items() if one.kind is int]


def readers():
    """(option, what has to be chosen with it) for everything that reads an integer option."""
    found = [(option, {}) for option in CONTEXT]
    for name, entry in registry.MIXERS.items():
        found += [(option, {"mixer": name}) for option in integers(entry)]
        if "block_size" in integers(entry):
            forms = entry.implementations
            found += [("block_size", {"mixer": name, "implementation": i}) for i in forms]
    for field, table in TABLES.items():
        for name, part in table.items():
            found += [(option, {field: name, **needed(part)}) for option in integers(part)]
    scaled = {"position": "rope", "rope_factor": 2.0}
    for scaling in ("linear", "ntk", "yarn", "llama3"):
        found.append(("rope_original_length", scaled | {"rope_scaling": scaling}))
    return found


READERS = readers()


def test_every_integer_option_is_here():
    assert {option for option, _ in READERS} == set(INTEGERS)


def traced(values):
    """Shapes of everything that the mixer of these options computes."""
    spec = mixer_spec(**BASE | values)
    mixer = spec.make()
    params = {
        name: jax.ShapeDtypeStruct(p.shape, "float32") for name, p in mixer.parameters().items()
    }
    x = jax.ShapeDtypeStruct((1, LENGTH, spec.context.width), "float32")
    found = [jax.eval_shape(mixer, params, x)]
    try:
        state = jax.eval_shape(lambda: mixer.init_state(1, LENGTH, "float32"))
        found.append(jax.eval_shape(mixer.extend, params, state, x))
    except Unsupported:
        pass
    return found


@pytest.mark.parametrize("option", INTEGERS)
def test_large_integers_are_one_line_or_work(option):
    for _, chosen in (reader for reader in READERS if reader[0] == option):
        if chosen.get("implementation") in ("jax_cudnn", "splash", "jax_xla"):
            continue  # not on every device
        for value in LARGE[-1:] if option == "block_size" else LARGE:
            try:
                traced(chosen | {option: value})
            except OptionError as error:
                assert str(error).count("\n") == 0
                assert f"{option} = {value}" in str(error), (chosen, error)


def pairs(mask):
    """Which pairs are allowed, how blocks of them are classified, and what decoding keeps."""
    index = jnp.arange(-1, 40)
    bounds = np.arange(0, 40, 5)
    q_lo, kv_lo = bounds[:, None], bounds[None]
    blocks = mask.classify_blocks(q_lo, q_lo + 4, kv_lo, kv_lo + 4)
    return [np.asarray(a) for a in (mask(index[1:, None], index[None]), *blocks)]


MASKS = {
    "window": (masks.window, 1),
    "prefix": (masks.prefix, 1),
    "local": (sparse_masks.local, 1),
    "dilated": (sparse_masks.dilated, 2),
    "strided": (sparse_masks.strided, 1),
    "global": (sparse_masks.global_tokens, 1),
    "longformer": (sparse_masks.longformer, 2),
    "moba": (block_selection.moba, 2),
    "bigbird": (lambda block, num: bigbird.bigbird(block, 1, num), 2),
}


@pytest.mark.parametrize("name", MASKS)
def test_what_is_longer_than_any_sequence_means_the_same(name):
    make, count = MASKS[name]
    for values in itertools.product((2, 70_000, *LARGE), repeat=count):
        expected = make(*(min(value, 1000) for value in values))
        for found, right in zip(pairs(make(*values)), pairs(expected), strict=True):
            np.testing.assert_array_equal(found, right, err_msg=str(values))


def test_every_mask_with_a_size_is_here():
    sized = {
        name
        for name, part in NAMED_MASKS.items()
        if any(has_to_be_set(one) for one in declarations(part).values())
    }
    assert sized == MASKS.keys()


def test_a_chunk_of_all_keys():
    alpha, scores = np.float32(np.random.default_rng(0).uniform(size=(2, 1, 2, 6)))
    run = jax.jit(lambda *a: [chunk_alignment(*a, chunk) for chunk in (6, 2**63)])
    expected, found = map(np.asarray, run(alpha, scores))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(expected.sum(-1), alpha.sum(-1), rtol=1e-6)
