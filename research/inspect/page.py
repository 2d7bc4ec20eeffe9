"""The inspect page: one HTML file that needs no network and runs no text of the data.

Its scripts and style are in inspect_assets; the browser lets only these run, by their hashes.
"""

import base64
import hashlib
from pathlib import Path

from research.drawing.markup import Html, el, join
from research.inspect.inspection import Inspection, legible
from research.inspect.payload import BUDGET, payload, script_json
from research.runs.store import write_text

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("data", "colours", "state", "overview", "frame", "map", "side", "text", "controls")
"""Files of the script, in the order in which they are joined."""


def render(inspection: Inspection, budget: int = BUDGET) -> str:
    """Returns the page.

    Args:
      inspection: what is shown.
      budget: bytes for the weights of all heads; see `research.inspect.payload`. The page
        says which maps had to be pooled.
    """
    script = "\n".join(_asset(f"{name}.js") for name in SCRIPTS)
    style = _asset("page.css")
    data, blobs = payload(inspection, budget)
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "title": el("title", legible(inspection.title)),
        "policy": el("meta", http_equiv="Content-Security-Policy", content=policy),
        "style": el("style", Html(style)),
        "header": _header(inspection),
        "data": el("script", Html(script_json(data)), type="application/json", id="data"),
        "blobs": join(el("script", Html(b), type="text/plain", id=n) for n, b in blobs.items()),
        "script": el("script", Html(script)),
    }
    # Split once, so that a "{{script}}" inside a title stays what it is.
    first, *pieces = _asset("page.html").split("{{")
    filled = [first]
    for piece in pieces:
        name, _, rest = piece.partition("}}")
        filled += [parts[name], rest]
    return "".join(filled)


def write_page(inspection: Inspection, path: Path, budget: int = BUDGET) -> None:
    """Writes the page; see `render`."""
    write_text(path, render(inspection, budget))


def _header(inspection: Inspection) -> Html:
    facts = inspection.facts.items()
    return el(
        "header",
        el("p", "Inside the attention of one run", class_="kicker"),
        el("h1", legible(inspection.title)),
        [el("p", legible(line), class_="note") for line in inspection.lines],
        _predictions(inspection),
        el(
            "dl",
            [el("div", el("dt", legible(k)), el("dd", legible(v))) for k, v in facts],
            class_="facts",
        )
        if facts
        else None,
    )


def _predictions(inspection: Inspection) -> Html | None:
    if not inspection.predictions:
        return None
    rows = [
        el(
            "li",
            el("span", legible(label), class_="label"),
            el("meter", f"{p:.3f}", value=f"{p:.6f}", min="0", max="1", aria_label=legible(label)),
            el("span", f"{100 * p:.1f} %", class_="number"),
        )
        for label, p in inspection.predictions
    ]
    return el("ol", rows, class_="predictions", aria_label="Predictions")


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
