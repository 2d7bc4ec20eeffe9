"""How good translations are: BLEU and chrF as sacreBLEU computes them, and exact matches.

Papineni et al. 2002, "BLEU"; Popovic 2015, "chrF"; Post 2018, "A Call for Clarity in Reporting BLEU
Scores": scores are of detokenized text, and count only together with their signature. Of a corpus
of one reference per sentence, all with sacreBLEU's defaults but for what BLEU takes for a word,
which depends on the language: its default parts words at spaces, and a Chinese sentence has none.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.metrics.base import Metric

from research.errors import UserError, check_name
from research.tasks.text.languages import UNSPACED, code_of

TOKENIZERS = ("13a", "zh", "ja-mecab", "ko-mecab", "char", "intl", "none")
"""What BLEU may take for words; sacreBLEU's others download a model."""
DEFAULT = "13a"


class Measured(NamedTuple):
    """A score and what it was computed with, as sacreBLEU puts it."""

    score: float
    signature: str


def make_bleu(tokenizer: str = DEFAULT) -> BLEU:
    """Returns BLEU with a tokenizer of `TOKENIZERS`. Raises UserError where it is not installed."""
    try:
        # "force" keeps it from warning about text that looks tokenized. It changes no score.
        return BLEU(force=True, tokenize=tokenizer)
    except RuntimeError:
        extra = tokenizer.partition("-")[0]
        raise UserError(
            f"task.bleu_tokenizer={tokenizer!r} is not installed here; "
            f"pip install 'sacrebleu[{extra}]', or take 'char'."
        ) from None


def bleu_tokenizer(name: str, language: str) -> str:
    """Returns what BLEU takes for words: `name`, or for "auto" what suits a target language.

    That is "zh" for Chinese, "ja-mecab" and "ko-mecab" for Japanese and Korean where sacreBLEU has
    what it needs for them, "char" where it has not and for other languages without spaces between
    words, and "13a" (that of WMT) for all others, known or not.

    Args:
      name: `task.bleu_tokenizer`.
      language: `task.target_language`, such as "zh", "zh-CN" or "cmn".

    Raises UserError for a name that is unknown or not installed.
    """
    check_name("task.bleu_tokenizer", name, ("auto", *TOKENIZERS))
    if name != "auto":
        make_bleu(name)
        return name
    code = code_of(language)
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
    """Returns what BLEU and chrF are computed with, as sacreBLEU puts it."""
    bleu, letters = corpus_bleu(["a"], ["a"], tokenizer), chrf(["a"], ["a"])
    return {"bleu": bleu.signature, "chrf": letters.signature}


def tokenizer_in(signature: str) -> str:
    """Returns the tokenizer that a signature of BLEU names."""
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
    """Returns BLEU, 0 to 100, of lines of detokenized text; NaN of none.

    Not the mean over sentences: n-grams are counted over all. Raises UserError when the numbers of
    lines differ.

    Args:
      hypotheses: translations.
      references: what they should be.
      tokenizer: of `TOKENIZERS`; see `bleu_tokenizer`.
    """
    return _measured(make_bleu(tokenizer), hypotheses, references)


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> Measured:
    """Returns chrF2, 0 to 100, over all sentences; see `corpus_bleu`."""
    return _measured(CHRF(), hypotheses, references)


def exact_match(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Returns the part of the sentences, 0 to 1, that are the reference letter by letter."""
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
    """Returns the score of the sentences of each slice.

    Args:
      measure: (hypotheses, references) -> score.
      hypotheses: N translations.
      references: N references.
      index: (N,) slice of each sentence; one that is out of range is left out.
      number: of slices.
    """
    chosen = [np.flatnonzero(np.asarray(index) == i) for i in range(number)]
    return [measure([hypotheses[i] for i in c], [references[i] for i in c]) for c in chosen]
