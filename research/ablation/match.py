"""Matches parameter counts: solves for the feed-forward width of each arm."""

from dataclasses import replace

from ml_collections import ConfigDict

from research.ablation.expansion import resolve
from research.ablation.experiment import WIDTH, Experiment, point_name, points, seed_list
from research.configuration import apply_deltas
from research.errors import UserError, check_name
from research.training.budget import count_parameters


def with_matched_widths(experiment: Experiment) -> Experiment:
    """Returns the experiment with the feed-forward widths that `match` asks for.

    The first arm keeps its width. At each axis point, every other arm gets the width that brings
    its parameter count closest to that of the first arm.

    Raises UserError for an arm that cannot be matched.
    """
    if not experiment.match:
        return experiment
    check_name("match", experiment.match, ("parameters",))
    reference = next(iter(experiment.arms))
    widths: dict[str, dict[str, int]] = {arm: {} for arm in experiment.arms if arm != reference}
    tuned = {key: values[0] for key, values in experiment.tune.items()}
    for point in points(experiment):
        configs = {
            arm: resolve(experiment, arm, point, tuned, seed_list(experiment)[0], "report").config
            for arm in experiment.arms
        }
        if not configs[reference].model.feedforward:
            raise UserError(
                f"match='parameters' solves {WIDTH}, which the arm {reference!r} sets to 0; give "
                "it one."
            )
        wanted = count_parameters(configs[reference])
        for arm in widths:
            widths[arm][point_name(point)] = solve_width(configs[arm], wanted, arm)
    return replace(experiment, feedforward=widths)


def solve_width(config: ConfigDict, wanted: int, arm: str) -> int:
    """Returns the feed-forward width that brings a config closest to `wanted` parameters."""
    # The parameter count is linear in the width for widths of at least 1: two counts determine it.
    one, two = (count_parameters(apply_deltas(config, {WIDTH: n})) for n in (1, 2))
    width = 1 + round((wanted - one) / (two - one))
    if width < 1:
        raise UserError(
            f"arm {arm!r}: it has {one - (two - one)} parameters without feed-forward layers, more "
            f"than the {wanted} that match='parameters' asks for; make it smaller or the first arm "
            "larger."
        )
    return width
