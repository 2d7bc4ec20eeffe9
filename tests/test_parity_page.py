"""The page of parity has everything that is registered, and comparisons can fail."""

import json

import numpy as np
import pytest

from research.attention.parts.tables import TABLES
from research.attention.registry import MECHANISM_OPTIONS, MIXERS
from research.training.schema import every_key
from tests import parity

TABLES_OF = {"mixer": MIXERS, **TABLES}


def of_page():
    """{(key, value)} of the first columns of the committed page's rows."""
    lines = parity.PAGE.read_text(encoding="utf-8").splitlines()
    return {
        pair for line in lines for pair in parity.names(line.split("|")[1] if "|" in line else "")
    }


def test_every_mechanism_is_compared_or_it_says_how_it_is_checked():
    pairs = of_page()
    for key, table in TABLES_OF.items():
        missing = set(table) - {value for k, value in pairs if k == key}
        assert not missing, f"{key}: {missing}: compare them (tests/parity.py), then make parity"
    missing = set(MECHANISM_OPTIONS) - {key for key, _ in pairs}
    assert not missing, f"{missing}: compare them (tests/parity.py), then make parity"


def test_what_the_page_names_there_is():
    keys = {key.removeprefix("model.") for key in every_key()}
    for key, value in of_page():
        assert key in keys, key
        assert key not in TABLES_OF or value in TABLES_OF[key], f"{key}={value}"


def test_what_is_checked_otherwise_is_in_no_row():
    page = parity.PAGE.read_text(encoding="utf-8").split("## Checked otherwise")[0]
    for key, value in parity.names(" ".join(parity.OTHERWISE)):
        assert f"`{key}={value}" not in page


@pytest.mark.parametrize("kind", ["outputs", "gradients", "decoded"])
def test_a_comparison_fails_above_its_bound(kind):
    expected = np.array([1.0, -4.0])
    for more, fails in ((3e-5, False), (5e-5, True), (np.nan, True)):
        pair = expected + [more, 0], expected
        given = {kind: {"k": pair} if kind == "gradients" else pair}
        if fails:
            with pytest.raises(AssertionError, match=f"mixer=gru: {kind}.* > 1.0e-05 from a loop"):
                parity.compare("mixer=gru", "a loop", **given)
        else:
            parity.compare("mixer=gru", "a loop", **given)
    with pytest.raises(AssertionError, match="shapes"):
        parity.compare("mixer=gru", "a loop", outputs=(expected, expected[None]))


def test_a_row_has_the_largest_difference_of_its_cases(tmp_path, monkeypatch):
    monkeypatch.setenv(parity.ROWS, str(tmp_path / "rows"))
    one = np.float32([2.0])
    for size in (1e-6, 4e-6, 2e-6):
        row = "position=rope, num_kv_heads=2", "a | loop"
        parity.compare(*row, outputs=(one + np.float32(size), one))
        parity.compare(*row, gradients={"x": (one, one)})
    parity.compare("Llama", "theirs", decoded=(one, one))
    parity.compare("mixer=gru", "torch", outputs=(one, one))
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    text = parity.page(rows)
    assert "| `position=rope, num_kv_heads=2` | a \\| loop | float32 | 2e-06 | 0e+00 | - |" in text
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        "## Mixers",
        "## Positions",
        "## Whole models and other layers",
        "## Checked otherwise",
    ]
