"""Maps runs to the cells of a sweep: the sweep writes the files, reports read them.

cells.json lists the cells of a whole sweep, cells-I-of-N.json the cells of shard I of N. Each shard
writes only its own file, so shards that finish at the same time cannot overwrite each other. This
needs no file lock, which a directory shared by several machines may not support.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from research.ablation.measure import point_key
from research.runs.store import read_json, write_json

WHOLE = "cells.json"
NAME = re.compile(r"cells(-\d+-of-\d+)?\.json")


def write_cells(workdir: Path, rows: Sequence[Mapping], index: int = 0, count: int = 1) -> None:
    """Writes the rows of a sweep's cells, or those of its shard `index` (from 0) of `count`."""
    name = WHOLE if count == 1 else f"cells-{index + 1}-of-{count}.json"
    write_json(workdir / name, list(rows))


def read_cells(workdir: Path) -> list[dict]:
    """Returns the rows that all shards have written so far; [] if there are none.

    Several files may list the same arm and point, for example after a sweep was resumed with
    another number of shards; the file written last wins. Raises UserError for a damaged file.
    """
    found = [path for path in workdir.glob("cells*.json") if NAME.fullmatch(path.name)]
    rows: dict[tuple, list[dict]] = {}
    for path in sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name)):
        listed: dict[tuple, list[dict]] = {}
        for row in read_json(path) or ():
            listed.setdefault((row["arm"], point_key(row["point"])), []).append(row)
        rows |= listed
    return [row for of_arm in rows.values() for row in of_arm]
