"""Summarizes the main finding of an ablation in one sentence."""

import math
from collections.abc import Sequence

from research import stats
from research.report.formatting import count, number
from research.report.judging.judgements import VERDICTS, Judgement
from research.report.judging.study import Study
from research.report.tables import Row
from research.stats import ALPHA

FEW = 3
"""Maximum number of arms to name; for more, only their number is given."""


def takeaway(study: Study, rows: Sequence[Row], judgements: Sequence[Judgement]) -> str:
    """Returns the sentence, generated from the main table and the verdicts."""
    known = [row for row in rows if row.outcome.n]
    if not known:
        return "No run has finished yet."
    found = _solving(study, known) or _best(study, known)
    tally = {v: sum(j.verdict == v for j in judgements) for v in VERDICTS}
    said = ", ".join(f"{n} {verdict}" for verdict, n in tally.items() if n)
    claims = f"; claims: {said}" if said else ""
    return f"{found}{claims}."


def _solving(study: Study, rows: Sequence[Row]) -> str:
    """Returns which arms solve the task in every seed, and which in none; "" without threshold."""
    outcome = study.experiment.outcome
    counts: dict[str, list[int]] = {}
    for row in rows:
        if row.solved:
            k, n = counts.get(row.arm, [0, 0])
            counts[row.arm] = [k + row.solved[0], n + row.outcome.n]
    if not counts:
        return ""
    sign = "≥" if outcome.higher_is_better else "≤"
    task = f"the task ({outcome.split} {outcome.metric} {sign} {outcome.solved:g})"
    every = [arm for arm, (k, n) in counts.items() if k == n]
    never = [arm for arm, (k, _) in counts.items() if k == 0]
    some = [arm for arm, (k, n) in counts.items() if 0 < k < n]
    if not every and not some:
        return f"No seed of any arm solves {task}"
    parts = [f"in every seed by {_names(every, counts)}"] if every else []
    if len(some) > FEW:
        parts.append(f"in some seeds by {_names(some, counts)}")
    else:
        parts += [f"in {counts[arm][0]} of {counts[arm][1]} seeds by {arm}" for arm in some]
    parts += [f"in none by {_names(never, counts)}"] if never else []
    return f"{task[0].upper()}{task[1:]} is solved {', '.join(parts)}"


def _best(study: Study, rows: Sequence[Row]) -> str:
    """Returns which arm has the best mean, and how many arms differ from the reference arm."""
    outcome = study.experiment.outcome
    means: dict[str, list[float]] = {}
    for row in rows:
        means.setdefault(row.arm, []).append(row.outcome.mean)
    over = {arm: stats.mean(values) for arm, values in means.items()}
    ranked = sorted((a for a in over if math.isfinite(over[a])), key=over.__getitem__)
    if not ranked:
        return f"No arm has a finite {outcome.split} {outcome.metric}"
    best = ranked[-1] if outcome.higher_is_better else ranked[0]
    reference = next(iter(study.experiment.arms))
    places = {tuple(row.point.items()) for row in rows}
    across = f" over {len(places)} points" if len(places) > 1 else ""
    most = "highest" if outcome.higher_is_better else "lowest"
    what = f"mean {outcome.split} {outcome.metric}"
    text = f"{best} has the {most} {what}{across}, {number(over[best])}"
    if best != reference:
        text += f", against {number(over.get(reference))} of {reference}"
    tested = [row for row in rows if not math.isnan(row.p)]
    if not tested:
        return f"{text}; no difference could be tested"
    differ = sum(row.p < ALPHA for row in tested)
    return f"{text}; {differ} of {len(tested)} differences from {reference} are significant (Holm)"


def _names(arms: Sequence[str], counts) -> str:
    if len(arms) > FEW:
        return f"{len(arms)} of {count(len(counts), 'arm')}"
    return " and ".join(filter(None, (", ".join(arms[:-1]), arms[-1])))
