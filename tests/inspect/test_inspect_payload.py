"""What the inspect page carries, decoded anew, and what its markup lets happen."""

import base64
import hashlib
import json
import re
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest

from research.inspect.inspection import AttentionMap, Inspection, Tokens, sorted_by_kind
from research.inspect.page import render
from research.inspect.payload import BUDGET, payload, pooled, script_json
from tests.inspections import (
    HOSTILE,
    causal_weights,
    hostile,
    self_attention,
    speech,
    translation,
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
    for i, one in enumerate(sorted_by_kind(inspection.maps)):
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
