"""What is fixed when an experiment is run for the first time: its seeds, and its claims.

Seeds that a recipe was developed on flatter it, and so do claims that were written after a look at
the runs. An experiment that gives a number of seeds gets seeds that nobody chose: they follow from
a hash of its name and content at its first run, and stay when the file changes, so that a larger
number adds seeds and keeps the others. Claims are known by a hash of what they test; those that a
sweep did not have when it began are exploratory.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from research.ablation.claims import Claim
from research.ablation.experiment import Experiment

FIRST, LAST = 10_000, 2**31
"""Drawn seeds lie between; smaller ones are for people, who like to tune with them."""

CONTENT = ("base", "common", "arms", "axes", "tune", "match")
"""Parts of an experiment that decide which models are trained."""


@dataclass(frozen=True)
class Registration:
    """What a sweep directory remembers of its first run.

    Attributes:
      basis: hash that seeds are drawn from.
      looks: numbers of seeds that runs were started with, ascending: each is one more chance to
        stop at a lucky moment, for which verdicts are corrected.
      begun: UTC time of the first run, ISO 8601.
      claims: {hash of a claim: UTC time of the first run that had it}.
    """

    basis: str
    looks: tuple[int, ...]
    begun: str
    claims: Mapping[str, str]


def seed_basis(experiment: Experiment, name: str) -> str:
    """Returns the hash of an experiment's name and content."""
    plain = experiment.to_json()
    # Which seeds tune says nothing of what is trained. The hash has had a place for them, and
    # without it the seeds of experiments that tune nothing would be others.
    return _hash({"name": name, "tune_seeds": ()} | {part: plain[part] for part in CONTENT})


def draw_seeds(basis: str, number: int, avoid: Iterable[int] = ()) -> tuple[int, ...]:
    """Returns the first seeds that follow from a hash; more of them begin with the same ones."""
    taken, found, index = set(avoid), [], 0
    while len(found) < number:
        digest = hashlib.sha256(f"{basis} {index}".encode()).digest()
        seed = FIRST + int.from_bytes(digest[:8], "big") % (LAST - FIRST)
        index += 1
        if seed not in taken:
            taken.add(seed)
            found.append(seed)
    return tuple(found)


def with_seeds(experiment: Experiment, basis: str) -> Experiment:
    """Returns the experiment with its seeds drawn, where it gives a number of them.

    Those to tune with are drawn from a hash of their own, so that more of either kind begin with
    the same ones, and are never among those that are reported.
    """
    seeds, tuning = experiment.seeds, experiment.tune_seeds
    if isinstance(tuning, int):
        chosen = () if isinstance(seeds, int) else seeds
        number = tuning if experiment.tune else 0
        tuning = draw_seeds(f"{basis} tuning", number, chosen)
    if isinstance(seeds, int):
        seeds = draw_seeds(basis, seeds, tuning)
    return replace(experiment, seeds=seeds, tune_seeds=tuning)


def claim_hash(claim: Claim) -> str:
    """Returns the hash of what a claim tests; its words and its source may be corrected."""
    test = asdict(claim)["test"]
    return _hash({"within_steps": test} if claim.within_steps else test)


def register(experiment: Experiment, name: str, before: Registration | None) -> Registration:
    """Returns the registration of a run: that of the runs before, with what is new."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    basis = before.basis if before else seed_basis(experiment, name)
    number = len(experiment.seeds) if isinstance(experiment.seeds, Sequence) else experiment.seeds
    looks = before.looks if before else ()
    if number > max(looks, default=0):
        looks = (*looks, number)
    known = before.claims if before else {}
    claims = {h: known.get(h, now) for c in experiment.claims if (h := claim_hash(c))}
    return Registration(basis, looks, before.begun if before else now, {**known, **claims})


def is_late(claim: Claim, registration: Registration | None) -> bool:
    """Returns whether a claim was written after the first run."""
    if registration is None:
        return False
    return registration.claims.get(claim_hash(claim), "~") > registration.begun


def registration_from_json(value: Mapping[str, Any] | None) -> Registration | None:
    """Inverse of `dataclasses.asdict`; None of sweeps from before there were registrations."""
    if not value:
        return None
    return Registration(
        basis=value["basis"],
        looks=tuple(value["looks"]),
        begun=value["begun"],
        claims=value["claims"],
    )


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
