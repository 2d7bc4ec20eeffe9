"""Paired significance tests between arms, over the sentences that their runs decoded.

BLEU: approximate randomization (Riezler and Maxwell 2005, "On Some Pitfalls in Automatic Evaluation
and Significance Testing for MT", section 3) of sacrebleu's n-gram counts. Sacrebleu's own paired
bootstrap is not a two-sided test: it rejects in 11 % of repetitions at a level of 5 %, and its
p-value never exceeds one half. Word error rate: bootstrap (Bisani and Ney 2004, "Bootstrap
Estimates for Confidence Intervals in ASR Performance Evaluation"). Each run of an arm is compared
with the run of the reference arm with the same seed and point, on the sentences of the outcome's
split.

A small p-value says that two trained models differ beyond this sample of sentences. It does not say
that the arms differ: the main table shows the variation over seeds (Clark et al. 2011, "Better
Hypothesis Testing for Statistical Machine Translation: Controlling for Optimizer Instability").
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jiwer
import numpy as np

from research.errors import UserError
from research.report.columns import Column
from research.report.formatting import NONE, number, p_text, point_text
from research.report.judging.study import Run, Study
from research.tasks.text.translation_scores import DEFAULT, make_bleu, signature_tokenizer

RESAMPLES = 1000
SEED = 12345


@dataclass(frozen=True)
class Pair:
    """Comparison of a run with the run of the reference arm with the same seed and point.

    Attributes:
      arm, point, seed: identify the run.
      base: score of the reference arm's run; NaN if the two runs could not be compared.
      value: score of the run; NaN likewise.
      p: two-sided p-value for no difference; NaN likewise.
      sentences: number of resampled sentences; 0 likewise.
      note: why the runs could not be compared, or "".
    """

    arm: str
    point: Mapping[str, Any]
    seed: int
    base: float = math.nan
    value: float = math.nan
    p: float = math.nan
    sentences: int = 0
    note: str = ""


@dataclass(frozen=True)
class Bootstrap:
    """The comparisons of a sweep.

    Attributes:
      pairs: one for each reported run of the other arms, in the sweep's order.
      measure: "BLEU", 0 to 100, or "WER", errors per word.
      signature: how the score was computed; "" if no runs could be compared.
    """

    pairs: Sequence[Pair]
    measure: str
    signature: str


@dataclass(frozen=True)
class _Sentences:
    """Decoded sentences of a run with their references, or a note on why they are unusable.

    `tokenizer` is the tokenizer of the run's BLEU.
    """

    hypotheses: Sequence[str] = ()
    references: Sequence[str] = ()
    note: str = ""
    tokenizer: str = DEFAULT


def compare_bleu(
    base: Sequence[str],
    systems: Mapping[str, Sequence[str]],
    references: Sequence[str],
    tokenizer: str = DEFAULT,
    resamples: int = RESAMPLES,
) -> tuple[dict[str, tuple[float, float, float]], str]:
    """Compares the BLEU of systems with that of a baseline on the same sentences.

    Args:
      base: detokenized sentences of the baseline.
      systems: {name: detokenized sentences}.
      references: reference translations.
      tokenizer: sacrebleu tokenizer.
      resamples: number of random swaps.

    Returns:
      {name: (BLEU of the baseline, BLEU, two-sided p-value)}, and sacrebleu's signature. The
      p-value is the share of random swaps of the two outputs, sentence by sentence, after which the
      scores differ by at least as much as observed.
    """
    bleu = make_bleu(tokenizer)
    # The same draws as sacrebleu's own test, but ties count as extreme below: sacrebleu ignores
    # them, and would call two identical outputs significantly different.
    swapped = np.random.default_rng(SEED).integers(2, size=(resamples, len(base)), dtype=bool)

    def counts(texts: Sequence[str]) -> np.ndarray:
        return np.array(bleu._extract_corpus_statistics(texts, [references]))

    def scores(sums: np.ndarray) -> np.ndarray:
        return np.array([bleu._compute_score_from_stats(row.tolist()).score for row in sums])

    of_base = counts(base)
    (first,) = scores(of_base.sum(0, keepdims=True))
    found = {}
    for name, texts in systems.items():
        own = counts(texts)
        (score,) = scores(own.sum(0, keepdims=True))
        # BLEU depends only on sums of sentence counts, so all swaps are one matrix product.
        moved = swapped @ (own - of_base)
        apart = np.abs(scores(own.sum(0) - moved) - scores(of_base.sum(0) + moved))
        far = apart >= abs(score - first) - 1e-9
        found[name] = (float(first), float(score), float((1 + far.sum()) / (resamples + 1)))
    return found, f"{bleu.get_signature()}|ar:{resamples}|seed:{SEED}"


def compare_wer(
    base: Sequence[str], systems: Mapping[str, Sequence[str]], references: Sequence[str]
) -> tuple[dict[str, tuple[float, float, float]], str]:
    """Compares the word error rates of systems with that of a baseline on the same utterances.

    Arguments and results are as in `compare_bleu`; rates are errors per word of the references.
    """
    words = np.array([len(text.split()) for text in references])
    weights = np.random.default_rng(SEED).multinomial(
        len(references), np.full(len(references), 1 / len(references)), size=RESAMPLES
    )
    drawn = np.maximum(weights @ words, 1)
    of_base = _errors(base, references)
    found = {}
    for name, texts in systems.items():
        own = _errors(texts, references)
        first, second = (float(e.sum() / words.sum()) for e in (of_base, own))
        apart = second - first
        resampled = weights @ (own - of_base) / drawn
        # Centred on the observed difference: the bootstrap distribution under no difference.
        far = np.abs(resampled - apart) >= abs(apart) - 1e-12
        found[name] = (first, second, float((1 + far.sum()) / (RESAMPLES + 1)))
    return found, f"jiwer, {RESAMPLES:,} resamples, seed {SEED}"


def _errors(texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Returns the word errors (substitutions, deletions, insertions) of each utterance."""
    counts = []
    for text, reference in zip(texts, references, strict=True):
        if not reference.split():
            counts.append(len(text.split()))
            continue
        found = jiwer.process_words(reference, text)
        counts.append(found.substitutions + found.deletions + found.insertions)
    return np.array(counts)


def bootstrap(study: Study) -> Bootstrap | None:
    """Compares reported runs with those of the reference arm; None if no run kept its sentences.

    Reads {split}.hypotheses.txt and {split}.references.txt of the runs, one sentence per line.
    Raises UserError for a file that is not UTF-8.
    """
    if study.resampled:
        # JSON has no NaN, which stands for the numbers of a run that has no outputs.
        missing: dict[str, Any] = dict.fromkeys(("base", "value", "p"), math.nan)
        pairs = [
            Pair(**{**pair, **{k: nan for k, nan in missing.items() if pair[k] is None}})
            for pair in study.resampled["pairs"]
        ]
        return Bootstrap(pairs, study.resampled["measure"], study.resampled["signature"])
    reference, *others = study.experiment.arms
    written = {run.run: _sentences(study, run) for run in study.reported}
    if not others or not any(sentences.hypotheses for sentences in written.values()):
        return None
    split = study.experiment.outcome.split
    best = [run.result.get("best", {}) for run in study.reported if run.result]
    spoken = any("wer" in result.get(split, {}) for result in best)
    measure = "WER" if spoken else "BLEU"
    groups: dict[tuple, list[Run]] = {}
    for run in study.reported:
        groups.setdefault((run.key[1], run.seed), []).append(run)
    pairs: dict[tuple, Pair] = {}
    signature = ""
    for runs in groups.values():
        base = next((run for run in runs if run.arm == reference), None)
        arms = [run for run in runs if run.arm != reference]
        of_base = written[base.run] if base else _Sentences(note="not finished yet")
        notes = {run.run: _obstacle(reference, of_base, written[run.run]) for run in arms}
        systems = {r.run: written[r.run].hypotheses for r in arms if not notes[r.run]}
        found = {}
        if systems:
            of = of_base.hypotheses, systems, of_base.references
            found, signature = compare_wer(*of) if spoken else compare_bleu(*of, of_base.tokenizer)
        for run in arms:
            pair = Pair(run.arm, run.point, run.seed, note=notes[run.run])
            if run.run in found:
                base_value, value, p = found[run.run]
                n = len(of_base.references)
                pair = Pair(run.arm, run.point, run.seed, base_value, value, p, n)
            pairs[run.key, run.seed] = pair
    order = [(run.key, run.seed) for run in study.reported]
    return Bootstrap([pairs[key] for key in order if key in pairs], measure, signature)


def _sentences(study: Study, run: Run) -> _Sentences:
    found: dict[str, list[str]] = {}
    for what in ("hypotheses", "references"):
        path = study.workdir / run.run / f"{study.experiment.outcome.split}.{what}.txt"
        try:
            # Not splitlines, which would also split at characters that a sentence may contain.
            found[what] = path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
        except FileNotFoundError:
            return _Sentences(note=f"no {path.name} ({run.status})")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read: {error}.") from None
    hypotheses, references = found["hypotheses"], found["references"]
    tokenizer = signature_tokenizer((run.result.get("signatures") or {}).get("bleu", ""))
    note = ""
    try:
        make_bleu(tokenizer)
    except UserError:
        note = f"BLEU's tokenizer {tokenizer} is not installed here"
    if len(hypotheses) != len(references):
        note = f"{len(hypotheses)} hypotheses, {len(references)} references"
    return _Sentences(hypotheses, references, note, tokenizer)


def _obstacle(reference: str, base: _Sentences, arm: _Sentences) -> str:
    """Returns why two runs cannot be compared; "" if they can."""
    notes = [arm.note, f"{reference}: {base.note}" if base.note else ""]
    if not any(notes) and arm.references != base.references:
        notes = [f"other references than those of {reference}"]
    elif not any(notes) and arm.tokenizer != base.tokenizer:
        notes = [f"BLEU by {arm.tokenizer}, that of {reference} by {base.tokenizer}"]
    return "; ".join(note for note in notes if note)


def bootstrap_columns(study: Study, measure: str) -> list[Column]:
    """Returns the columns for a table of `Pair`s, whose scores are "BLEU" or "WER"."""
    reference = next(iter(study.experiment.arms))
    point = Column("point", lambda row: point_text(row.point), lambda _: None, kind="text")
    return [
        *([point] if study.experiment.axes else []),
        Column("arm", lambda row: row.arm, lambda row: row.arm, kind="arm"),
        Column("seed", lambda row: str(row.seed), lambda row: row.seed),
        Column(f"{measure} {reference}", lambda row: number(row.base), lambda row: row.base),
        Column(measure, lambda row: number(row.value), lambda row: row.value),
        Column(
            "p",
            lambda row: p_text(row.p),
            lambda row: row.p,
            "p-value of no difference between the two runs, not corrected for the number of "
            "comparisons.",
            flagged=lambda row: row.p < 0.05,
        ),
        Column(
            "sentences",
            lambda row: str(row.sentences) if row.sentences else NONE,
            lambda row: row.sentences,
        ),
        Column("notes", lambda row: row.note, lambda _: None, kind="text"),
    ]


def bootstrap_note(found: Bootstrap) -> str:
    """Returns a note that explains the table of comparisons."""
    bleu = found.measure == "BLEU"
    program = "sacrebleu, " if bleu else ""
    way = "random swaps of their outputs" if bleu else "resamples of the utterances"
    signature = f" ({program}{found.signature})" if found.signature else ""
    return (
        f"Each run against the run of the reference arm with its seed, {RESAMPLES:,} {way}"
        f"{signature}. A small p says that these two trained models differ "
        "beyond these sentences, not that the arms do: for that see the interval over seeds. p is "
        "not corrected for the number of comparisons."
    )
