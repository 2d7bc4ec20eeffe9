"""Decoding with the models of the library: their states are reordered as their search needs."""

import pytest

from research.decoding.decode import decode, decode_all
from research.decoding.search import Search
from research.models.registry import make_model
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
