"""Rules of the code base that no single module can hold by itself."""

import ast
import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

RESEARCH = sorted((ROOT / "research").rglob("*.py"))
ATTENTION = sorted((ROOT / "research" / "attention").rglob("*.py"))


@functools.cache
def imported(tree: ast.AST) -> set[str]:
    """Returns the modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
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


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def offenders(paths: list[Path], found: Callable[[ast.Module], list[str]]) -> dict[str, list[str]]:
    """Returns what is found in the files where something is, by file."""
    every = {str(path.relative_to(ROOT)): found(parsed(path)) for path in paths}
    return {name: wrong for name, wrong in every.items() if wrong}


def imports(*packages: str) -> Callable[[ast.Module], list[str]]:
    """Returns what finds imports of the packages in a file."""
    return lambda tree: [m for m in sorted(imported(tree)) if any(below(m, p) for p in packages)]


def test_there_are_files_to_check():
    assert len(RESEARCH) > len(ATTENTION) > 40


def test_imports_are_absolute():
    """So that the other tests can read them."""

    def relative(tree):
        nodes = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
        return [f"line {node.lineno}" for node in nodes if node.level]

    assert not offenders(RESEARCH, relative)


def test_research_does_not_import_what_uses_it():
    assert not offenders(RESEARCH, imports("configs", "experiments", "tests", "benchmarks"))


def test_attention_stands_alone():
    def others(tree):
        # `from research import attention` would list "research" itself.
        ours = [m for m in imports("research")(tree) if not below(m, "research.attention")]
        return ours + imports("flax", "ml_collections")(tree)

    assert not offenders(ATTENTION, others)


def test_reading_results_needs_no_jax():
    names = ("experiment", "loading", "store", "claims", "report")
    paths = [ROOT / "research" / "ablation" / f"{name}.py" for name in names]
    assert not offenders(paths, imports("jax"))


def test_what_is_public_has_a_docstring():
    def missing(tree):
        module = [] if ast.get_docstring(tree) or not tree.body else ["the module"]
        # A command's main() is described by its module.
        return module + [name for name in undocumented(tree) if name != "main"]

    assert not offenders(RESEARCH, missing)


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
