"""Estimates, before you pay for a TPU slice, whether training fits, its time and its cost.

    python -m research.plan --config=configs/tpu/lm_1b3.py
    python -m research.plan --config=configs/text.py --topology=v5e:2x4,v5p:2x2x1 --estimate
    python -m research.plan --experiment=experiments/tpu/sequence_length.py --budget=150 && echo go

Exit code 2 when it does not fit, or costs more than --budget dollars.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from research.command_line import define_config_flag, run
from research.errors import UserError

define_config_flag()
flags.DEFINE_string("experiment", "", "Experiment file: plans every cell of it.")
flags.DEFINE_string("topology", "", "v5e:4x4, 2*v5e:16x16, several with commas, or local.")
flags.DEFINE_string("prices", "", "Table of prices in place of research/cloud/prices.json.")
flags.DEFINE_string("tokens", "", "Tokens of a corpus that is not on this machine, such as 10B.")
flags.DEFINE_boolean("estimate", False, "Predicts from shapes and compiles nothing.")
flags.DEFINE_float("budget", None, "Most that it may cost on demand, in dollars.")
flags.DEFINE_string(
    "max_members", "8", "Most runs that are trained as one program; auto: as many as memory holds."
)


def main() -> None:
    """Prints the plan of a config or an experiment."""
    options = flags.FLAGS
    if bool(options.experiment) == options["config"].present:
        raise UserError("give either --config=configs/NAME.py or --experiment=experiments/NAME.py.")
    import jax

    from research.cloud.prices import PRICES, load_prices

    if options.topology != "local" and "JAX_PLATFORMS" not in os.environ:
        # Compiling for a TPU does not need one: keep JAX from acquiring a TPU of this machine.
        jax.config.update("jax_platforms", "cpu")
    prices = load_prices(options.prices or PRICES)
    if options.experiment:
        plan_experiment(options.experiment, prices)
    else:
        plan_config(options.config, prices)


def plan_config(config: ConfigDict, prices: Mapping[str, Any]) -> None:
    """Prints the plan for training `config.members` members, with a column for each target."""
    from research.cloud.data import parse_tokens
    from research.cloud.forecast import check_budget, check_fits, forecast
    from research.cloud.table import plan_table
    from research.parallel.topology import parse_targets
    from research.parallel.xla_flags import use_profile
    from research.training.schema import resolve

    options, config = flags.FLAGS, resolve(config)
    use_profile(config.parallel.xla_flags)
    tokens = parse_tokens(options.tokens)
    plans = [
        forecast(config, target, prices, not options.estimate, config.members, tokens)
        for target in parse_targets(options.topology, config.parallel.slice)
    ]
    print(plan_table("training", plans))
    check_fits(plans)
    for plan in plans:
        check_budget(plan.cost(), options.budget, plan.target.name)


def plan_experiment(path: str, prices: Mapping[str, Any]) -> None:
    """Prints the plan for all runs of an experiment, with a table for each target."""
    from research.ablation.loading import load_experiment, shared_value
    from research.ablation.match import with_matched_widths
    from research.ablation.tuning import extension_text
    from research.cloud.data import parse_tokens
    from research.cloud.forecast import check_budget, check_fits, forecast_experiment, total_cost
    from research.cloud.members import parse_most
    from research.cloud.table import rows_table
    from research.parallel.topology import parse_targets
    from research.parallel.xla_flags import use_profile

    options = flags.FLAGS
    experiment = with_matched_widths(load_experiment(path))
    tokens = parse_tokens(options.tokens)
    suggested = shared_value(experiment, "parallel.slice")
    use_profile(shared_value(experiment, "parallel.xla_flags"))
    for target in parse_targets(options.topology, suggested):
        most = parse_most(options.max_members, target, tokens)
        rows = forecast_experiment(experiment, target, prices, not options.estimate, most, tokens)
        print(rows_table(f"{Path(path).stem} on {target.name}", rows))
        if text := extension_text(experiment):
            print(text)
        check_fits(f for row in rows for f in row.forecasts)
        check_budget(total_cost(rows), options.budget, f"{Path(path).stem} on {target.name}")


if __name__ == "__main__":
    run(main)
