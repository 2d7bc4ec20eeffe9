"""Keeps the results of each test item, for the sampling error of the test set."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from research.runs.store import ITEMS, write_arrays
from research.training.step import Evaluated


def write_items(run: Path, found: Mapping[str, Evaluated | None], member: int) -> None:
    """Writes items.npz of one member, if there are items.

    It has "id" (N,) uint32, ascending, which is the same for runs that share a test set, and for
    every scalar metric of the task WHICH.METRIC.total and WHICH.METRIC.count, (N,) float32. Rows
    that only fill up a batch are left out.

    Args:
      run: the run directory.
      found: {"best" or "final": results on the test split}; None without one.
      member: index of the member.
    """
    there = {which: e for which, e in found.items() if e is not None and e.ids is not None}
    if not there:
        return
    arrays = {
        f"{which}.{name}.{part}": np.asarray(getattr(sums, part))[member]
        for which, evaluated in there.items()
        for name, sums in evaluated.items.items()
        for part in sums._fields
    }
    counted = np.any([a > 0 for name, a in arrays.items() if name.endswith(".count")], axis=0)
    ids = np.asarray(next(iter(there.values())).ids)[member][counted]
    # Batches of another size would have the items in another order.
    order = np.argsort(ids, kind="stable")
    write_arrays(
        run / ITEMS, {"id": ids[order], **{k: a[counted][order] for k, a in arrays.items()}}
    )
