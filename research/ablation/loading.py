"""Loads and validates experiment files, so that mistakes are found before anything is trained.

Some mistakes would make a comparison meaningless: if two parts of an experiment set the same key,
one of the values silently wins, and two arms that resolve to the same run are always equal.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from research.ablation.claims import COLUMNS, Claim, Directions, higher_is_better
from research.ablation.expansion import Cell, resolve
from research.ablation.experiment import (
    COSTS,
    WIDTH,
    Experiment,
    Outcome,
    point_name,
    points,
    seed_list,
    tuning_grid,
)
from research.ablation.registration import seed_basis, with_seeds
from research.configuration import flatten, load_config, load_module
from research.errors import UserError, check_name, did_you_mean
from research.parallel.layout import parse_layout
from research.parallel.xla_flags import use_profile

SWEPT = {
    "seed": "give seeds=5, and tune_seeds=3 where something is tuned",
    "members": "a sweep trains the runs of one shape together by itself, as --max_members says",
}
"""Keys that only the sweep may set, and what to do instead."""


@dataclass(frozen=True)
class InMemoryExperiment:
    """An experiment built in Python rather than loaded from a file, and the name of its sweep."""

    experiment: Experiment
    name: str


Source = str | Path | InMemoryExperiment
"""Source of an experiment: a file, or an object built in Python."""


def experiment_name(source: Source) -> str:
    """Returns the name of an experiment: the given one, or that of its file without ".py"."""
    return source.name if isinstance(source, InMemoryExperiment) else Path(source).stem


def load_experiment(source: Source, basis: str = "") -> Experiment:
    """Returns a validated experiment with its seeds drawn and the directions of its metrics set.

    Args:
      source: the file, or an experiment built in Python.
      basis: hash to draw the seeds from, recorded at the sweep's first run; "": the hash of the
        experiment as it is now.

    Raises UserError that says what is wrong.
    """
    experiment, path = _read(source)
    try:
        experiment = with_seeds(
            experiment, basis or seed_basis(experiment, experiment_name(source))
        )
        check_keys(experiment)
        for claim in experiment.claims:
            check_claim(experiment, claim)
        cells = representative_cells(experiment)
        check_distinct(experiment, cells)
        return with_directions(experiment, cells)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _read(source: Source) -> tuple[Experiment, str]:
    """Returns an experiment as it is written, and its path or name. Raises UserError."""
    if isinstance(source, InMemoryExperiment):
        experiment, path = source.experiment, source.name
    else:
        experiment, path = getattr(load_module(source), "experiment", None), str(source)
    if not isinstance(experiment, Experiment):
        raise UserError(f"{path} defines no `experiment = Experiment(...)`.")
    try:
        check_parts(experiment)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return experiment, path


def shared_value(experiment: Experiment, key: str, layout: str = "") -> Any:
    """Returns the value of a config key in all runs, before what arms and axes set.

    Args:
      experiment: the experiment.
      key: the dotted key.
      layout: replaces keys of `config.parallel`, see `parse_layout`.
    """
    config = load_config(experiment.base)
    deltas = {**experiment.common, **parse_layout(layout, config.parallel)}
    return deltas.get(key, flatten(config)[key])


def use_profile_of(source: Source, layout: str = "") -> str:
    """Applies the `parallel.xla_flags` of an experiment to this process, and returns it.

    Must be called before JAX uses a device. Raises UserError for an experiment that cannot be read;
    its arms are not checked, which takes seconds where there are many.
    """
    profile = shared_value(_read(source)[0], "parallel.xla_flags", layout)
    use_profile(profile)
    return profile


def check_parts(experiment: Experiment) -> None:
    """Raises UserError if a part of the experiment is missing, empty or not a list of values."""
    if not experiment.arms:
        raise UserError("arms is empty; an ablation compares at least one arm.")
    seeds = experiment.seeds
    if isinstance(seeds, int) and seeds < 1 or not seeds:
        raise UserError(f"seeds={seeds!r}: must be the number of reported seeds, such as 5.")
    tuning = experiment.tune_seeds
    if experiment.tune and (isinstance(tuning, int) and tuning < 1 or not tuning):
        raise UserError(f"tune_seeds={tuning!r}: must be the number of tuning seeds, such as 3.")
    if experiment.tune_extend < 0:
        raise UserError(
            f"tune_extend={experiment.tune_extend!r}: must be the number of values that may be "
            "added to a side of a grid, such as 3, or 0."
        )
    if experiment.against not in ("", *COSTS):
        hint = did_you_mean(experiment.against, COSTS)
        raise UserError(
            f"against={experiment.against!r} is unknown.{hint} Allowed: {', '.join(COSTS)}."
        )
    check_name("match", experiment.match, ("", "parameters"))
    check_split(experiment)
    chosen = () if isinstance(seeds, int) else seeds
    tuned_on = () if isinstance(tuning, int) else tuning
    lists = {"seeds": chosen, "tune_seeds": tuned_on}
    for where, given in (("axes", experiment.axes), ("tune", experiment.tune)):
        for key, values in given.items():
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise UserError(f"{where}[{key!r}]={values!r}: give a tuple of one or more values.")
        lists |= {f"{where}[{key!r}]": values for key, values in given.items()}
    for name, values in lists.items():
        twice = [text for text, number in Counter(map(repr, values)).items() if number > 1]
        if twice:
            raise UserError(f"{name} has {twice[0]} twice; name each value once.")
    taken = [point_name({key: v}) for key, values in experiment.axes.items() for v in values]
    for value in experiment.along:
        check_name("along", value, taken)
    overlap = set(chosen) & set(tuned_on)
    if overlap:
        raise UserError(
            f"seeds {sorted(overlap)} are in both seeds and tune_seeds; the reported seeds must be "
            "fresh."
        )
    for name in ("feedforward", "directions", "ranges", "looks"):
        if getattr(experiment, name):
            raise UserError(f"{name} is found by the sweep; leave it out.")


def check_split(experiment: Experiment) -> None:
    """Raises UserError if the outcome is reported on the split that was used for selection.

    The best of several checkpoints or learning rates looks too good on the data that selected it.
    """
    outcome = experiment.outcome
    chosen = ["the checkpoint (outcome.at='best')"] if outcome.at == "best" else []
    chosen += ["the tuned values"] if experiment.tune else []
    if outcome.split == "validation" and chosen:
        rest = "" if experiment.tune else " or outcome.at='final'"
        raise UserError(
            f"outcome.split='validation' chooses {' and '.join(chosen)}, so its results are too "
            f"good; use 'test' (for a text: with task.test_fraction=0.05){rest}."
        )


def check_keys(experiment: Experiment) -> None:
    """Raises UserError if more than one part sets the same key, since one value would be lost.

    An arm may override a common delta, unless every arm does.
    """
    arms = {f"arm {name!r}": deltas for name, deltas in experiment.arms.items()}
    along = {f"along {value!r}": deltas for value, deltas in experiment.along.items()}
    parts = {"common": experiment.common, **arms, **along}
    parts |= {"axes": experiment.axes, "tune": experiment.tune}
    for part, given in parts.items():
        for key in SWEPT.keys() & given.keys():
            raise UserError(f"{part} sets {key!r}, which is not an arm's to choose: {SWEPT[key]}.")
    for one, other in itertools.combinations(experiment.along, 2):
        shared = experiment.along[one].keys() & experiment.along[other].keys()
        if shared and one.split("=")[0] != other.split("=")[0]:
            raise UserError(
                f"along sets {min(shared)!r} for {one!r} and for {other!r}, which are values of "
                "one point, so that one of them is lost."
            )
    for part, taker in _unwanted(parts):
        for key in parts[part].keys() & parts[taker].keys():
            raise UserError(
                f"{part} sets {key!r}, which is in {taker} as well, so that one of its values is "
                f"lost; take it out of {part} or out of {taker}."
            )
    for key, value in experiment.common.items():
        if all(key in deltas for deltas in experiment.arms.values()):
            raise UserError(
                f"common sets {key!r} to {value!r}, and so does every arm to something of its own; "
                "take it out of common."
            )
    if experiment.match:
        for part in [*list(arms)[1:], *along, "axes", "tune"]:
            if WIDTH in parts[part]:
                raise UserError(
                    f"{part} sets {WIDTH!r}, which match={experiment.match!r} solves for every arm "
                    "but the first; take it out."
                )
    if (members := load_config(experiment.base).members) != 1:
        raise UserError(f"{experiment.base} sets members={members}; {SWEPT['members']}.")


def _unwanted(parts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields pairs of parts that must not set the same key; the second is "axes" or "tune"."""
    for taker in ("axes", "tune"):
        yield from ((part, taker) for part in parts if part not in ("axes", "tune"))
    yield "axes", "tune"


def check_claim(experiment: Experiment, claim: Claim) -> None:
    """Raises UserError if a claim names an arm, an axis or a column that does not exist."""
    where = f"claim {claim.text!r}"
    for arm in claim.arms():
        if arm not in experiment.arms:
            hint = did_you_mean(arm, experiment.arms)
            raise UserError(f"{where} names the unknown arm {arm!r}.{hint}")
    for axis in claim.axes():
        if axis not in experiment.axes:
            hint = did_you_mean(axis, experiment.axes)
            raise UserError(f"{where} names the unknown axis {axis!r}.{hint}")
    for axis, value in claim.test.at.items() if claim.test else ():
        if axis in experiment.axes and value not in experiment.axes[axis]:
            raise UserError(
                f"{where} is at {axis}={value!r}, which the axis does not take; its values are "
                f"{', '.join(map(repr, experiment.axes[axis]))}."
            )
    metric = claim.test.metric if claim.test else ""
    if "/" in metric:
        known = [f"{group}/{name}" for group, names in COLUMNS.items() for name in names]
        check_name(f"{where}: metric", metric, known)


def representative_cells(experiment: Experiment) -> list[Cell]:
    """Returns one cell per arm and point, with the first seed and the first tuned values."""
    tuned, seed = tuning_grid(experiment)[0], seed_list(experiment)[0]
    return [
        resolve(experiment, arm, point, tuned, seed, "report")
        for point in points(experiment)
        for arm in experiment.arms
    ]


def check_distinct(experiment: Experiment, cells: Sequence[Cell]) -> None:
    """Raises UserError if two arms are the same run but not listed in `same`, or vice versa.

    Args:
      experiment: the experiment.
      cells: its cells, from `representative_cells`.
    """
    said = {
        frozenset(pair) for group in experiment.same for pair in itertools.combinations(group, 2)
    }
    for arm in itertools.chain(*experiment.same):
        check_name("same", arm, experiment.arms)
    found, first = set(), {}
    for cell in cells:
        other = first.setdefault(cell.run, cell)
        pair = frozenset((cell.arm, other.arm))
        if other is cell:
            continue
        if pair not in said:
            raise UserError(
                f"{_name(other)} and {_name(cell)} are the same run, so that they can only be "
                "equal; change one of them, or say that it is meant to be with "
                f"same=(({other.arm!r}, {cell.arm!r}),)."
            )
        found.add(pair)
    for pair in said - found:
        raise UserError(f"same has {tuple(sorted(pair))!r}, which are never the same run.")


def _name(cell: Cell) -> str:
    return f"arm {cell.arm!r}" + (f" at {point_name(cell.point)}" if cell.point else "")


def with_directions(experiment: Experiment, cells: Sequence[Cell]) -> Experiment:
    """Returns the experiment with the metric directions that its runs declare filled in.

    Raises UserError if the direction of the outcome or of a claim's metric is unknown, or
    contradicts the declared one.
    """
    # Imported here because it imports jax, which reading an experiment from disk does not need.
    from research.ablation.directions import metric_directions, metric_ranges

    known: dict[str, bool | None] = {}
    ranges: dict[str, tuple[float | None, float | None]] = {}
    kinds = {
        (c.config.task.name, *c.config.interpret.final, *c.config.interpret.measures): c
        for c in cells
    }
    for cell in kinds.values():
        known |= metric_directions(cell.config)
        ranges |= metric_ranges(cell.config)
    directed = replace(
        experiment,
        outcome=_with_direction(experiment.outcome, known),
        directions={name: higher for name, higher in known.items() if higher is not None},
        ranges=ranges,
    )
    for claim in experiment.claims:
        _check_direction(directed, claim, known)
    return directed


def _with_direction(outcome: Outcome, known: Directions) -> Outcome:
    said, higher = outcome.higher_is_better, known.get(outcome.metric)
    if said is None and higher is None:
        why = "whether higher is better is not declared, because neither way is."
        if outcome.metric not in known:
            hint = did_you_mean(outcome.metric, known)
            why = f"whether higher is better is unknown.{hint} If the name is right:"
        raise UserError(
            f"outcome.metric={outcome.metric!r}: {why} Set higher_is_better=True or False."
        )
    if said is not None and higher is not None and said != higher:
        raise UserError(
            f"outcome.higher_is_better={said}: of {outcome.metric!r} {_word(higher)} is better; "
            "leave it out."
        )
    return replace(outcome, higher_is_better=higher if said is None else said)


def _check_direction(experiment: Experiment, claim: Claim, known: Directions) -> None:
    better = getattr(claim.test, "better", None)
    if claim.test is None or better is None:
        return
    where, metric = f"claim {claim.text!r}", claim.test.metric
    told = higher_is_better(metric, experiment.outcome, "", known)
    if told is None and not better:
        hint = "" if metric in known else did_you_mean(metric, known)
        raise UserError(
            f"{where} compares the metric {metric!r}, whose direction is not declared.{hint} "
            "Set better='higher' or better='lower'."
        )
    if better and told is not None and higher_is_better(metric, experiment.outcome, better) != told:
        raise UserError(
            f"{where}: better={better!r}, but of {metric or experiment.outcome.metric!r} "
            f"{_word(told)} is better; leave it out, and swap a and b if that is meant."
        )


def _word(higher: bool) -> str:
    return "higher" if higher else "lower"
