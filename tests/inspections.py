"""Inspections of random weights, for tests of the page and its benchmark."""

import numpy as np

from research.inspect.inspection import AttentionMap, Audio, Inspection, Tokens

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


def softmax(scores):
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return (powers / powers.sum(-1, keepdims=True)).astype(np.float32)


def causal_weights(heads, length, seed=0):
    """Weights (H, T, T) that are zero above the diagonal."""
    scores = np.random.default_rng(seed).normal(size=(heads, length, length)).astype(np.float32)
    seen = np.tri(length, dtype=bool)
    return softmax(np.where(seen, 2 * scores, -np.inf))


def self_attention(layers, heads, tokens, numbers=()):
    """A language model that reads `tokens`; `numbers` are names of random numbers of tokens."""
    rng = np.random.default_rng(1)
    maps = []
    for layer in range(layers):
        weights = causal_weights(heads, len(tokens), layer)
        measures = {"first": weights[:, :, 0].mean(1), "largest": weights.max(-1).mean(1)}
        maps.append(
            AttentionMap(f"layer {layer}", "self", "input", "input", weights, measures, "softmax")
        )
    of_tokens = {name: rng.normal(size=len(tokens)) for name in numbers}
    facts = {"config": "configs/text.py", "seed": "0", "git commit": "0123abc"}
    return Inspection("A language model", facts, Tokens(tokens, (), of_tokens), maps)


def translation():
    """An encoder and a decoder; the cross-attention has negative weights, a row reads nothing."""
    rng = np.random.default_rng(2)
    source, target = ["ein", " Hund", " läuft", "</s>"], ["a", " dog", " runs", ".", "</s>"]
    weights = rng.normal(size=(2, 5, 4)).astype(np.float32)
    weights[1, 2] = np.nan
    maps = [
        AttentionMap("encoder 0", "self", "input", "input", softmax(rng.normal(size=(2, 4, 4)))),
        AttentionMap("decoder 0", "self", "output", "output", causal_weights(2, 5)),
        AttentionMap("decoder 0 cross", "cross", "output", "input", weights),
    ]
    tokens = Tokens(source, target, {}, {"log-probability": -rng.exponential(size=5)})
    return Inspection("German to English", {"seed": "0"}, tokens, maps, [("dog", 0.75)])


def speech():
    """A recording of half a second, heard in twelve states."""
    rng = np.random.default_rng(3)
    audio = Audio(rng.normal(size=(50, 8)).astype(np.float32), 0.01, 0.04)
    maps = [
        AttentionMap("encoder 0", "self", "audio", "audio", softmax(rng.normal(size=(2, 12, 12)))),
        AttentionMap("speller", "cross", "output", "audio", softmax(rng.normal(size=(2, 2, 12)))),
    ]
    return Inspection("A digit", {}, Tokens(output=[" one", "</s>"], audio=audio), maps)


def hostile():
    """Everything that is a text tries to become more than that."""
    shown = self_attention(2, 2, HOSTILE, numbers=HOSTILE[:2])
    numbers = dict(shown.tokens.input_numbers)
    tokens = Tokens(HOSTILE, HOSTILE[:1], numbers, {"constructor": np.array([0.5])})
    maps = [
        AttentionMap(HOSTILE[i], "self", "input", "input", one.weights, dict(one.measures), text)
        for i, (one, text) in enumerate(zip(shown.maps, HOSTILE[:2], strict=True))
    ]
    maps[0].measures[HOSTILE[1]] = maps[0].measures["constructor"] = np.array([0.5, 0.25])
    predictions = [(text, 0.1) for text in HOSTILE]
    facts = {text: text for text in HOSTILE}
    return Inspection(HOSTILE[1], facts, tokens, maps, predictions, HOSTILE)
