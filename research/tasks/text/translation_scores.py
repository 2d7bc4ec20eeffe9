"""Translation metrics: BLEU and chrF by sacreBLEU, and exact match.

Papineni et al. 2002, "BLEU"; Popovic 2015, "chrF"; Post 2018, "A Call for Clarity in Reporting BLEU
Scores": scores are of detokenized text and must be reported with their signature. One reference per
sentence and sacreBLEU's defaults, except that BLEU's tokenizer depends on the language: the default
splits words at spaces, which Chinese does not have.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.metrics.base import Metric

from research.errors import UserError, check_name

TOKENIZERS = ("13a", "zh", "ja-mecab", "ko-mecab", "char", "intl", "none")
"""Tokenizers available for BLEU; sacreBLEU's others download a model."""
DEFAULT = "13a"

_NAMES = {
    # Codes of ISO 639-1, -2 and -3 (Chinese has several), and names common in file names.
    "zh": "zho chi cmn yue wuu hak nan gan hsn lzh cn chinese mandarin cantonese",
    "ja": "jpn jp japanese",
    "ko": "kor korean",
    "th": "tha thai",
    "lo": "lao",
    "km": "khm khmer",
    "my": "mya bur burmese",
    "bo": "bod tib tibetan",
    "dz": "dzo dzongkha",
}
_CODES = {name: code for code, names in _NAMES.items() for name in (code, *names.split())}

UNSPACED = ("zh", "ja", "th", "lo", "km", "my", "bo", "dz")
"""Languages written without spaces between words."""


class Measured(NamedTuple):
    """A score and its sacreBLEU signature."""

    score: float
    signature: str


def language_code(language: str) -> str:
    """Returns the ISO 639-1 code of a language in the table, else the name without its region.

    "zh-CN", "zho_Hans", "cmn" and "Chinese" are "zh", "pt_BR" is "pt".
    """
    first = re.split(r"[-_.]", language.lower(), maxsplit=1)[0]
    return _CODES.get(first, first)


def count_words(text: str, language: str) -> int:
    """Returns the number of words, or of characters for languages without spaces between words.

    Args:
      text: a sentence.
      language: name or code; see `language_code`.
    """
    words = text.split()
    return sum(map(len, words)) if language_code(language) in UNSPACED else len(words)


def make_bleu(tokenizer: str = DEFAULT) -> BLEU:
    """Returns BLEU with a tokenizer of `TOKENIZERS`. Raises UserError if it is not installed."""
    try:
        # "force" only silences the warning about text that looks tokenized.
        return BLEU(force=True, tokenize=tokenizer)
    except RuntimeError:
        extra = tokenizer.partition("-")[0]
        raise UserError(
            f"task.bleu_tokenizer={tokenizer!r} is not installed here; "
            f"pip install 'sacrebleu[{extra}]', or take 'char'."
        ) from None


def bleu_tokenizer(name: str, language: str) -> str:
    """Returns BLEU's tokenizer: `name`, or for "auto" the one that suits the target language.

    "auto" means "zh" for Chinese; "ja-mecab" and "ko-mecab" for Japanese and Korean if their
    packages are installed, otherwise "char"; "char" for other languages without spaces between
    words; and "13a" (as in WMT) for all others, known or not.

    Args:
      name: `task.bleu_tokenizer`.
      language: `task.target_language`, such as "zh", "zh-CN" or "cmn".

    Raises UserError for a tokenizer that is unknown or not installed.
    """
    check_name("task.bleu_tokenizer", name, ("auto", *TOKENIZERS))
    if name != "auto":
        make_bleu(name)
        return name
    code = language_code(language)
    if code == "zh":
        return "zh"
    if code in ("ja", "ko"):
        try:
            make_bleu(f"{code}-mecab")
        except UserError:
            return "char"
        return f"{code}-mecab"
    return "char" if code in UNSPACED else DEFAULT


def signatures(tokenizer: str) -> dict[str, str]:
    """Returns the sacreBLEU signatures of BLEU and chrF."""
    bleu, letters = corpus_bleu(["a"], ["a"], tokenizer), chrf(["a"], ["a"])
    return {"bleu": bleu.signature, "chrf": letters.signature}


def signature_tokenizer(signature: str) -> str:
    """Returns the tokenizer named in a BLEU signature."""
    found = [part for part in signature.split("|") if part.startswith("tok:")]
    return found[0].removeprefix("tok:") if found else DEFAULT


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references):
        raise UserError(
            f"there are {len(hypotheses):,} translations and {len(references):,} references."
        )


def _measured(metric: Metric, hypotheses: Sequence[str], references: Sequence[str]) -> Measured:
    _check(hypotheses, references)
    if not references:
        return Measured(float("nan"), "")
    score = metric.corpus_score(list(hypotheses), [list(references)]).score
    return Measured(float(score), str(metric.get_signature()))


def corpus_bleu(
    hypotheses: Sequence[str], references: Sequence[str], tokenizer: str = DEFAULT
) -> Measured:
    """Returns corpus BLEU, 0 to 100, of lines of detokenized text; NaN for no lines.

    N-grams are counted over the whole corpus; it is not a mean over sentences. Raises UserError if
    the numbers of lines differ.

    Args:
      hypotheses: translations.
      references: reference translations.
      tokenizer: one of `TOKENIZERS`; see `bleu_tokenizer`.
    """
    return _measured(make_bleu(tokenizer), hypotheses, references)


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> Measured:
    """Returns corpus chrF2, 0 to 100; see `corpus_bleu`."""
    return _measured(CHRF(), hypotheses, references)


def exact_match(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Returns the fraction of sentences, 0 to 1, that equal the reference exactly."""
    _check(hypotheses, references)
    pairs = zip(hypotheses, references, strict=True)
    return float(np.mean([h == r for h, r in pairs])) if references else float("nan")


def by_slice(
    measure: Callable[[Sequence[str], Sequence[str]], float],
    hypotheses: Sequence[str],
    references: Sequence[str],
    index: Sequence[int] | np.ndarray,
    number: int,
) -> list[float]:
    """Returns the score of each slice of the sentences.

    Args:
      measure: (hypotheses, references) -> score.
      hypotheses: N translations.
      references: N references.
      index: (N,) slice of each sentence; indices out of range are ignored.
      number: number of slices.
    """
    chosen = [np.flatnonzero(np.asarray(index) == i) for i in range(number)]
    return [measure([hypotheses[i] for i in c], [references[i] for i in c]) for c in chosen]
