"""What is not in the locked requirements is never needed to collect the tests."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.commands import ROOT

OPTIONAL = (
    "torch",
    "transformers",
    "entmax",
    "libtpu",
    "selenium",
    "datasets",
    "pyarrow",
    "zstandard",
    "wandb",
    "lm_eval",
)
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
# What files import that tests import.
IMPORTED = ("research", "configs", "experiments", "tests")


def run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Yields what runs when a file is imported, in order: all that is outside of functions."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from run_at_import(child)


def needed(source: str) -> set[str]:
    """Returns the optional packages without which a file cannot be imported, and is not skipped."""
    found, skipped = set(), set()
    for node in run_at_import(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.importorskip":
            skipped.add(node.args[0].value)
        found |= {name.split(".")[0] for name in names} - skipped
    return found & set(OPTIONAL)


def test_no_file_needs_an_optional_package_to_be_imported():
    files = [path for folder in IMPORTED for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 300
    assert not {str(path): need for path in files if (need := needed(path.read_text("utf-8")))}


def test_what_a_file_needs():
    assert needed("if True:\n    import torch.nn\nfrom wandb import x\nimport jax") == {
        "torch",
        "wandb",
    }
    assert not needed("def f():\n    import torch\nfrom . import torch")
    assert not needed("import pytest\nt = pytest.importorskip('torch')\nfrom torch import nn")
    assert needed("import torch\nimport pytest\npytest.importorskip('torch')") == {"torch"}


@pytest.mark.slow
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
