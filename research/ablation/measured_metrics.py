"""Checks before training that the runs of an experiment measure the metrics that it compares."""

import jax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from research.ablation.claims import RISE, STEPS
from research.ablation.experiment import Experiment
from research.errors import UserError, check_name
from research.interpret.analyses import metric_names
from research.interpret.head_metrics import with_head_measures
from research.tasks.task import Batch, Sums
from research.training.program import Program
from research.training.scores import score_names
from research.training.step import batch_shapes
from research.training.validation import cross_attention_heads


def check_metrics(experiment: Experiment, arm: str, program: Program, config: ConfigDict) -> None:
    """Raises UserError if the outcome or a claim uses a metric that an arm does not measure.

    Args:
      experiment: the experiment.
      arm: one of its arms.
      program: training program of one of the arm's runs.
      config: config of that run.
    """
    outcome, task = experiment.outcome, program.task
    check_name("outcome.split", outcome.split, task.splits)
    check_name("outcome.at", outcome.at, ("best", "final"))
    logged = logged_numbers(program)

    def known_on(split: str) -> list[str]:
        if outcome.at == "final":
            return logged
        asked = metric_names(config.interpret.final, task, split, batch_shapes(task))
        return [*logged, *score_names(task, split), *asked]

    known = known_on(outcome.split)
    if (
        outcome.metric in known
        and outcome.metric in task.aligned
        and not cross_attention_heads(program)
    ):
        raise UserError(f"outcome.metric={outcome.metric!r} needs attention, and this arm has none")
    check_name("outcome.metric", outcome.metric, known)
    if experiment.tune and outcome.metric not in (chosen_by := known_on("validation")):
        raise UserError(
            f"outcome.metric={outcome.metric!r} is not measured on validation, by which tuning "
            f"chooses; leave tune out, or compare one of {', '.join(chosen_by)}."
        )
    if config.interpret.final:
        return  # the slices of these metrics are known only once a model is trained
    for claim in experiment.claims:
        metric = claim.test.metric if claim.test else ""
        if arm in claim.arms() and metric and "/" not in metric and metric not in (STEPS, RISE):
            check_name(f"claim {claim.text!r}: metric", metric, [*known, *program.slices])


def logged_numbers(program: Program) -> list[str]:
    """Returns the names of the scalar metrics that an evaluation computes on any split."""
    task = program.task
    metrics = with_head_measures(task, program.model, program.measures)

    def marked_metrics(params: PyTree, batch: Batch) -> dict[str, Sums]:
        return metrics(params, task.with_eval_length(batch, 0))[1]

    sums = jax.eval_shape(marked_metrics, program.parameters, batch_shapes(task))
    return [name for name, s in sums.items() if s.total.ndim == 0]
