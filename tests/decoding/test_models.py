"""Decoding with the models of the library: their states are reordered as their search needs."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from research.decoding.decode import decode, decode_all
from research.decoding.search import Search, next_log_probs
from research.models.registry import make_model
from research.tasks.special_tokens import SpecialTokens
from tests import small
from tests.decoding.exhaustive import LENGTH, VOCAB, assert_best, enumerated, recomputed
from tests.decoding.toy import drawn, sources

TINY = {"width": 8, "num_layers": 2}
BLOCKS = TINY | {"feedforward": 16, "num_heads": 2}
TRANSFORMERS = {
    "softmax": {},
    "window": {"mask": "window", "window": 2, "position": "learned"},
    "gated delta": {"mixer": "gated_delta", "position": "none"},
    "pattern": {"pattern": ("mask=window, window=2", "mixer=linear, position=none")},
}
RECURRENT = {
    "additive": {"num_layers": 1},
    "gru": {"cell": "gru", "attention": "coverage", "num_layers": 1},
    "fixed": {"attention": "fixed_initial"},
    "local": {"attention": "local_p", "num_layers": 1},
}
CASES = {name: BLOCKS | {"name": "encoder_decoder", **keys} for name, keys in TRANSFORMERS.items()}
CASES |= {
    name: TINY | {"name": "recurrent"} | (keys if "fixed" in str(keys) else {"num_heads": 1} | keys)
    for name, keys in RECURRENT.items()
}


def made(case, vocab, length):
    model = make_model(small.model(**CASES[case]), vocab, length)
    return model, drawn(model, 0.5)


def cases(*fast):
    """Every case; all but the `fast` ones run among the slow tests."""
    slow = pytest.mark.slow
    return [pytest.param(case, marks=() if case in fast else slow) for case in CASES]


@pytest.mark.parametrize("case", cases("pattern", "additive"))
def test_a_wide_beam_finds_what_enumeration_finds(case):
    model, params = made(case, VOCAB, LENGTH)
    source, lengths = sources(0, 3, 4, VOCAB)
    penalty = 0.0 if case == "fixed" else 0.2
    search = Search(beam=48, nbest=12, length_penalty=1.0, coverage_penalty=penalty)
    found = decode(model, params, source, lengths, search)
    for row in range(3):
        assert_best(found, row, enumerated(model, params, source[row], lengths[row], search))


@pytest.mark.parametrize("case", cases("gru"))
def test_greedy_equals_recomputing_every_token(case):
    model, params = made(case, 12, 9)
    source, lengths = sources(2, 8, 7, 12)
    found = decode_all(model, params, source, lengths, Search(), 3)
    wanted = recomputed(model, params, source, lengths, 9)
    assert len({tuple(row) for row in wanted}) > 1, "equal sentences would prove little"
    for row, tokens in zip(found, wanted, strict=True):
        assert row[0].tokens == [t for t in tokens.tolist() if t > 2]


@pytest.mark.parametrize("beam", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_ids_of_special_tokens_are_those_of_the_search(beam):
    """A model whose tokens are numbered otherwise finds the same hypotheses by the new numbers."""
    model, params = made("softmax", 12, 9)
    source, lengths = sources(2, 8, 7, 12)
    new = np.random.default_rng(0).permutation(12)
    moved = params | {"embedding": params["embedding"][np.argsort(new)]}
    special = SpecialTokens(*new[:3].tolist(), after=(int(new[2]),))
    search = Search(beam=beam, nbest=beam)
    found = decode_all(model, params, source, lengths, search)
    search = replace(search, special=special)
    again = decode_all(model, moved, new[source], lengths, search)
    assert len({tuple(row[0].tokens) for row in found}) > 1
    for row, other in zip(found, again, strict=True):
        assert [new[one.tokens].tolist() for one in row] == [one.tokens for one in other]
        np.testing.assert_allclose([h.score for h in row], [h.score for h in other], rtol=1e-4)


def test_a_start_that_is_padding_or_the_end_and_a_first_token():
    log_probs = jnp.log(jnp.arange(1.0, 7.0) / 21)[None]

    def allowed(at, special):
        found = next_log_probs(log_probs, jnp.int32(at), 4, special)
        return np.flatnonzero(np.isfinite(found[0])).tolist()

    assert allowed(0, SpecialTokens()) == [2, 3, 4, 5]
    assert allowed(3, SpecialTokens()) == [2]
    assert allowed(1, SpecialTokens(pad=0, start=0, end=1)) == [1, 2, 3, 4, 5]  # T5
    bart = SpecialTokens(pad=1, start=2, end=2, first=0)
    assert [allowed(at, bart) for at in (0, 1, 3)] == [[0], [0, 2, 3, 4, 5], [2]]
