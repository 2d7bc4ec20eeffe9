"""Rules of the code base that no single module can hold by itself."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

RESEARCH = sorted((ROOT / "research").rglob("*.py"))
ATTENTION = sorted((ROOT / "research" / "attention").rglob("*.py"))


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(tree: ast.AST) -> set[str]:
    """Returns the modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that this test can read them"
            found |= {node.module or "", *(f"{node.module}.{a.name}" for a in node.names)}
    return found


def below(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def undocumented(tree: ast.Module) -> list[str]:
    """Returns the public module-level functions and classes without a docstring."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [
        node.name
        for node in tree.body
        if isinstance(node, kinds) and not node.name.startswith("_") and not ast.get_docstring(node)
    ]


@pytest.mark.parametrize("path", RESEARCH, ids=short)
def test_research_does_not_import_what_uses_it(path):
    modules = imported(ast.parse(path.read_text()))
    users = ("configs", "experiments", "tests", "benchmarks")
    assert not [m for m in modules for user in users if below(m, user)]


@pytest.mark.parametrize("path", ATTENTION, ids=short)
def test_attention_stands_alone(path):
    modules = imported(ast.parse(path.read_text()))
    ours = [m for m in modules if below(m, "research") and not below(m, "research.attention")]
    # `from research import attention` would list "research" itself.
    assert not ours
    assert not [m for m in modules if below(m, "flax") or below(m, "ml_collections")]


@pytest.mark.parametrize("name", ["experiment", "loading", "store", "claims", "report"])
def test_reading_results_needs_no_jax(name):
    path = ROOT / "research" / "ablation" / f"{name}.py"
    assert not [m for m in imported(ast.parse(path.read_text())) if below(m, "jax")]


@pytest.mark.parametrize("path", RESEARCH, ids=short)
def test_what_is_public_has_a_docstring(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or not tree.body
    # A command's main() is described by its module.
    missing = [n for n in undocumented(tree) if n != "main"]
    assert not missing


@pytest.mark.parametrize(
    ("code", "modules"),
    [
        ("import configs.base", {"configs.base"}),
        ("from configs import base", {"configs", "configs.base"}),
        ("def f():\n    from tests.small import x", {"tests.small", "tests.small.x"}),
    ],
)
def test_the_checks_see_every_form_of_import(code, modules):
    assert imported(ast.parse(code)) == modules
