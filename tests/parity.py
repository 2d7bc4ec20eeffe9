"""Comparisons with references, and the page of how far each is off.

    make parity

runs the tests that call `compare`, and writes docs/parity.md from what they found.
"""

import json
import os
import re
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from research.attention.parts.tables import TABLES
from research.attention.registry import MECHANISM_OPTIONS, MIXERS
from research.drawing.markdown import table
from research.mechanisms import TITLES

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "parity.md"
ROWS = "PARITY_ROWS"
"""The environment variable that names the file to which every comparison adds a line of JSON."""
COMPARING = ("tests.parity import compare", "tests.attention.in_torch import")
"""What a test file imports that compares: `compare`, or a helper that calls it."""
KINDS = ("outputs", "gradients", "decoded")
KNOWN = {"mixer": MIXERS, **TABLES}
OTHER, WHOLE = "Other options of softmax attention", "Whole models and other layers"

OTHERWISE = {
    "mask=prefix, mask=local, mask=dilated, mask=strided, mask=global, mask=longformer, "
    "mask=bigbird": "A pair is allowed or it is not: tests/attention/test_masks.py compares every "
    "pair with the mask's formula, and counts random links.",
    "position=none": "There is nothing to compute.",
    "output_gate=true": "A product: tests/attention/test_cross_attention.py multiplies by hand.",
}
"""{what is in no row: how it is checked}; a test has everything registered here or in a row."""

HEAD = """# Parity with references

Each mechanism, but for a few [at the end](#checked-otherwise), is compared with something that
computes the same another way: a published implementation with the same random weights, or the
paper's equations written a second time, in PyTorch or NumPy. Nothing is downloaded.

A figure is the largest difference of any entry, divided by the largest entry of what the reference
gives, over all tests of the row and all forms of the mechanism (parallel, in chunks, recurrent).
*Gradients* are those of the inputs and parameters, each divided by its own largest entry. *Decoded*
are outputs computed token by token, or in chunks, with the state. *dtype* is what we computed in:
single precision rounds at 6e-08, double at 1e-16. A dash: not compared with this reference; the
[conformance tests](../tests/attention/test_mixers.py) check gradients and decoding of every
mechanism against itself.

`make parity` runs these comparisons, which are tests that fail above a bound, and writes this page;
[tests/parity.py](../tests/parity.py) says how. It was written on a CPU, by programs that XLA did
not optimize, as the tests have them; others round differently.
"""


def of(library, what: str) -> str:
    """Returns the name of a reference in a library, with the version that is installed."""
    title = {"torch": "PyTorch"}.get(library.__name__, library.__name__)
    return f"{title} {library.__version__.split('+')[0]}, {what}"


def paper(mechanism: str, how: str) -> str:
    """Returns the source of a mechanism, by its first `key=name`, and how it was written here."""
    (key, name), *_ = names(mechanism)
    source = KNOWN[key][name].source if key in KNOWN else MECHANISM_OPTIONS[key].option.source
    return f"{source}; {how}"


def difference(found, expected) -> float:
    """Returns the largest difference of two arrays, relative to the largest expected entry."""
    a, e = (
        np.asarray(getattr(x, "detach", lambda x=x: x)(), np.float64) for x in (found, expected)
    )
    assert a.shape == e.shape, f"shapes {a.shape} and {e.shape}"
    far, top = np.abs(a - e).max(), np.abs(e).max()
    return float(far / top) if far else 0.0


def compare(mechanism, reference, *, outputs=None, gradients=None, decoded=None, tolerance=1e-5):
    """Asserts that arrays are those of a reference, to `tolerance` of its largest entry.

    Args:
        mechanism: `key=name` of the config, as in `model.pattern`, or the name of a whole model.
        reference: What the expected arrays are computed by; see `of`.
        outputs: (found, expected).
        gradients: {of what: (found, expected)}.
        decoded: The outputs of the decoder's steps and the expected ones.
        tolerance: Relative to the largest entry of each expected array.
    """
    given = {"outputs": outputs and {"": outputs}, "gradients": gradients}
    given["decoded"] = decoded and {"": decoded}
    row = {"mechanism": mechanism, "reference": reference}
    for kind, pairs in given.items():
        for name, (found, expected) in (pairs or {}).items():
            size = difference(found, expected)
            what = f"{mechanism}: {kind} {name}".rstrip()
            assert size <= tolerance, f"{what}: {size:.1e} > {tolerance:.1e} from {reference}"
            row[kind] = max(size, row.get(kind, 0.0))
            row.setdefault("dtype", str(found.dtype))
    if path := os.environ.get(ROWS):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def merged(rows: list[dict]) -> list[dict]:
    """Returns one row per mechanism, reference and dtype, with the largest over the cases."""
    found: dict[tuple, dict] = {}
    for row in rows:
        one = found.setdefault((row["mechanism"], row["reference"], row["dtype"]), {**row})
        one |= {k: max(row[k], one.get(k, 0.0)) for k in KINDS if k in row}
    return sorted(found.values(), key=place)


def names(mechanism: str) -> list[tuple[str, str]]:
    """Returns the config keys and values that a row's first column has."""
    return re.findall(r"(\w+)=([\w.]+)", mechanism)


def section(row: dict) -> str:
    """Returns the title of the section that a row belongs to."""
    first = re.match(r"(\w+)=", row["mechanism"])
    key = first[1] if first else ""
    titles = {"mixer": "Mixers", **TITLES, **dict.fromkeys(MECHANISM_OPTIONS, OTHER)}
    return titles.get(key, WHOLE)


def place(row: dict) -> tuple:
    """Returns what sorts rows: the order of the registry, then the text."""
    sections = ["Mixers", *TITLES.values(), OTHER]
    if section(row) == WHOLE:
        return len(sections), 0, row["mechanism"], row["reference"]
    (key, name), *_ = *names(row["mechanism"]), ("", "")
    order = list(KNOWN.get(key, MECHANISM_OPTIONS))
    which = name if key in KNOWN else key
    index = order.index(which) if which in order else len(order)
    return sections.index(section(row)), index, row["mechanism"], row["reference"]


def page(rows: list[dict]) -> str:
    """Returns the page as Markdown."""
    text, header = HEAD, ("mechanism", "reference", "dtype", *KINDS)
    found: dict[str, list] = {}
    for row in merged(rows):
        figures = [f"{row[k]:.0e}" if k in row else "-" for k in KINDS]
        one = (f"`{row['mechanism']}`", row["reference"], row["dtype"], *figures)
        found.setdefault(section(row), []).append(one)
    for title, lines in found.items():
        text += f"\n## {title}\n\n{table(header, lines)}"
    rows = [(f"`{key}`".replace(", ", "`, `"), how) for key, how in OTHERWISE.items()]
    return f"{text}\n## Checked otherwise\n\n{table(('mechanism', 'how'), rows)}"


class Comparing:
    """Leaves out the tests that compare with no reference."""

    def pytest_collection_modifyitems(self, config, items):
        kept = [item for item in items if compares(item.function)]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def compares(function) -> bool:
    """Returns whether a test calls `compare`, by itself or by a helper that its file names."""
    helpers = (function.__globals__.get(name) for name in function.__code__.co_names)
    codes = [function.__code__, *(h.__code__ for h in helpers if hasattr(h, "__code__"))]
    return any("compare" in code.co_names for code in codes)


def main() -> None:
    """Runs the comparisons and writes the page."""
    missing = [name for name in ("entmax", "torch", "transformers") if not find_spec(name)]
    if missing:
        sys.exit(f"not installed: {', '.join(missing)}; make parity installs what the tests need")
    found = TESTS.rglob("test_*.py")
    files = sorted(str(p) for p in found if any(name in p.read_text() for name in COMPARING))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        os.environ[ROWS] = str(path)
        if failed := pytest.main(["-p", "no:cacheprovider", *files], plugins=[Comparing()]):
            sys.exit(failed)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    PAGE.write_text(page(rows), encoding="utf-8")
    print(f"wrote docs/parity.md from {len(rows)} comparisons")


if __name__ == "__main__":
    main()
