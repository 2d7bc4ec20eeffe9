"""Makes validation and test splits for a corpus that has none.

A hash of their content decides which examples are held out, so the splits depend neither on the
order of the examples nor on the seed of a run. Examples that share a key (text, speaker...) stay in
the same split.
"""

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from research.errors import UserError

SEED = "held out 1"
"""Prefix of the hashed text; changing it changes the splits of every corpus without its own."""
MAX_HELD_OUT = 1000
"""Maximum number of held-out examples for validation, and for test."""
HELD_OUT_EVERY = 20
"""One in this many examples is held out for validation and one for test, up to `MAX_HELD_OUT`."""
PARTS = ("validation", "test")


def connected_groups(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """Returns the group of each of N examples: the connected components linked by shared keys.

    Args:
      keys: for each example, the keys that must not occur on both sides of a split.
    """
    number: dict[Hashable, int] = {}
    pairs = [
        (i, number.setdefault(key, len(number))) for i, some in enumerate(keys) for key in some
    ]
    rows, columns = np.array(pairs, int).reshape(-1, 2).T
    size = len(keys) + len(number)
    links = coo_array((np.ones(len(rows), bool), (rows, columns + len(keys))), shape=(size, size))
    return connected_components(links, directed=False)[1][: len(keys)].tolist()


def normalize_text(text: str) -> str:
    """Normalizes case and spaces, so that texts which differ only in these become equal."""
    return " ".join(text.casefold().split())


def hold_out(
    names: Sequence[str],
    groups: Sequence[int],
    labels: Sequence[str] = (),
    parts: Sequence[str] = PARTS,
) -> list[str]:
    """Returns the split of each of N examples: "train" or one of `parts`.

    Each part gets N / 20 examples, at most 1,000, from groups in the order of their hashes. Groups
    larger than the remaining quota stay in training, except that the smallest of them are taken if
    a part would otherwise get less than half of its quota. With labels the quota is divided in
    proportion among labels, with at least one example of each label that has enough groups; a group
    counts under its commonest label. A group with all examples of a label stays in training.

    Args:
      names: text that identifies each example, which is hashed.
      groups: group index of each example, see `connected_groups`.
      labels: label of each example; empty for none.
      parts: names of the held-out splits.

    Raises UserError if there are not enough groups.
    """
    members: dict[int, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    order = sorted(members.values(), key=lambda some: _hash(min(names[i] for i in some)))
    quota = min(len(names) // HELD_OUT_EVERY, MAX_HELD_OUT) / len(names)
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
            f"{len(order):,} group(s) that must each stay in one split; give a file for each split."
        )
    return splits


def _chosen(groups: Sequence[list[int]], wanted: int, parts: int) -> list[list[list[int]]]:
    """Returns the groups of each part, about `wanted` examples each; none if groups are too few.

    Args:
      groups: groups of example indices, in the order in which to take them.
      wanted: number of examples per part.
      parts: number of parts.
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
    # The sort is stable, so groups of equal size keep the order of their hashes.
    smallest = sorted(rest, key=len)
    for part in range(parts):
        while 2 * left[part] > wanted and len(smallest) > 1:
            found[part].append(smallest.pop(0))
            left[part] -= len(found[part][-1])
    return found


def _hash(name: str) -> bytes:
    return hashlib.sha256(f"{SEED}\n{name}".encode()).digest()
