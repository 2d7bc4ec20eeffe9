"""What is not in the locked requirements is never needed to collect the tests."""

import os
import subprocess
import sys

from tests.commands import ROOT

OPTIONAL = ("torch", "transformers", "entmax", "libtpu", "selenium", "datasets", "pyarrow", "wandb")
# Stands in for a machine without these packages: the import system finds none of them.
WITHOUT = f"""
import sys
from importlib.machinery import PathFinder
import pytest

find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: (
    None if name.split(".")[0] in {OPTIONAL!r} else find(name, *rest)
)
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider"]))
"""


def test_all_tests_are_collected_without_optional_packages():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        cwd=ROOT,
        env=os.environ | {"PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "error" not in done.stdout.splitlines()[-1], done.stdout[-300:]
