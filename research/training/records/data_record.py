"""Records which data a run used, and checks that they have not changed.

data.json has the sha256 of every file that the task read. It is not part of the config, so a run's
id does not depend on where files are or who made them. Other artifacts of a task (its tokenizer,
facts about its corpus) are compared as well.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.errors import UserError
from research.runs.store import CONFIG, DATA, read_json, write_json, write_text
from research.tasks.digests import difference, without_common_folder
from research.tasks.task import Task
from research.tasks.text.tokenizer import CORPUS, FILE, from_json

HELP = "Put the old data back, or train in another --workdir."


def write_data(task: Task, run: Path) -> None:
    """Writes the task's artifacts and data.json into a run directory."""
    for name, text in task.artifacts().items():
        write_text(run / name, text)
    if task.files:
        write_json(run / DATA, {"files": dict(task.files)})


def recorded_files(run: Path) -> dict[str, str] | None:
    """Returns {name: sha256} of the files that a run read, or None if it has no record of them."""
    record = read_json(run / DATA)
    if record is not None:
        return record["files"]
    # Runs older than data.json list text files in corpus.json, possibly with absolute paths.
    old = (read_json(run / CORPUS) or {}).get("sha256")
    if not isinstance(old, Mapping):
        return None
    return dict(zip(without_common_folder(list(old)), old.values(), strict=True))


def check_same_files(task: Task, run: Path) -> None:
    """Raises UserError if the files that a run read differ from those that `task` read."""
    there = recorded_files(run)
    if there is not None and (changed := difference(there, task.files)):
        raise UserError(f"{run}: the data changed since the run began: {changed}. {HELP}")


def check_same_data(task: Task, run: Path) -> None:
    """Raises UserError if a run's data differ from those of `task`.

    Accepts directories without a run, and runs too old to have a record.
    """
    if not (run / CONFIG).exists():
        return
    check_same_files(task, run)
    for name, text in task.artifacts().items():
        path = run / name
        # "replace", because a truncated file may end within a character; it must count as changed,
        # not raise.
        if path.exists() and not _same(name, path.read_bytes().decode(errors="replace"), text):
            raise UserError(f"{run}: the data changed since the run began ({name} differs). {HELP}")


def _same(name: str, there: str, here: str) -> bool:
    """Returns whether two versions of an artifact agree; corpus.json only on their common keys."""
    if name not in (CORPUS, FILE) or there == here:
        return there == here
    try:
        if name == FILE:  # another version may have written the same tokenizer differently
            return from_json(there).to_json() == here
        old, new = (_facts(json.loads(text)) for text in (there, here))
    except Exception:  # a damaged file; the tokenizers library raises nothing more specific
        return False
    return all(old[key] == new[key] for key in old.keys() & new.keys())


def _facts(known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of corpus.json without the digests of files that are compared as such."""
    return {
        k: v
        for k, v in known.items()
        if k != "tokenizer" and (k != "sha256" or not isinstance(v, Mapping))
    }
