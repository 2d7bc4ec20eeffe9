"""Retrieval of a fact from a long text, by its depth and the length of the text.

A sentence with a random fact stands somewhere in a text that has nothing to do with it, and the
text ends with the question (Mohtashami and Jaggi 2023, "Landmark Attention", section 4.2; Kamradt
2023, "Needle in a Haystack"). Beside whether the model answers, we measure how much more probable
the answer is than if another fact stood in its place: a model that does not read the fact shows no
difference, whatever it thinks of the answer.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from research.decoding.continuation_scores import score_continuations
from research.errors import UserError
from research.models.decoder import Decoder
from research.tasks.text.tokenizer import Tokenizer

FACT = "The pass key is {answer}. Remember it."
QUESTION = "The pass key is"
FILLER = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
)
"""Sentences of Mohtashami and Jaggi 2023."""
BLANK = "{answer}"
NUMBERS = range(10_000, 100_000)
"""Answers, if none are given."""


class Needle(NamedTuple):
    """A fact and a question about it; tokens, int32.

    Attributes:
      fact: the sentence with the answer.
      other: the sentence with another answer.
      question: what comes before the answer, at the end of the text.
      answer: the answer, with the space before it.
    """

    fact: Int[np.ndarray, " F"]
    other: Int[np.ndarray, " O"]
    question: Int[np.ndarray, " Q"]
    answer: Int[np.ndarray, " A"]


class Cell(NamedTuple):
    """Scores of D needles at one depth of texts of one length.

    Attributes:
      length: number of tokens, from the first to the last of the answer.
      depth: fraction of the filler that comes before the fact.
      found: whether greedy decoding gives the answer.
      log_prob: log-probability of the answer, in nats.
      other_log_prob: log-probability of the same answer after the other fact.
    """

    length: int
    depth: float
    found: Bool[np.ndarray, " D"]
    log_prob: Float[np.ndarray, " D"]
    other_log_prob: Float[np.ndarray, " D"]

    @property
    def gain(self) -> Float[np.ndarray, " D"]:
        """What the fact adds to the log-probability of the answer, in nats."""
        return self.log_prob - self.other_log_prob


def needles(
    tokenizer: Tokenizer,
    number: int,
    fact: str = FACT,
    question: str = QUESTION,
    answers: Sequence[str] = (),
    seed: int = 0,
) -> list[Needle]:
    """Returns needles with random answers. Fact and question stand on lines of their own.

    Args:
      tokenizer: that of the model.
      number: D.
      fact: the sentence, with {answer} in it.
      question: what comes before the answer.
      answers: what they are drawn from; (): numbers of five digits.
      seed: of the random numbers.

    Raises UserError for a fact without answer, fewer than two answers, and answers that have no
    tokens of their own after the question.
    """
    if fact.count(BLANK) != 1:
        raise UserError(f"--fact={fact!r} must have {BLANK} in it, once.")
    if len(set(answers)) == 1:
        raise UserError(f"--answers={answers[0]}: give at least two that differ, or none.")
    rng = np.random.default_rng(seed)
    known = list(dict.fromkeys(answers)) or NUMBERS
    asked = tokenizer.encode(f"\n{question}")
    found = []
    for _ in range(number):
        answer, other = (str(known[i]) for i in rng.choice(len(known), 2, replace=False))
        whole = tokenizer.encode(f"\n{question} {answer}")
        rest = whole[len(asked) :]
        if not answer or not len(rest) or not np.array_equal(whole[: len(asked)], asked):
            raise UserError(
                f"the answer {answer!r} has no tokens of its own after --question={question!r}; "
                "give answers that begin with a letter or digit, and a question without a space "
                "at its end."
            )
        facts = (tokenizer.encode(f"\n{fact.replace(BLANK, one)}\n") for one in (answer, other))
        found.append(Needle(*facts, asked, rest))
    return found


def repeated(tokens: Int[np.ndarray, " S"], length: int) -> Int[np.ndarray, " N"]:
    """Returns the tokens again and again, enough for texts of `length` that begin anywhere."""
    return np.resize(tokens, length + len(tokens))


def context(
    filler: Int[np.ndarray, " N"],
    fact: Int[np.ndarray, " F"],
    question: Int[np.ndarray, " Q"],
    depth: float,
) -> Int[np.ndarray, " N+F+Q"]:
    """Returns filler with the fact after this fraction of it, rounded to a token; the question."""
    before = round(depth * len(filler))
    return np.concatenate([filler[:before], fact, filler[before:], question])


def needle_cells(
    model: Decoder,
    params: Any,
    text: Int[np.ndarray, " N"],
    drawn: Sequence[Needle],
    lengths: Sequence[int],
    depths: Sequence[float],
    start: Sequence[int] | Int[np.ndarray, " S"] = (),
    streams: bool = False,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Cell]:
    """Returns the scores of needles at every depth of texts of every length.

    A needle has the same stretch of filler at every depth, and begins it at the same place at every
    length, so that differences are those of depth and length.

    Args:
      model: the decoder.
      params: its parameters.
      text: filler.
      drawn: the needles.
      lengths: number of tokens from the first to the last of the answer.
      depths: fractions of the filler that come before the fact.
      start: tokens that every text begins with.
      streams: whether the model was made by `research.decoding.streaming.streaming`.
      seed: of where the filler begins.
      progress: told how many texts were read, of two for each needle, depth and length.

    Raises UserError for depths and lengths out of range, and a filler that is too short.
    """
    check_sizes(model, text, drawn, lengths, depths, len(start), streams)
    rng = np.random.default_rng(seed)
    begins = rng.integers(0, len(text) - max(lengths) + 1, len(drawn))
    cells = []
    for number, length in enumerate(lengths):
        pairs = []
        for depth in depths:
            for needle, begin in zip(drawn, begins, strict=True):
                for fact in (needle.fact, needle.other):
                    taken = len(start) + len(fact) + len(needle.question) + len(needle.answer)
                    filler = text[begin : begin + length - taken]
                    whole = context(filler, fact, needle.question, depth)
                    pairs.append((np.concatenate([start, whole]), needle.answer))
        done = number * len(pairs)
        scores = score_continuations(
            model, params, pairs, streams, lambda some, done=done: progress(done + some)
        )
        by_depth = scores.log_prob.reshape(len(depths), len(drawn), 2)
        found = scores.greedy.reshape(by_depth.shape)[..., 0]
        cells += [
            Cell(length, depth, found[i], by_depth[i, :, 0], by_depth[i, :, 1])
            for i, depth in enumerate(depths)
        ]
    return cells


def check_sizes(
    model: Decoder,
    text: Int[np.ndarray, " N"],
    drawn: Sequence[Needle],
    lengths: Sequence[int],
    depths: Sequence[float],
    start: int,
    streams: bool,
) -> None:
    """Raises UserError for sizes out of range; see `needle_cells`."""
    for depth in depths:
        if not 0 <= depth <= 1:
            raise UserError(f"--depths={depth:g} must be from 0 (the beginning) to 1 (the end).")
    least = start + max(
        max(len(one.fact), len(one.other)) + len(one.question) + len(one.answer) for one in drawn
    )
    longest = max(lengths)
    for length in lengths:
        if length < least:
            raise UserError(
                f"--lengths={length}: fact, question and answer alone have {least:,} tokens."
            )
    if longest > model.config.length + 1 and not streams:
        raise UserError(
            f"--lengths={longest} must be at most {model.config.length + 1:,}: the model reads "
            f"{model.config.length:,} tokens at once, and predicts one more. A rolling cache "
            "(--window, --sinks) reads any number."
        )
    if longest > len(text):
        raise UserError(f"--lengths={longest}: the filler has only {len(text):,} tokens.")


def summary(cell: Cell) -> dict[str, float]:
    """Returns the means of a cell, and the standard error of the gain; NaN for one needle."""
    number = len(cell.gain)
    error = cell.gain.std(ddof=1) / number**0.5 if number > 1 else np.nan
    return {
        "length": cell.length,
        "depth": cell.depth,
        "found": float(cell.found.mean()),
        "log_prob": float(cell.log_prob.mean()),
        "other_log_prob": float(cell.other_log_prob.mean()),
        "gain": float(cell.gain.mean()),
        "gain_error": float(error),
    }


def table(cells: Sequence[Cell]) -> str:
    """Returns the means of the cells as lines separated by tabs, a header first."""
    rows = [summary(cell) for cell in cells]
    lines = ["\t".join(rows[0])]
    for row in rows:
        length, depth, *others = row.values()
        lines.append("\t".join([f"{length}", f"{depth:g}", *(f"{x:.4f}" for x in others)]))
    return "\n".join(lines) + "\n"
