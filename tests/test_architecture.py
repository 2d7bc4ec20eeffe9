"""Rules of the code base that no single module can hold by itself."""

import ast
import functools
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter
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


FLOORS = {
    "research.errors": 1,
    "research.messages": 1,
    "research.options": 1,
    "research.attention": 1,
    "research.stats": 1,
    "research.runs": 1,
    "research.tasks.task": 1,
    "research.configuration": 2,
    "research.drawing": 2,
    "research.losses": 2,
    "research.parallel": 2,
    "research.tasks": 2,
    "research.models": 3,
    "research.decoding": 4,
    "research.interpret": 5,
    "research.training": 6,
    "research.ablation": 7,
    "research.inspect": 7,
    "research.pretrained": 7,
    "research.cloud": 8,
    "research.command_line": 8,
    "research.report": 8,
}
"""A file imports what is on lower floors and what is in its own folder. Commands are above all."""
COMMANDS = 9
# Files of the lowest floor that all others may use: what a config declares, what goes wrong.
EVERYWHERE = ("research.errors", "research.options")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in RESEARCH}


def imported_files(module: str) -> set[str]:
    """Returns the modules of the project that a module imports, for types only included."""
    found = set()
    for node in ast.walk(parsed(MODULES[module])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            # A package is imported for its own names, not for the modules in it.
            found |= submodules & set(MODULES) or {node.module or ""}
    return found & set(MODULES)


def room(module: str) -> tuple[int, str]:
    """Returns the floor of a module and its folder on it."""
    if module.endswith("__main__"):
        return COMMANDS, module
    parents = [module.rsplit(".", i)[0] for i in range(module.count(".") + 1)]
    folder = next((name for name in parents if name in FLOORS), module)
    return FLOORS.get(folder, COMMANDS), folder


def test_every_folder_has_a_floor():
    folders = {m for m, path in MODULES.items() if path.name == "__init__.py" and m.count(".") == 1}
    assert folders <= set(FLOORS)


def test_imports_point_down():
    upward = [
        f"{module} -> {other}"
        for module in MODULES
        for other in imported_files(module)
        if other not in EVERYWHERE and room(other)[1] != room(module)[1]
        if room(other)[0] >= room(module)[0]
    ]
    assert not upward


def test_no_two_files_import_each_other():
    graph = {module: imported_files(module) for module in MODULES}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"these import each other in a circle: {' -> '.join(error.args[1])}")


def test_attention_stands_alone():
    def others(tree):
        # `from research import attention` would list "research" itself.
        allowed = ("research.attention", "research.options")
        ours = [m for m in imports("research")(tree) if not any(below(m, a) for a in allowed)]
        return ours + imports("flax", "ml_collections")(tree)

    assert not offenders(ATTENTION, others)


def test_reading_results_needs_no_jax():
    names = ("ablation.experiment", "ablation.loading", "ablation.claims", "runs", "report")
    paths = [path for m, path in MODULES.items() if any(below(m, f"research.{n}") for n in names)]
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
