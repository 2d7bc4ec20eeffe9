"""The inspect page in a browser: what it shows, and that it neither asks nor runs anything else."""

import re

import numpy as np
import pytest

from research.inspect.inspection import AttentionMap, Audio, Inspection, Tokens
from research.inspect.page import render
from tests import browser as chromium
from tests.inspections import HOSTILE, hostile, self_attention, speech, translation

pytestmark = pytest.mark.skipif(not chromium.AVAILABLE, reason="needs chromium and chromedriver")


@pytest.fixture(scope="module")
def window():
    with chromium.browser() as one:
        yield one


def opened(window, tmp_path, inspection, **rest):
    path = tmp_path / "inspect.html"
    path.write_text(render(inspection, **rest), encoding="utf-8")
    window.console(), window.requested()
    window.open(path)
    window.until("return performance.getEntriesByName('ready').length")
    return path


def text(window, selector):
    return window.run("return document.querySelector(arguments[0]).textContent", selector)


def fingerprint(window):
    """Returns the pixels of the large map, once the page has been laid out."""
    return window.run("return laidOut().then(() => document.getElementById('map').toDataURL())")


@pytest.mark.parametrize("make", [translation, speech, hostile])
def test_opens_without_an_error_or_a_request(window, tmp_path, make):
    path = opened(window, tmp_path, make())
    window.run(
        "for (const s of document.querySelectorAll('select')) {"
        "s.selectedIndex = s.options.length - 1; s.dispatchEvent(new Event('change')); }"
    )
    window.run("document.getElementById('theme').click()")
    window.move("#marks", 100, 150)
    assert window.console() == []
    assert window.requested() == [path.as_uri()]


def test_keys_choose_a_head(window, tmp_path):
    opened(window, tmp_path, self_attention(3, 4, list("abcdefgh")))
    assert text(window, "#chosen") == "layer 0 · head 0"
    before = fingerprint(window)
    window.run("document.querySelector('[aria-selected=true]').focus()")
    for keys, chosen in [
        (["ArrowRight"], "layer 0 · head 1"),
        (["ArrowDown", "ArrowDown"], "layer 2 · head 1"),
        (["ArrowDown"], "layer 2 · head 1"),
        (["ArrowUp", "ArrowLeft"], "layer 1 · head 0"),
        (["End"], "layer 2 · head 3"),
    ]:
        window.press(*keys)
        window.until(f"return document.getElementById('chosen').textContent === '{chosen}'")
    assert fingerprint(window) != before
    assert window.run("return document.activeElement.getAttribute('aria-selected')") == "true"
    window.press("Home")
    window.until("return document.getElementById('chosen').textContent === 'layer 0 · head 0'")
    assert fingerprint(window) == before
    window.press("Enter")
    assert window.run("return document.activeElement.id") == "marks"
    window.press("?")
    assert window.run("return document.getElementById('keys').open")
    window.press("Escape")
    assert not window.run("return document.getElementById('keys').open")
    assert window.console() == []


def read_value(said):
    """Returns (row, column, value) of what the page says of a cell."""
    found = re.fullmatch(r"\w+ (\d+) “.*” reads \w+ (\d+) “.*”: (\S+)", said)
    assert found, said
    return int(found[1]), int(found[2]), float(found[3].replace("−", "-"))


def test_what_is_said_of_a_cell_is_its_weight(window, tmp_path):
    shown = translation()
    opened(window, tmp_path, shown)
    weights = shown.maps[2].weights
    seen = set()
    for x in range(20, 280, 30):
        for y in range(30, 300, 45):
            window.move("#marks", x, y)
            said = text(window, "#readout")
            if ": " not in said:
                continue
            row, column, value = read_value(said)
            seen.add((row, column))
            assert (
                abs(value - weights[0, row, column]) <= np.abs(weights[0, row]).max() / 127 + 1e-3
            )
    assert len(seen) > 8
    # Keys go to every cell, also of a row that reads nothing.
    window.run("document.querySelectorAll('.tile')[1].click()")
    window.until("return document.getElementById('chosen').textContent.endsWith('head 1')")
    window.run("document.getElementById('marks').focus()")
    window.press("ArrowRight", "ArrowRight", "ArrowDown", "ArrowDown")
    assert re.fullmatch("output 2 “.*” reads nothing", text(window, "#readout"))
    window.press("ArrowDown")
    row, column, value = read_value(text(window, "#readout"))
    assert (row, column) == (3, 1)
    assert abs(value - weights[1, 3, 1]) <= np.abs(weights[1, 3]).max() / 127 + 1e-3


def test_a_recording_and_who_reads_it_are_on_one_axis_of_time(window, tmp_path):
    features = np.zeros((50, 8), np.float32)
    features[20:24] = 1  # 0.20 to 0.24 s is the fifth state's
    weights = np.zeros((1, 1, 13), np.float32)
    weights[0, 0, 5] = 1
    tokens = Tokens(output=["one"], audio=Audio(features, 0.01, 0.04))
    heard = AttentionMap("speller", "cross", "output", "audio", weights)
    opened(window, tmp_path, Inspection("", {}, tokens, [heard]))
    # Where the canvas is neither white nor the line around the map, above and in the map.
    dark = """
        const canvas = document.getElementById('map');
        const at = (arguments[0] / canvas.clientHeight) * canvas.height;
        const row = canvas.getContext('2d').getImageData(0, at, canvas.width, 1).data;
        return [...Array(canvas.width).keys()].filter((x) => x > 80 && row[4 * x] < 100);
    """
    height = window.run("return document.getElementById('map').clientHeight")
    above, inside = window.run(dark, 35), window.run(dark, height - 50)
    assert len(above) > 20
    assert abs(above[0] - inside[0]) <= 1 and abs(above[-1] - inside[-1]) <= 1
    window.move("#marks", above[len(above) // 2], height - 50)
    assert text(window, "#readout") == "output 0 “\u2068one\u2069” reads audio 0.20–0.24 s: 1"


def test_the_switch_of_the_theme_repaints(window, tmp_path):
    opened(window, tmp_path, translation())
    light = fingerprint(window)
    window.run("document.getElementById('theme').click()")
    assert fingerprint(window) != light
    window.run("document.getElementById('theme').click()")
    assert fingerprint(window) == light
    # On paper it is light.
    window.run("document.getElementById('theme').click(); dispatchEvent(new Event('beforeprint'))")
    assert fingerprint(window) == light


def test_a_token_shows_what_it_reads_and_who_reads_it(window, tmp_path):
    shown = translation()
    opened(window, tmp_path, shown)
    weights = shown.maps[2].weights[0]
    listed = (
        "return [...document.querySelectorAll('#greatest li')].map("
        "(l) => [l.querySelector('button').textContent, l.querySelector('.number').textContent])"
    )
    coloured = (
        "return [...document.querySelectorAll('.text')].map((t) => [...t.querySelectorAll('bdi')]"
        ".filter((s) => s.style.backgroundColor).length)"
    )
    window.run("document.querySelectorAll('.text')[1].querySelectorAll('bdi')[3].click()")
    assert "output 3" in text(window, "#listed") and text(window, "#listed").endswith("reads")
    order = np.argsort(-np.abs(weights[3]))
    found = window.run(listed)
    assert [int(name.split()[0]) for name, _ in found] == list(order)
    values = [float(value.replace("−", "-")) for _, value in found]
    np.testing.assert_allclose(values, weights[3][order], atol=np.abs(weights[3]).max() / 127)
    assert window.run(coloured)[1] == 0 and window.run(coloured)[0] >= 3
    window.run("document.querySelectorAll('.text')[0].querySelectorAll('bdi')[2].click()")
    assert "input 2" in text(window, "#listed") and text(window, "#listed").endswith("read by")
    found = window.run(listed)
    order = np.argsort(-np.abs(weights[:, 2]))
    assert [int(name.split()[0]) for name, _ in found] == list(order)
    assert window.run(coloured)[0] == 0 and window.run(coloured)[1] >= 4


def test_hostile_texts_are_shown_as_they_are(window, tmp_path):
    shown = hostile()
    opened(window, tmp_path, shown)
    title = window.run("return document.title")
    assert title == HOSTILE[1]
    assert text(window, "h1") == HOSTILE[1]
    assert not window.run("return document.querySelectorAll('img').length")
    tokens = window.run("return [...document.querySelectorAll('bdi')].map((s) => s.textContent)")
    assert tokens[0] == "<script>document.title='ran'</script>"
    assert tokens[2] == "\"'`&amp;<!--" and tokens[6:9] == ["{{script}}", "__proto__", "·"]
    assert tokens[5] == "⟨U+202E⟩שלום"
    for at in range(len(tokens)):
        window.run("document.querySelectorAll('bdi')[arguments[0]].click()", at)
    assert text(window, "#chosen").startswith(HOSTILE[0])
    assert HOSTILE[1] in text(window, "#side")
    assert window.console() == []
    assert window.run("return document.title") == title


def test_pooled_maps_say_so_and_are_zoomed(window, tmp_path):
    opened(window, tmp_path, self_attention(1, 1, [str(i) for i in range(100)]), budget=3000)
    assert "2 × 2" in text(window, "#about")
    whole = fingerprint(window)
    window.drag("#marks", (200, 200), (300, 300))
    assert fingerprint(window) != whole
    window.run("document.getElementById('marks').focus()")
    window.press("ArrowDown")
    row = re.match(r"input (\d+)–(\d+) “", text(window, "#readout"))
    assert row and int(row[2]) == int(row[1]) + 1 and int(row[1]) > 0
    window.press("0")
    window.press("Escape")
    window.move("h1", 5, 5)
    assert fingerprint(window) == whole
    assert window.console() == []


def test_a_measure_sorts_the_heads(window, tmp_path):
    shown = self_attention(2, 3, list("abcdef"))
    opened(window, tmp_path, shown)
    window.run(
        "const s = document.getElementById('measure'); s.value = 'first';"
        "s.dispatchEvent(new Event('change')); document.getElementById('sorted').click()"
    )
    labels = window.run(
        "return [...document.querySelectorAll('.tile')].map((t) => t.getAttribute('aria-label'))"
    )
    values = {
        f"layer {i}, head {j}": one.measures["first"][j]
        for i, one in enumerate(shown.maps)
        for j in range(3)
    }
    names = [label.split(", first")[0] for label in labels]
    assert names == sorted(values, key=lambda name: -values[name])


def test_long_texts_are_shown_in_pages(window, tmp_path):
    opened(window, tmp_path, self_attention(1, 1, [str(i) for i in range(1100)]))
    assert window.run("return document.querySelectorAll('bdi').length") == 512
    assert window.run("return document.querySelectorAll('*').length") < 1000
    window.run("[...document.querySelectorAll('.side button')].at(-1).click()")
    assert text(window, "bdi") == "512"
    # What is held in the map is turned to.
    window.run("document.getElementById('marks').focus()")
    window.press("ArrowDown")
    assert text(window, "bdi.pointed") == "0"


def test_a_model_without_attention_has_a_page(window, tmp_path):
    path = tmp_path / "inspect.html"
    shown = Inspection("Recurrent", {"seed": "0"}, Tokens(["a"]), [], [("a", 1.0)])
    path.write_text(render(shown), encoding="utf-8")
    window.console()
    window.open(path)
    window.until("return performance.getEntriesByName('ready').length")
    assert not window.run("return document.querySelector('.bench').checkVisibility()")
    assert window.console() == []
