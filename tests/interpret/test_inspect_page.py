"""The inspect page: what it carries, decoded anew, and what it does in a browser."""

import base64
import hashlib
import json
import re
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest

from research.interpret.inspect_page import render
from research.interpret.inspect_payload import BUDGET, payload, pooled, script_json
from research.interpret.inspection import AttentionMap, Inspection, Tokens, in_order
from tests import browser as chromium
from tests.inspections import causal_weights, self_attention, speech, translation

HOSTILE = (
    "<script>document.title='ran'</script>",
    "</script><img src=x onerror=\"document.title='ran'\">",
    "\"'`&amp;<!--",
    "a\u2028b\u2029c",
    "👩\u200d🚀",
    "\u202eשלום",
    "{{script}}",
    "__proto__",
    " ",
)


class Page(HTMLParser):
    """Elements with their attributes, and the texts of scripts by id."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.id = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.id = dict(attrs).get("id", tag) if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self.id = None

    def handle_data(self, data):
        if self.id:
            self.texts[self.id] = self.texts.get(self.id, "") + data

    @property
    def data(self):
        return json.loads(self.texts["data"])


def decode(content, rows, columns, signed):
    """Returns the matrices of a blob, float32, by the description of the format alone."""
    size = rows * (4 + columns)
    matrices = []
    for start in range(0, len(content), size):
        scales = np.frombuffer(content, "<f4", rows, start)
        codes = np.frombuffer(content, "u1", rows * columns, start + 4 * rows)
        codes = codes.reshape(rows, columns).astype(float)
        share = (codes - 127) / 127 if signed else codes / 254
        share[codes == 255] = np.nan
        matrices.append(share * np.abs(share) * scales[:, None])
    return np.array(matrices)


def blob(page, name):
    return zlib.decompress(base64.b64decode(page.texts[name], validate=True))


@pytest.mark.parametrize("inspection", [self_attention(2, 3, list("abcdefg")), translation()])
def test_weights_come_back_from_the_page(inspection):
    page = Page(render(inspection))
    for i, one in enumerate(in_order(inspection.maps)):
        described = page.data["maps"][i]
        assert described["name"] == one.name and described["pool"] == [1, 1]
        assert described["signed"] == bool((one.weights < 0).any())
        heads, rows, columns = described["shape"]
        assert one.weights.shape == (heads, rows, columns)
        for j, weights in enumerate(one.weights):
            (found,) = decode(blob(page, f"head-{i}-{j}"), rows, columns, described["signed"])
            greatest = np.abs(weights).max(1, keepdims=True)
            np.testing.assert_array_equal(np.isnan(found), np.isnan(weights))
            assert (np.abs(found - weights) <= greatest / 127)[~np.isnan(weights)].all()
            # The greatest of a row is kept as it is.
            row = np.flatnonzero(~np.isnan(weights).any(1))
            np.testing.assert_allclose(np.abs(found).max(1)[row], greatest[row, 0], rtol=1e-6)


def test_small_weights_are_kept_better_than_with_equal_steps():
    weights = np.zeros((1, 4, 4), np.float32)
    weights[0] = [1.0, 1e-3, 3e-3, 1e-2]
    page = Page(render(Inspection("", {}, Tokens(list("abcd")), [one_map(weights)])))
    (found,) = decode(blob(page, "head-0-0"), 4, 4, False)
    np.testing.assert_allclose(found, weights[0], rtol=0.13)


def one_map(weights, **rest):
    return AttentionMap("layer 0", "self", "input", "input", weights, **rest)


def brute_pool(weights, rows, columns):
    """The value of the greatest magnitude of each block, by loops."""
    pooled = np.full((-(-weights.shape[0] // rows), -(-weights.shape[1] // columns)), np.nan)
    for i in range(pooled.shape[0]):
        for j in range(pooled.shape[1]):
            block = weights[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns].ravel()
            block = block[~np.isnan(block)]
            if block.size:
                pooled[i, j] = block[np.abs(block).argmax()]
    return pooled


@pytest.mark.parametrize("signed", [False, True])
def test_pooling_keeps_the_greatest_of_each_block(signed):
    weights = np.random.default_rng(4).normal(size=(11, 7)).astype(np.float32)
    weights = weights if signed else np.abs(weights)
    weights[3:6] = np.nan
    weights[0, 0] = np.nan
    np.testing.assert_array_equal(pooled(weights, 3, 2, signed), brute_pool(weights, 3, 2))


def test_maps_are_pooled_until_they_are_within_the_budget():
    shown = self_attention(2, 2, ["x"] * 100)
    long = AttentionMap("cross", "cross", "query", "input", np.full((1, 2, 100), 0.01, np.float32))
    shown = Inspection("", {}, shown.tokens, [*shown.maps, long])
    assert payload(shown, 41_000)[0]["maps"][0]["pool"] == [1, 1]
    data, blobs = payload(shown, 12_000)
    # Blocks of 2: 4 heads of 50 x 50, one of 2 x 50. Only what is long is pooled.
    assert [m["pool"] for m in data["maps"]] == [[1, 2], [2, 2], [2, 2]]
    (found,) = decode(zlib.decompress(base64.b64decode(blobs["head-1-1"])), 50, 50, False)
    np.testing.assert_allclose(found, brute_pool(shown.maps[0].weights[1], 2, 2), atol=1 / 127)


def test_thumbnails_are_small_and_keep_the_greatest():
    shown = self_attention(1, 2, ["x"] * 100)
    page = Page(render(shown))
    assert page.data["maps"][0]["small"] == [3, 3]
    small = decode(blob(page, "small-0"), 34, 34, False)
    expected = [brute_pool(weights, 3, 3) for weights in shown.maps[0].weights]
    np.testing.assert_allclose(small, expected, atol=1 / 127)


def test_size_of_the_page():
    """12 x 12 heads over 1,024 tokens have to be below 30 MB: here an eighth of the tokens."""
    scores = np.random.default_rng(0).random((144, 128, 128), np.float32)
    tokens = Tokens(["x"] * 128)
    page = render(Inspection("", {}, tokens, [one_map(scores)]), budget=BUDGET // 64)
    empty = render(Inspection("", {}, tokens, []))
    assert Page(page).data["maps"][0]["pool"] == [4, 4]
    # Small matrices of 144 heads, at most 48 x 48 each, are as many at any length.
    small = 144 * 4 / 3 * 48 * (48 + 4)
    assert len(page) - len(empty) < (30e6 - small) / 64 + small


def test_measures_and_numbers_that_are_not_finite_are_null():
    weights = causal_weights(2, 3)
    one = one_map(weights, measures={"entropy": np.array([np.nan, 1 / 3], np.float32)})
    tokens = Tokens(list("abc"), input_numbers={"score": np.array([np.inf, -2.5, 0])})
    data = Page(render(Inspection("", {}, tokens, [one]))).data
    assert data["maps"][0]["measures"] == {"entropy": [None, 0.3333333]}
    assert data["axes"]["input"]["numbers"] == {"score": [None, -2.5, 0.0]}


def test_the_spectrogram_comes_back():
    shown = speech()
    page = Page(render(shown))
    described = page.data["audio"]
    assert described["seconds"] == pytest.approx(0.5) and described["state"] == 0.04
    found = np.frombuffer(blob(page, "audio"), "u1").reshape(described["frames"], -1) / 255
    low, high = np.percentile(shown.tokens.audio.features, (1, 99))
    expected = np.clip((shown.tokens.audio.features - low) / (high - low), 0, 1)
    np.testing.assert_allclose(found, expected, atol=0.5 / 255 + 1e-6)


def hostile():
    shown = self_attention(2, 2, HOSTILE, numbers=HOSTILE[:2])
    maps = [
        AttentionMap(HOSTILE[i], "self", "input", "input", one.weights, dict(one.measures), text)
        for i, (one, text) in enumerate(zip(shown.maps, HOSTILE[:2], strict=True))
    ]
    maps[0].measures[HOSTILE[1]] = np.array([0.5, 0.25])
    predictions = [(text, 0.1) for text in HOSTILE]
    facts = {text: text for text in HOSTILE}
    return Inspection(HOSTILE[1], facts, shown.tokens, maps, predictions, HOSTILE)


def test_no_text_becomes_markup():
    plain = Page(render(self_attention(2, 2, list(HOSTILE), numbers=HOSTILE[:2])))
    page = Page(render(hostile()))
    tags = {tag for tag, _ in page.elements}
    assert "img" not in tags
    scripts = [a for tag, a in page.elements if tag == "script"]
    assert scripts == [a for tag, a in plain.elements if tag == "script"]
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    names = page.data["axes"]["input"]["names"]
    assert names[0] == HOSTILE[0].replace(" ", "·") and names[3] == "a⟨U+2028⟩b⟨U+2029⟩c"


def test_json_in_a_script_element_has_no_character_that_ends_it():
    text = script_json({text: text for text in HOSTILE})
    assert text.isascii() and not re.search("[<>&]", text)
    assert json.loads(text) == {text: text for text in HOSTILE}


def test_only_the_page_s_own_script_may_run():
    page = Page(render(translation()))
    (policy,) = [a["content"] for _, a in page.elements if "content-security" in str(a).lower()]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'" and "unsafe" not in policy
    for kind in ("script", "style"):
        digest = hashlib.sha256(page.texts[kind].encode()).digest()
        assert rules[f"{kind}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"
    # Nothing is asked for, and the rest of the scripts is data.
    assert not [a for _, a in page.elements if "src" in a or "href" in a or "style" in a]
    types = {a.get("type") for tag, a in page.elements if tag == "script"}
    assert types == {None, "application/json", "text/plain"}
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval", page.texts["script"]
    )


def test_ids_are_unique():
    ids = [a["id"] for _, a in Page(render(translation())).elements if "id" in a]
    assert len(ids) == len(set(ids))


needs_browser = pytest.mark.skipif(not chromium.AVAILABLE, reason="needs chromium and chromedriver")


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
    """Returns the pixels of the large map."""
    return window.run("return document.getElementById('map').toDataURL()")


@needs_browser
@pytest.mark.parametrize("make", [translation, speech, hostile])
def test_opens_without_an_error_or_a_request(window, tmp_path, make):
    path = opened(window, tmp_path, make())
    for select in ("scale", "relative", "measure"):
        window.run(
            "const s = document.getElementById(arguments[0]);"
            "s.selectedIndex = s.options.length - 1; s.dispatchEvent(new Event('change'))",
            select,
        )
    window.run("document.getElementById('theme').click()")
    window.move("#marks", 100, 150)
    assert window.console() == []
    assert window.requested() == [path.as_uri()]


@needs_browser
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


@needs_browser
def test_what_is_said_of_a_cell_is_its_weight(window, tmp_path):
    shown = translation()
    opened(window, tmp_path, shown)
    weights = shown.maps[2].weights
    seen = set()
    box = window.run(
        "const b = document.getElementById('marks').getBoundingClientRect();"
        "return [b.width, b.height]"
    )
    for x in np.linspace(5, box[0] - 5, 9):
        for y in np.linspace(5, box[1] - 5, 6):
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


@needs_browser
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


@needs_browser
def test_hostile_texts_are_shown_as_they_are(window, tmp_path):
    shown = hostile()
    opened(window, tmp_path, shown)
    title = window.run("return document.title")
    assert title == HOSTILE[1]
    assert text(window, "h1") == HOSTILE[1]
    assert not window.run("return document.querySelectorAll('img').length")
    tokens = window.run("return [...document.querySelectorAll('bdi')].map((s) => s.textContent)")
    assert tokens[0] == "<script>document.title='ran'</script>"
    assert tokens[2] == "\"'`&amp;<!--" and tokens[6:] == ["{{script}}", "__proto__", "·"]
    assert tokens[5] == "⟨U+202E⟩שלום"
    for at in range(len(tokens)):
        window.run("document.querySelectorAll('bdi')[arguments[0]].click()", at)
    assert text(window, "#chosen").startswith(HOSTILE[0])
    assert HOSTILE[1] in text(window, "#side")
    assert window.console() == []
    assert window.run("return document.title") == title


@needs_browser
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


@needs_browser
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


@needs_browser
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


@needs_browser
def test_a_model_without_attention_has_a_page(window, tmp_path):
    path = tmp_path / "inspect.html"
    shown = Inspection("Recurrent", {"seed": "0"}, Tokens(["a"]), [], [("a", 1.0)])
    path.write_text(render(shown), encoding="utf-8")
    window.console()
    window.open(path)
    window.until("return performance.getEntriesByName('ready').length")
    assert not window.run("return document.querySelector('.bench').checkVisibility()")
    assert window.console() == []
