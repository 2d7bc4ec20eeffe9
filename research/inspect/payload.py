"""Encodes the data of the inspect page: attention maps quantized to bytes, compressed, in base64.

A matrix of h rows and w columns is stored as the scales of its rows, h float32 in little-endian
order, followed by h w codes of one byte. Code 255 is NaN. Any other code c stands for scale * p |p|
with p = c / 254 or, in maps with negative weights, p = (c - 127) / 127: the square makes codes
dense near zero, where most weights are. Every blob is one zlib stream of one or more matrices.
"""

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from research.inspect.inspection import (
    AttentionMap,
    Audio,
    Inspection,
    legible,
    position_labels,
    sorted_by_kind,
)

BUDGET = 1 << 24
"""Bytes of codes for all heads together, before compression; base64 adds a third."""
FINEST, COARSEST = 1 << 14, 1 << 5
"""Limits of the number of rows or columns that maps are pooled to."""
THUMBNAIL = 48
"""Maximum number of rows and columns of a small map."""
FRAMES = 4096
"""Maximum number of frames of a spectrogram."""
MISSING, STEPS, ZERO = 255, 254, 127


def payload(inspection: Inspection, budget: int = BUDGET) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the data to serialize as JSON, and the base64 blobs by name.

    Blob "head-I-J" is head J of map I, in the order of `sorted_by_kind`; "small-I" holds the small
    matrices of all heads of map I; "audio" holds the spectrogram.

    Args:
      inspection: the data to show.
      budget: bytes of codes for all heads together. Maps are pooled until they fit.
    """
    maps = sorted_by_kind(inspection.maps)
    side = _side(maps, budget)
    described, blobs = [], {}
    for i, one in enumerate(maps):
        _, rows, columns = one.weights.shape
        pool, small = (_factors(rows, columns, to) for to in (side, min(side, THUMBNAIL)))
        signed = bool((one.weights < 0).any())
        thumbnails = []
        for j, weights in enumerate(one.weights):
            blobs[f"head-{i}-{j}"] = _pack(quantize(pooled(weights, *pool, signed), signed))
            thumbnails.append(quantize(pooled(weights, *small, signed), signed))
        blobs[f"small-{i}"] = _pack(b"".join(thumbnails))
        described.append(_described(one, pool, small, signed))
    tokens = inspection.tokens
    data: dict[str, Any] = {
        "maps": described,
        "axes": {
            axis: {
                "names": position_labels(axis, len(texts), tokens),
                "numbers": _by_name(numbers),
            }
            for axis, texts, numbers in (
                ("input", tokens.input, tokens.input_numbers),
                ("output", tokens.output, tokens.output_numbers),
            )
        },
    }
    if tokens.audio is not None:
        data["audio"], blobs["audio"] = _spectrogram(tokens.audio)
    return data, blobs


def script_json(value: Any) -> str:
    """Returns JSON that is safe inside a script element: ASCII, with <, > and & escaped."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def pooled(
    weights: Float[np.ndarray, "T S"], rows: int, columns: int, signed: bool
) -> Float[np.ndarray, "h w"]:
    """Returns the maximum of each block of rows x columns; if `signed`, the largest in magnitude.

    A block is NaN only if all of its entries are. The last blocks may be smaller.
    """
    if rows == columns == 1:
        return weights
    height, width = weights.shape
    edges = [(0, -height % rows), (0, -width % columns)]
    padded = np.pad(weights, edges, constant_values=np.nan)
    blocks = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
    high = np.fmax.reduce(np.fmax.reduce(blocks, axis=1), axis=2)
    if not signed:
        return high
    low = np.fmin.reduce(np.fmin.reduce(blocks, axis=1), axis=2)
    return np.where(-low > high, low, high)


def quantize(weights: Float[np.ndarray, "h w"], signed: bool) -> bytes:
    """Returns the scales and codes of a matrix in the format of the module's docstring.

    The error is at most 1/254 of the row's maximum, 1/127 if `signed`, and decreases towards zero.
    """
    finite = np.isfinite(weights)
    known = np.where(finite, weights, 0).astype(np.float32)
    scales = np.abs(known).max(1)
    shares = known / np.where(scales > 0, scales, 1)[:, None]
    parts = np.sign(shares) * np.sqrt(np.abs(shares))
    codes = np.rint(parts * ZERO + ZERO) if signed else np.rint(parts * STEPS)
    return scales.astype("<f4").tobytes() + np.where(finite, codes, MISSING).astype("u1").tobytes()


def _side(maps: list[AttentionMap], budget: int) -> int:
    """Returns the largest number of rows and columns at which all heads fit into the budget."""
    side = FINEST
    while side > COARSEST and sum(_size(one, side) for one in maps) > budget:
        side //= 2
    return side


def _size(one: AttentionMap, side: int) -> int:
    heads, height, width = one.weights.shape
    rows, columns = _factors(height, width, side)
    return heads * -(-height // rows) * -(-width // columns)


def _factors(rows: int, columns: int, side: int) -> tuple[int, int]:
    return -(-rows // side), -(-columns // side)


def _described(
    one: AttentionMap, pool: tuple[int, int], small: tuple[int, int], signed: bool
) -> dict[str, Any]:
    return {
        "name": legible(one.name),
        "kind": one.kind,
        "rows": one.rows,
        "columns": one.columns,
        "shape": list(one.weights.shape),
        "heads": one.numbers,
        "pool": list(pool),
        "small": list(small),
        "signed": signed,
        "note": legible(one.note),
        "measures": _by_name(one.measures),
    }


def _spectrogram(audio: Audio) -> tuple[dict[str, Any], str]:
    """Returns a description and a blob, one byte per value, frame by frame.

    Values are scaled to the range from the 1st to the 99th percentile.
    """
    each = -(-len(audio.features) // FRAMES)
    features = pooled(audio.features, each, 1, signed=False)
    low, high = np.percentile(features, (1, 99))
    codes = np.rint(255 * np.clip((features - low) / max(high - low, 1e-6), 0, 1)).astype("u1")
    described = {
        "frames": len(features),
        "bands": features.shape[1],
        "seconds": float(len(audio.features) * audio.seconds_per_frame),
        "frame": float(each * audio.seconds_per_frame),
        "state": float(audio.seconds_per_state),
    }
    return described, _pack(codes.tobytes())


def _by_name(numbers: Mapping[str, np.ndarray]) -> dict[str, list[float | None]]:
    """Returns the values as JSON numbers; None for NaN and infinities, which JSON lacks.

    Seven digits are the precision of float32.
    """
    return {
        legible(name): [float(f"{v:.7g}") if np.isfinite(v) else None for v in np.asarray(values)]
        for name, values in numbers.items()
    }


def _pack(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content)).decode("ascii")
