"""Translates lines of text, from files or a terminal, for `research.translate`."""

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from research.decoding.decode import Hypothesis, decode_all, padded
from research.decoding.search import Search
from research.errors import UserError
from research.tasks.text.tokenizer import Tokenizer


class Translator(NamedTuple):
    """A model with everything needed to translate.

    Attributes:
      model: a sequence-to-sequence model.
      params: its parameters.
      tokenizer: tokenizer of the run.
      search: search settings.
      layers: number of layers of the model with cross-attention.
      batch_size: sentences per batch.
      seed: seed of sampling.
    """

    model: Any
    params: Any
    tokenizer: Tokenizer
    search: Search
    layers: int = 1
    batch_size: int = 64
    seed: int = 0


class Translation(NamedTuple):
    """One translation of one line.

    Attributes:
      text: the translation, without line breaks.
      score: see `Search`.
      source: pieces of the source as the model read it; empty for an empty line.
      target: pieces of the translation, EOS included.
      weights: (H, T, S) attention of each target piece to each source piece, or None.
    """

    text: str
    score: float
    source: list[str]
    target: list[str]
    weights: Any


def read_lines(content: bytes, name: str) -> list[str]:
    """Returns the lines of UTF-8 text, NFC-normalized and without line breaks.

    Raises UserError for text that is not UTF-8, with `name` and the line number, from 1.
    """
    lines = content.removesuffix(b"\n").split(b"\n") if content else []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name}, line {number}: byte {error.start + 1} ({line[error.start]:#04x}) is not "
                "UTF-8; convert the text to UTF-8."
            ) from None
        text = text.removeprefix("\ufeff") if number == 1 else text
        found.append(unicodedata.normalize("NFC", text.removesuffix("\r")))
    return found


def translate(
    translator: Translator,
    lines: Sequence[str],
    *,
    with_weights: bool = False,
    one_shape: bool = False,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[list[Translation]], list[int]]:
    """Returns the translations of each line, best first, and the indices of lines that were cut.

    The translation of an empty line is empty. A line that is too long for the model is cut at its
    end.

    Args:
      translator: the model and its search settings.
      lines: the text.
      with_weights: whether to return attention weights too.
      one_shape: pads all sources to one length: slower, but the next line needs no compilation.
      progress: called with the number of lines translated so far.
    """
    special, longest = translator.search.special, int(translator.model.config.length)
    encoded = {i: translator.tokenizer.encode(s).tolist() for i, s in enumerate(lines) if s.strip()}
    cut = [i for i, tokens in encoded.items() if len(tokens) > special.room(longest)]
    sources = {i: special.around(tokens, longest) for i, tokens in encoded.items()}
    found = decode_all(
        translator.model,
        translator.params,
        *padded(list(sources.values())),
        translator.search,
        translator.batch_size,
        seed=translator.seed,
        with_weights=with_weights,
        lengths=(longest,) if one_shape else (),
        progress=progress,
    )
    results = [[Translation("", 0.0, [], [], None)] for _ in lines]
    for (i, source), hypotheses in zip(sources.items(), found, strict=True):
        results[i] = [_translation(translator, source, h) for h in hypotheses]
    return results, cut


def _translation(translator: Translator, source: list[int], hypothesis: Hypothesis) -> Translation:
    tokenizer, special = translator.tokenizer, translator.search.special
    # A byte-level vocabulary can produce line breaks, which would break the one-line-each format.
    text = " ".join(tokenizer.decode(hypothesis.tokens, text_only=True).splitlines())
    target = tokenizer.pieces([*hypothesis.tokens, special.end])
    pieces = tokenizer.pieces(source)
    return Translation(text, hypothesis.score, pieces, target, hypothesis.weights)


def as_lines(results: Sequence[Sequence[Translation]], nbest: int) -> list[str]:
    """Formats translations for output: the text, or "i ||| text ||| score" for n-best lists.

    Lines are numbered from 0, as in the n-best lists of Moses (Koehn et al. 2007).
    """
    if nbest == 1:
        return [row[0].text for row in results]
    return [f"{i} ||| {t.text} ||| {t.score:.4f}" for i, row in enumerate(results) for t in row]
