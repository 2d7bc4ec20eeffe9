"""The report's page in a browser: nothing is cut off, and arms are found by their name."""

from dataclasses import replace

import pytest

from research.report.write import write_report
from tests import browser as chromium
from tests.report.synthetic_sweep import build, plausible
from tests.report.test_figures import MANY

pytestmark = pytest.mark.skipif(not chromium.AVAILABLE, reason="needs chromium and chromedriver")
HOSTILE = "<img src=x onerror=\"document.title='ran'\">"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    experiment = replace(MANY, arms={**MANY.arms, HOSTILE: {"model.mixer": HOSTILE}})
    build(folder, experiment, lambda arm, *cell: plausible(0.4 + len(arm) % 7 / 10, cell[-1]))
    write_report(folder)
    return folder / "report.html"


@pytest.fixture(scope="module", params=[1300, 400])
def window(request, page):
    with chromium.browser() as one:
        # A window has a least width; a frame has none.
        one.call("POST", "/window/rect", {"width": request.param, "height": 900})
        one.open(page)
        yield one


def test_nothing_is_wider_than_the_window(window):
    width, page = window.run("return [innerWidth, document.documentElement.scrollWidth]")
    assert page <= width
    assert window.console() == []
    if width > 1200:
        table, room = window.run(
            "const box = document.querySelector('#results .scroller');"
            "return [box.scrollWidth, box.clientWidth]"
        )
        assert table <= room


def test_arms_are_found_by_their_name(window):
    search = (
        "const find = document.getElementById('find'); find.value = arguments[0];"
        "find.dispatchEvent(new Event('input'));"
        "return [...document.querySelectorAll('.chip:not([hidden])')].map((c) => c.textContent)"
    )
    assert window.run(search, "MASK") == [f"mask {i}" for i in range(4)]
    front = (
        "return [...new Set([...document.querySelectorAll('figure .front')].map((p) => "
        "p.querySelector('title').textContent))]"
    )
    assert sorted(window.run(front)) == [f"mask {i}" for i in range(4)]
    assert len(window.run(search, "")) == len(MANY.arms) + 1
    assert window.run(front) == []


def test_names_are_text(window):
    assert not window.run("return document.querySelectorAll('img').length")
    assert HOSTILE in window.run("return document.querySelector('#results').textContent")
    assert window.run("return document.title") == MANY.question
