"""What the engines write, against files that people have read.

To write them again after a change, and read the difference in git:

    ATTEST_GOLDEN=write .venv/bin/python -m pytest tests/cloud/launch/test_golden.py
"""

import os
import shutil
from pathlib import Path

import pytest

from tests.cloud.launch.engine_cases import CASES, contents, launched

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_what_was_read(case):
    made = contents(launched(*CASES[case]))
    folder = GOLDEN / case
    if os.environ.get("ATTEST_GOLDEN") == "write":
        shutil.rmtree(folder, ignore_errors=True)
        for name, text in made.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
    found = {p.relative_to(folder): p for p in folder.rglob("*") if p.is_file()}
    assert set(found) == set(made)
    for name, path in found.items():
        assert path.read_text(encoding="utf-8") == made[name], name


def test_no_golden_file_is_without_a_case():
    assert {p.name for p in GOLDEN.iterdir()} == set(CASES)
