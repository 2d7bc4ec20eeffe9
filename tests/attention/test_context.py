"""Attention and recurrences over sequences that are split over devices."""

import numpy as np
import pytest

from research.attention.implementations.ring_schedule import make_layout, schedule
from research.attention.parts import masks
from tests.attention import context_checks, slow_context_checks
from tests.eight_devices import outcomes


@pytest.fixture(scope="module")
def found():
    return outcomes(context_checks.__name__)


@pytest.fixture(scope="module")
def found_slowly():
    return outcomes(slow_context_checks.__name__)


@pytest.mark.parametrize("name", context_checks.CHECKS)
def test_on_eight_devices(found, name):
    assert not found[name], found[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_context_checks.CHECKS)
def test_on_eight_devices_slowly(found_slowly, name):
    assert not found_slowly[name], found_slowly[name]


@pytest.mark.parametrize("shards", [2, 5, 8])
@pytest.mark.parametrize("length", [3, 64, 77])
@pytest.mark.parametrize("pieces", [1, 2])
def test_layouts_hold_every_position_once(shards, length, pieces):
    layout = make_layout(shards, pieces, length, 4)
    positions = layout.positions(None, length, pad=-1)
    assert positions.shape[0] == shards
    held = positions[positions >= 0]
    assert sorted(held) == list(range(length))
    # No block has positions of two pieces.
    whole = layout.positions(None, length)
    assert (whole.max(-1) - whole.min(-1) < layout.piece).all()


def test_every_visible_pair_is_visited_once():
    """By going through the tables: each device's rows meet each key at most once."""
    mask = masks.window(9) | masks.prefix(5)
    found = schedule(mask, None, None, (50, 50), (4, 3), 4, gathered=False)
    rows, columns = (x.positions(None, 50, pad=-1) for x in (found.queries, found.keys))
    seen = np.zeros((50, 50), int)
    for n, i in np.ndindex(found.rounds.count, 4):
        order, start, _, stop = (x[n, i] for x in found.by_row)
        for row, queries in enumerate(rows[i]):
            for column in order[start[row] : stop[row]]:
                keys = columns[(i - found.rounds.first - n) % 4, column]
                seen[np.ix_(queries[queries >= 0], keys[keys >= 0])] += 1
    allowed = np.asarray(mask(np.arange(50)[:, None], np.arange(50)[None, :]))
    assert seen.max() == 1
    assert (seen[allowed] == 1).all()
    assert seen.sum() < 50 * 50


def test_the_busiest_devices_have_the_least_to_do():
    """Zigzag order for a causal mask, natural order where it would only cost exchanges."""

    def found(mask):
        return schedule(mask, None, None, (64, 64), (4, 4), 8, gathered=False)

    causal = found(masks.causal())
    assert causal.queries.pieces == 2
    assert (causal.blocks_per_round == causal.blocks_per_round[:, :1]).all()
    assert found(masks.full()).queries.pieces == 1
    assert found(masks.window(9)).queries.pieces == 1
