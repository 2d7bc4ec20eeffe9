"""Builds the documentation: the pages beside this file, and an API page to each package.

    make docs

The pages are written to be read on a code host too, so they link to files of the repository by
relative paths. On the site a link to a module leads to its API page. A link to another file leads
to `SOURCE_URL/path` if that variable is set, and is plain text otherwise.
"""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
SOURCE_URL = os.environ.get("SOURCE_URL", "").rstrip("/")

project = "Attest"
copyright = "the Attest authors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.apidoc", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "Attest"
exclude_patterns = ["api/modules.rst"]  # a table of contents of the one page api/research
myst_heading_anchors = 3
default_role = "code"

# Commands define flags of the same name, so no process can import two of them; --help has their
# documentation.
COMMANDS = [
    f"../{path.relative_to(ROOT)}"
    for path in (ROOT / "research").rglob("*.py")
    if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
]
apidoc_modules = [
    {
        "path": "../research",
        "destination": "api",
        "exclude_patterns": COMMANDS,
        "module_first": True,
    }
]
autodoc_default_options = {"members": True, "member-order": "bysource", "undoc-members": False}
autodoc_typehints_format = "short"
toc_object_entries = False
napoleon_use_ivar = True
# Docstrings are plain text with `code` in it, not reStructuredText, so its parser has complaints.
suppress_warnings = ["docutils", "ref.python"]

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(\.\./([^)#]+)(#[^)]*)?\)")


def link_to_source(app, docname, source):
    """Turns links out of docs/ into links to API pages, to the repository, or into text."""

    def replaced(match):
        text, path, _ = match.groups()
        module = ROOT / path
        if path.startswith("research/") and (module.is_dir() or module.suffix == ".py"):
            name = path.removesuffix(".py").rstrip("/").replace("/", ".")
            return f"{{py:mod}}`{text.strip('`')} <{name}>`"
        return f"[{text}]({SOURCE_URL}/{path})" if SOURCE_URL else text

    source[0] = LINK.sub(replaced, source[0])


def escape_docstring(app, what, name, obj, options, lines):
    """Escapes what reStructuredText would take for markup, outside of `code`."""
    for number, line in enumerate(lines):
        parts = re.split(r"(`+[^`]*`+)", line)
        parts[::2] = (re.sub(r"([|*\\])|(?<=\w)(_)(?!\w)", r"\\\g<0>", part) for part in parts[::2])
        lines[number] = "".join(parts)


def setup(app):
    """Registers both; docstrings are escaped before napoleon, which adds markup, reads them."""
    app.connect("source-read", link_to_source)
    app.connect("autodoc-process-docstring", escape_docstring, priority=400)
