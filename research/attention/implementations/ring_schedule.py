"""Schedules the work of ring attention over devices, while tracing.

A sequence is laid out over devices in one of two orders. In natural order each device holds one
piece. In zigzag order device i holds two, the i-th from the front and the i-th from the back, which
balances the load under a causal mask (Llama Team 2024, Llama 3, section 3.3.2; Zhu 2024,
ring-flash-attention).

In each round a device uses the keys of one device, itself included, and all devices use keys from
the same distance around the ring (Liu et al. 2023, Ring Attention, section 3). Rounds that no
device needs are skipped.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from research.attention.implementations.blocks import Visits, index_blocks, list_visits
from research.attention.parts.masks import Mask


class Layout(NamedTuple):
    """How a sequence is laid out over devices.

    Attributes:
      shards: number of devices.
      pieces: pieces per device: 1 is natural order, 2 is zigzag order.
      piece: positions per piece, rounded up, so that the sequence may be padded.
      block: positions per block; no block spans two pieces.
    """

    shards: int
    pieces: int
    piece: int
    block: int

    @property
    def length(self) -> int:
        """The number of positions, padding included."""
        return self.shards * self.pieces * self.piece

    @property
    def shard_pieces(self) -> np.ndarray:
        """The indices of the pieces that each device holds, (shards, pieces)."""
        first = np.arange(self.shards)
        if self.pieces == 1:
            return first[:, None]
        return np.stack([first, 2 * self.shards - 1 - first], axis=1)

    def positions(self, index: Any, length: int, pad: int | None = None) -> Any:
        """Returns the positions on each device, (shards, blocks, block); see `index_blocks`."""
        pieces = index_blocks(index, length, self.piece, pad)
        missing = self.shards * self.pieces - len(pieces)
        xp = np if isinstance(pieces, np.ndarray) else jnp
        # With more devices than positions, some pieces are padding only.
        last = pieces[-1:, -1:] if pad is None else np.full((1, 1), pad)
        pieces = xp.concatenate([pieces, xp.broadcast_to(last, (missing, self.piece))])
        width = (0, -self.piece % self.block)
        if pad is None:
            pieces = xp.pad(pieces, ((0, 0), width), mode="edge")
        else:
            pieces = xp.pad(pieces, ((0, 0), width), constant_values=pad)
        return pieces[self.shard_pieces].reshape(self.shards, -1, self.block)


def make_layout(shards: int, pieces: int, length: int, block: int) -> Layout:
    """Returns the layout of a sequence, with at most `block` positions per block."""
    piece = -(-length // (shards * pieces))
    return Layout(shards, pieces, piece, min(block, piece))


class Rounds(NamedTuple):
    """The distance around the ring from which keys come in each round.

    Attributes:
      first: distance in the first round, in which device i uses the keys of device i - first.
      count: number of rounds; the distance grows by one per round.
      gathered: whether a single round uses the gathered keys of all devices instead.
    """

    first: int
    count: int
    gathered: bool


class Schedule(NamedTuple):
    """The work of every device in every round.

    Attributes:
      rounds: where the keys of each round come from.
      queries: layout of the queries.
      keys: layout of the keys.
      rows: positions of queries, (shards, rows, q_block).
      columns: positions of keys, (shards, columns, kv_block); if gathered (1, all columns, ...).
      real: whether a key exists (is not padding), of the same shape.
      by_row: the columns that each row visits, arrays (rounds, shards, ...).
      by_column: the rows that each column visits.
    """

    rounds: Rounds
    queries: Layout
    keys: Layout
    rows: Any
    columns: Any
    real: Any
    by_row: Visits
    by_column: Visits

    @property
    def blocks_per_round(self) -> np.ndarray:
        """The number of block pairs that each device computes in each round, (rounds, shards)."""
        return np.asarray(self.by_row.stop - self.by_row.start).sum(-1)


def schedule(
    mask: Mask, q_index: Any, kv_index: Any, lengths: tuple[int, int], blocks: tuple[int, int],
    shards: int, gathered: bool,
) -> Schedule:  # fmt: skip
    """Returns the faster of the schedules in natural and in zigzag order.

    The cost of a schedule is the work of the busiest device in a round, summed over the rounds.

    Args:
      mask: the pairs that are allowed.
      q_index: positions of the queries; 0 .. T-1 if None. If positions are traced, no block is
        skipped.
      kv_index: positions of the keys; 0 .. S-1 if None.
      lengths: T and S.
      blocks: the maximum block lengths of queries and keys.
      shards: number of devices.
      gathered: whether each device gathers all keys instead of passing them around.
    """
    given = (mask, q_index, kv_index, lengths, blocks, shards)
    return min((_schedule(*given, pieces, gathered) for pieces in (1, 2)), key=_cost)


def _cost(found: Schedule) -> int:
    """Returns the number of scores on the critical path: the busiest device of each round."""
    return int(found.blocks_per_round.max(1).sum()) * found.queries.block * found.keys.block


def _schedule(mask, q_index, kv_index, lengths, blocks, shards, pieces, gathered):
    queries = make_layout(shards, pieces, lengths[0], blocks[0])
    keys = make_layout(shards, 1 if gathered else pieces, lengths[1], blocks[1])
    rows = queries.positions(q_index, lengths[0])
    columns = keys.positions(kv_index, lengths[1])
    real = keys.positions(None, lengths[1], pad=-1) >= 0
    some, every = _classify(mask, rows, columns, real)
    if gathered:
        columns, real = (x.reshape(1, -1, keys.block) for x in (columns, real))
        pairs = zip(some, every, strict=True)
        rounds = Rounds(0, 1, True)
        # (rows of a device, all columns), for its only round.
        tables = [[(a.reshape(len(a), -1), b.reshape(len(b), -1)) for a, b in pairs]]
    else:
        rounds = _needed(some)
        tables = [
            [
                (some[i, :, j], every[i, :, j])
                for i, j in ((i, (i - rounds.first - n) % shards) for i in range(shards))
            ]
            for n in range(rounds.count)
        ]
    by_row = _stack([[list_visits(a, b) for a, b in each] for each in tables])
    by_column = _stack([[list_visits(a.T, b.T) for a, b in each] for each in tables])
    return Schedule(rounds, queries, keys, rows, columns, real, by_row, by_column)


def _classify(mask, rows, columns, real):
    """Returns two boolean arrays (shards, rows, shards, columns) over pairs of blocks.

    The first says whether any pair of positions is allowed, the second whether all are.
    """
    shape = (*rows.shape[:2], *columns.shape[:2])
    if not isinstance(rows, np.ndarray) or not isinstance(columns, np.ndarray):
        return np.ones(shape, bool), np.zeros(shape, bool)
    q_bounds = (x.reshape(-1, 1) for x in (rows.min(-1), rows.max(-1)))
    kv_bounds = (x.reshape(1, -1) for x in (columns.min(-1), columns.max(-1)))
    grid = (shape[0] * shape[1], shape[2] * shape[3])
    some, every = (np.broadcast_to(x, grid) for x in mask.classify_blocks(*q_bounds, *kv_bounds))
    some = some & real.any(-1).reshape(-1)
    every = every & some & real.all(-1).reshape(-1)
    return some.reshape(shape), every.reshape(shape)


def _needed(some: np.ndarray) -> Rounds:
    """Returns the shortest run of successive distances that covers all allowed pairs."""
    shards = len(some)
    reads = some.any((1, 3))
    distances = {int((i - j) % shards) for i, j in zip(*np.nonzero(reads), strict=True)} or {0}

    def count(first):
        return max((d - first) % shards for d in distances) + 1

    first = min(sorted(distances), key=count)
    return Rounds(first, count(first), False)


def _stack(visits: list[list[Visits]]) -> Visits:
    """Stacks visits to arrays (rounds, shards, ...), lists zero-padded to the longest."""
    longest = max(len(found.order) for each in visits for found in each)

    def stacked(field):
        arrays = [[getattr(found, field) for found in each] for each in visits]
        if field == "order":
            arrays = [[np.pad(x, (0, longest - len(x))) for x in each] for each in arrays]
        return np.stack([np.stack(each) for each in arrays]).astype(np.int32)

    return Visits(*(stacked(field) for field in Visits._fields))
