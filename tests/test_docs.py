"""Nothing is left out: pages in the contents, floors on the map, data files in the package.

`make docs` builds the site; it needs Sphinx, which the tests do not.
"""

import re
import tomllib

from tests.conftest import ROOT
from tests.test_architecture import FLOORS


def test_every_page_is_in_the_contents():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = {
        name
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL)
        for name in tree.splitlines()
    }
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages <= listed


def test_the_map_has_every_floor():
    text = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8")
    rows = {int(n): row for n, row in re.findall(r"^\| (\d) \| (.*) \|$", text, re.MULTILINE)}
    for module, floor in FLOORS.items():
        assert f"`{module.removeprefix('research.')}" in rows[floor], module


def test_the_package_has_its_data():
    """An installed copy reads files beside the code; a new one must be named in pyproject.toml."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    package = ROOT / "research"
    named = {
        path for pattern in tools["package-data"]["research"] for path in package.glob(pattern)
    }
    files = {p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert {p for p in files if p.suffix != ".py"} <= named
    folders = {p.parent for p in files if p.suffix == ".py"}
    assert all((folder / "__init__.py").exists() for folder in folders)
