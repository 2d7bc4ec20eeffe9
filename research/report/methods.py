"""Writes the methods paragraph that a paper would have about the ablation."""

from collections.abc import Iterator, Mapping
from typing import Any

from research.ablation.experiment import points, seed_list, tune_seed_list
from research.ablation.registration import draw_seeds
from research.configuration import flatten
from research.report.formatting import count, short_keys, value_text
from research.report.judging.items import intervals_over
from research.report.judging.study import Study
from research.stats import ALPHA

NAMED = 6
"""Maximum number of arms to name; for more, only their number is given."""


def methods(study: Study) -> str:
    """Returns the paragraph as plain text: arms, model, training, tuning, seeds, tests, machine.

    Only options that all arms share are stated as common.
    """
    parts = (_arms, _model, _training, _tuning, _seeds, _tests, _machine)
    return " ".join(sentence for part in parts for sentence in part(study))


def common_config(study: Study) -> dict[str, Any]:
    """Returns {dotted key: value} that all reported runs share; {} if no config was kept."""
    configs = [flatten(run.config) for run in study.reported if run.config]
    if not configs:
        return {}
    return {
        key: value
        for key, value in configs[0].items()
        if all(config.get(key) == value and key in config for config in configs)
    }


def _arms(study: Study) -> Iterator[str]:
    experiment = study.experiment
    names = list(experiment.arms)
    listed = f" ({'; '.join(names)})" if len(names) <= NAMED else ""
    yield f"We compare {count(len(names), 'arm')}{listed} with {names[0]} as the reference."
    if experiment.axes:
        keys = short_keys(experiment.axes)
        axes = "; ".join(
            f"{keys[key]} in {', '.join(map(value_text, values))}"
            for key, values in experiment.axes.items()
        )
        yield f"Every arm is trained at {count(len(points(experiment)), 'point')}: {axes}."
    if experiment.match == "parameters":
        yield (
            "The feed-forward width of every arm is solved so that all have as many parameters as "
            "the reference."
        )


def _model(study: Study) -> Iterator[str]:
    config = common_config(study)
    if "model.name" not in config or "task.name" not in config:
        yield f"Models and task are those of {study.experiment.base}."
        return
    shape = [
        f"{noun} {config[key]:,}"
        for key, noun in (
            ("model.num_layers", "layers:"),
            ("model.width", "width:"),
            ("model.num_heads", "heads:"),
            ("model.feedforward", "feed-forward width:"),
        )
        if config.get(key) is not None
    ]
    form = f" ({', '.join(shape)})" if shape else ""
    model = str(config["model.name"]).replace("_", "-")
    yield f"The model is of the kind {model}{form}; the task is {config['task.name']}."


def _training(study: Study) -> Iterator[str]:
    config = common_config(study)
    source = study.experiment.common.get("train.init_from")
    if source:
        yield f"Every run starts from the parameters of {source}."
    if config.get("train.steps") == 0:
        yield "No run is trained."
        return
    if "train.steps" in config and "task.batch_size" in config:
        yield (
            f"Training takes {config['train.steps']:,} steps of {config['task.batch_size']:,} "
            "sequences."
        )
    if "optimizer.name" in config:
        said = [str(config["optimizer.name"])]
        if config.get("optimizer.learning_rate") is not None:
            said.append(f"a peak learning rate of {value_text(config['optimizer.learning_rate'])}")
        if config.get("optimizer.schedule") is not None:
            warmup = config.get("optimizer.warmup_steps")
            after = f" after {warmup} steps of warm-up" if warmup else ""
            said.append(f"a {config['optimizer.schedule']} schedule{after}")
        if config.get("optimizer.weight_decay") is not None:
            said.append(f"weight decay {value_text(config['optimizer.weight_decay'])}")
        yield f"The optimizer is {', '.join(said)}."


def _tuning(study: Study) -> Iterator[str]:
    experiment = study.experiment
    if not experiment.tune:
        yield "No arm was tuned."
        return
    keys = short_keys(experiment.tune)
    grid = "; ".join(
        f"{keys[key].replace('_', ' ')} in {', '.join(map(value_text, values))}"
        for key, values in experiment.tune.items()
    )
    tuning = count(len(tune_seed_list(experiment)), "tuning seed")
    yield (
        f"Every arm at every point is tuned on the same grid ({grid}): the combination that is "
        f"best on validation over {tuning}, which the "
        "reported runs do not contain, is then trained anew."
    )


def _seeds(study: Study) -> Iterator[str]:
    experiment, outcome = study.experiment, study.experiment.outcome
    seeds = tuple(seed_list(experiment))
    basis = study.registration.basis if study.registration else ""
    drawn = basis and seeds == draw_seeds(basis, len(seeds), tune_seed_list(experiment))
    origin = " drawn from a hash of the experiment before its first run" if drawn else ""
    yield f"We report {count(len(seeds), 'seed')} of every arm{origin}."
    at = "the step that is best on validation" if outcome.at == "best" else "the last step"
    yield f"The outcome is {outcome.metric} on {outcome.split} at {at}."
    if outcome.solved is not None:
        sign = "≥" if outcome.higher_is_better else "≤"
        yield f"A seed has solved the task when its outcome is {sign} {outcome.solved:g}."
    yield "A seed that diverges counts as the worst value of the metric."


def _tests(study: Study) -> Iterator[str]:
    experiment = study.experiment
    if experiment.outcome.solved is not None:
        yield (
            "Arms are compared by the probability to solve the task, with exact unconditional "
            "tests and Clopper–Pearson intervals."
        )
    else:
        yield "Means are compared by Welch's t-test."
    others = len(experiment.arms) - 1
    if others > 1:
        yield (
            f"In the table of results p-values are Holm-corrected over the {others} comparisons "
            "of a point, and intervals are simultaneous over them (Bonferroni)."
        )
    primary = sum(claim.primary and claim.test is not None for claim in experiment.claims)
    if primary:
        among = f" over all {primary}" if primary > 1 else ""
        yield (
            f"Claims are tested at a family-wise level of {100 * ALPHA:g} %{among} (Holm); a claim "
            "about several places holds when it holds in each (intersection-union test)."
        )
    yield from _test_items(study)


def _test_items(study: Study) -> Iterator[str]:
    """Yields what was done about the sampling error of the test set."""
    errors = study.items.get(study.experiment.outcome.metric)
    if errors is not None and study.experiment.outcome.solved is None:
        sizes = sorted({round(c.df) + 1 for c in errors.means.values()})
        number = " to ".join(f"{m:,}" for m in dict.fromkeys((sizes[0], sizes[-1])))
        yield (
            "The squared standard error of a mean is the variance over seeds, divided by their "
            f"number, and that over the {number} test items of their results averaged over seeds, "
            "divided by theirs; for a difference of two arms the variance over items is that of "
            "their differences (crossed random effects, Owen 2007), and the degrees of freedom are "
            "Satterthwaite's."
        )
    yield f"Intervals are over {intervals_over(study)}."


def _machine(study: Study) -> Iterator[str]:
    environment = study.environment
    device, versions = environment.get("device") or {}, environment.get("versions") or {}
    if isinstance(device, Mapping) and device:
        cores = f" with {count(device['cpu_cores'], 'core')}" if device.get("cpu_cores") else ""
        on_cpu = cores if device.get("platform") == "cpu" else ""
        number = count(device.get("count", 1), "device")
        yield f"Runs were made on {number} ({device.get('kind')}{on_cpu})."
    used = [f"{name} {versions[name]}" for name in ("jax", "flax", "optax") if name in versions]
    commit = (environment.get("git") or {}).get("commit")
    if used or commit:
        at = f"commit {str(commit)[:12]}" if commit else ""
        yield f"Software: {', '.join(filter(None, (*used, at)))}."
