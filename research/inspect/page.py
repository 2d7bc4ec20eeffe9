"""Renders the inspect page: one HTML file that needs no network and never executes data.

Its scripts and style are in `assets`; a Content-Security-Policy allows only these, by their hashes.
"""

from pathlib import Path

from markupsafe import Markup

from research.drawing.templates import fill, source_hash
from research.inspect.inspection import Inspection, legible
from research.inspect.payload import BUDGET, payload, script_json
from research.runs.store import write_text

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("data", "colours", "state", "overview", "frame", "map", "side", "text", "controls")
"""Files of the script, in the order to concatenate them in."""


def render(inspection: Inspection, budget: int = BUDGET) -> str:
    """Returns the HTML of the page.

    Args:
      inspection: the data to show.
      budget: bytes for the weights of all heads; see `research.inspect.payload`. The page
        says which maps had to be pooled.
    """
    script = "\n".join(_asset(f"{name}.js") for name in SCRIPTS)
    style = _asset("page.css")
    data, blobs = payload(inspection, budget)
    policy = (
        f"default-src 'none'; script-src '{source_hash(script)}'; "
        f"style-src '{source_hash(style)}'; base-uri 'none'; form-action 'none'"
    )
    values = {
        "title": legible(inspection.title),
        "policy": policy,
        "style": Markup(style),
        "lines": [legible(line) for line in inspection.lines],
        "predictions": [(legible(label), p) for label, p in inspection.predictions],
        "facts": [(legible(key), legible(value)) for key, value in inspection.facts.items()],
        "data": Markup(script_json(data)),
        "blobs": {name: Markup(text) for name, text in blobs.items()},
        "script": Markup(script),
    }
    return fill(ASSETS / "page.html", values)


def write_page(inspection: Inspection, path: Path, budget: int = BUDGET) -> None:
    """Writes the page; see `render`."""
    write_text(path, render(inspection, budget))


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
