"""Holding out part of a corpus that has no splits of its own.

Which examples are held out follows from a hash of what they are, so neither their order nor a
period in it matters, nor does the seed of a run: all runs have the same splits. What belongs
together is held out together, or not at all.
"""

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from research.errors import UserError

SEED = "held out 1"
"""Of the hash; every corpus without splits has other ones when it changes."""
MOST = 1000
"""Examples that are held out for validation and for test, each."""
EVERY = 20
"""One of so many is held out for validation and one for test, up to `MOST`."""
PARTS = ("validation", "test")


def together(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """Returns the group of each of N examples: connected components by the keys that they share.

    Args:
      keys: of each example, whatever must not be on both sides of a split.
    """
    number: dict[Hashable, int] = {}
    pairs = [
        (i, number.setdefault(key, len(number))) for i, some in enumerate(keys) for key in some
    ]
    rows, columns = np.array(pairs, int).reshape(-1, 2).T
    size = len(keys) + len(number)
    links = coo_array((np.ones(len(rows), bool), (rows, columns + len(keys))), shape=(size, size))
    return connected_components(links, directed=False)[1][: len(keys)].tolist()


def same_text(text: str) -> str:
    """Returns what is equal for texts that differ in case and spaces only."""
    return " ".join(text.casefold().split())


def hold_out(
    names: Sequence[str],
    groups: Sequence[int],
    labels: Sequence[str] = (),
    parts: Sequence[str] = PARTS,
) -> list[str]:
    """Returns the split of each of N examples: "train" or one of `parts`.

    Each part gets N / 20 examples, at most 1,000, of the groups in the order of their hashes. A
    group that is larger than what is left of that stays in training, but for the smallest ones
    where a part would have less than half. With labels that is done for each label, in proportion,
    at least one where a label has enough groups (a group has its commonest label); a group that has
    all there is of a label stays in training.

    Args:
      names: what each example is, such as its text; they decide the hashes.
      groups: number of the group of each, see `together`.
      labels: of each, if they have any.
      parts: what is held out.

    Raises UserError when there are not enough groups.
    """
    members: dict[int, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    order = sorted(members.values(), key=lambda some: _hash(min(names[i] for i in some)))
    quota = min(len(names) // EVERY, MOST) / len(names)
    whole = Counter(labels)
    strata: dict[str, list[list[int]]] = {}
    for some in order:
        mine = Counter(labels[i] for i in some) if labels else {"": 1}
        if all(number != whole[label] for label, number in mine.items()):
            commonest = min(mine, key=lambda label: (-mine[label], label))
            strata.setdefault(commonest, []).append(some)
    splits = ["train"] * len(names)
    for some in strata.values():
        wanted = max(1, round(quota * sum(map(len, some))))
        for part, chosen in zip(parts, _chosen(some, wanted, len(parts)), strict=True):
            for i in (i for group in chosen for i in group):
                splits[i] = part
    missing = {"train", *parts} - set(splits)
    if missing:
        raise UserError(
            f"nothing is left for {' and '.join(sorted(missing))}: the {len(names):,} examples are "
            f"{len(order):,} group(s) of what belongs together; give files for each split."
        )
    return splits


def _chosen(groups: Sequence[list[int]], wanted: int, parts: int) -> list[list[list[int]]]:
    """Returns the groups of each part: of about `wanted` examples, nothing where there are too few.

    Args:
      groups: in the order in which they are taken.
      wanted: examples of a part.
      parts: how many there are.
    """
    found: list[list[list[int]]] = [[] for _ in range(parts)]
    if len(groups) <= parts:
        return found
    left, rest = [wanted] * parts, []
    for group in groups:
        emptiest = max(range(parts), key=lambda part: left[part])
        if len(group) <= left[emptiest]:
            found[emptiest].append(group)
            left[emptiest] -= len(group)
        else:
            rest.append(group)
    # The sort is stable: among groups of one size the hash decides.
    smallest = sorted(rest, key=len)
    for part in range(parts):
        while 2 * left[part] > wanted and len(smallest) > 1:
            found[part].append(smallest.pop(0))
            left[part] -= len(found[part][-1])
    return found


def _hash(name: str) -> bytes:
    return hashlib.sha256(f"{SEED}\n{name}".encode()).digest()
