"""Which run is which cell of a sweep: written by the sweep, read by reports.

cells.json lists the cells of a whole sweep, cells-I-of-N.json those of one of its N shards. A shard
writes no cells but its own, so that shards that finish together cannot overwrite what the other has
found out. No lock is needed, which directories shared by several machines may not have.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from research.ablation.measure import point_key
from research.runs.store import read_json, write_json

WHOLE = "cells.json"
NAME = re.compile(r"cells(-\d+-of-\d+)?\.json")


def write_cells(workdir: Path, rows: Sequence[Mapping], index: int = 0, count: int = 1) -> None:
    """Writes the rows of a sweep's cells, or of its shard `index` (from 0) of `count`."""
    name = WHOLE if count == 1 else f"cells-{index + 1}-of-{count}.json"
    write_json(workdir / name, list(rows))


def read_cells(workdir: Path) -> list[dict]:
    """Returns the rows that all shards have written; [] before any has.

    Of an arm at a point that several files list, as when a sweep goes on in another number of
    shards, the file that was written last counts. Raises UserError for a damaged file.
    """
    found = [path for path in workdir.glob("cells*.json") if NAME.fullmatch(path.name)]
    rows: dict[tuple, list[dict]] = {}
    for path in sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name)):
        listed: dict[tuple, list[dict]] = {}
        for row in read_json(path) or ():
            listed.setdefault((row["arm"], point_key(row["point"])), []).append(row)
        rows |= listed
    return [row for of_arm in rows.values() for row in of_arm]
