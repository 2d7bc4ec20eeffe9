"""Preregistration: fixes the seeds and claims of an experiment when it is first run.

Results look too good on seeds that a recipe was developed on, and claims written after seeing the
runs fit them too well. If an experiment gives a number of seeds, nobody chooses them: they are
derived from a hash of its name and content at the first run and kept when the file changes, so that
raising the number adds seeds and keeps the old ones. Claims are identified by a hash of their test;
claims that were added after the sweep began are exploratory.
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
"""Range of drawn seeds. Smaller seeds are never drawn, because people develop recipes on them."""

CONTENT = ("base", "common", "arms", "axes", "tune", "match")
"""Parts of an experiment that determine which models are trained."""


@dataclass(frozen=True)
class Registration:
    """Record of a sweep's first run, kept in its directory.

    Attributes:
      basis: hash that the seeds are drawn from.
      looks: numbers of seeds that the sweep was run with, ascending. Each is another chance to stop
        at a lucky moment (optional stopping), for which verdicts are corrected.
      begun: UTC time of the first run, ISO 8601.
      claims: {hash of a claim: UTC time of the first run with that claim}.
    """

    basis: str
    looks: tuple[int, ...]
    begun: str
    claims: Mapping[str, str]


def seed_basis(experiment: Experiment, name: str) -> str:
    """Returns the hash of an experiment's name and content."""
    plain = experiment.to_json()
    # The tuning seeds do not affect which models are trained, so they are left out. The empty
    # entry keeps the hash, and so the seeds, of existing experiments without tuning unchanged; so
    # does leaving out an empty `along`.
    content = {part: plain[part] for part in CONTENT}
    if experiment.along:
        content["along"] = plain["along"]
    return _hash({"name": name, "tune_seeds": ()} | content)


def draw_seeds(basis: str, number: int, avoid: Iterable[int] = ()) -> tuple[int, ...]:
    """Returns `number` seeds derived from a hash; a larger number extends the same sequence."""
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
    """Returns the experiment with seeds drawn wherever it gives only their number.

    Tuning seeds are drawn from a separate hash, so that raising either number keeps the seeds
    already drawn; a tuning seed is never also a reported seed.
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
    """Returns the hash of a claim's test; its text and source may be corrected later."""
    test = asdict(claim)["test"]
    return _hash({"within_steps": test} if claim.within_steps else test)


def register(experiment: Experiment, name: str, before: Registration | None) -> Registration:
    """Returns the registration `before`, if any, extended by the claims and seeds of this run."""
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
    """Returns whether a claim was added after the first run."""
    if registration is None:
        return False
    return registration.claims.get(claim_hash(claim), "~") > registration.begun


def registration_from_json(value: Mapping[str, Any] | None) -> Registration | None:
    """Inverse of `dataclasses.asdict`; None for sweeps that predate registrations."""
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
