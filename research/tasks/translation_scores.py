"""How good translations are: BLEU and chrF as sacreBLEU computes them, and exact matches.

Papineni et al. 2002, "BLEU"; Popovic 2015, "chrF"; Post 2018, "A Call for Clarity in Reporting BLEU
Scores": scores are of detokenized text, and count only together with their signature. Of a corpus
of one reference per sentence, all with sacreBLEU's defaults.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.metrics.base import Metric

from research.errors import UserError


class Measured(NamedTuple):
    """A score and what it was computed with, as sacreBLEU puts it."""

    score: float
    signature: str


def _bleu() -> BLEU:
    # "force" keeps it from warning about text that looks tokenized. It changes no score.
    return BLEU(force=True)


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


def corpus_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> Measured:
    """Returns BLEU, 0 to 100, of lines of detokenized text; NaN of none.

    Not the mean over sentences: n-grams are counted over all. Raises UserError when the numbers of
    lines differ.
    """
    return _measured(_bleu(), hypotheses, references)


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
