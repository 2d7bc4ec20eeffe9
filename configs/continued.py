"""Training that goes on from another run: its own config, and its best parameters.

    python -m research.train --config=configs/text.py --workdir=runs/text
    python -m research.train --config=configs/continued.py:runs/text \
        --config.model.num_kv_heads=1 --workdir=runs/multi_query

The run, trained here or imported, follows the colon. Task and model are the run's, and each key can
be changed; docs/ablations.md says what becomes of the parameters then. The learning rate is a tenth
of the run's, since its optimizer starts anew from parameters that are good already: that is its
lowest one with a cosine to a tenth. It warms up in a twentieth of the steps, which are 5 % of the
run's (Ainslie et al. 2023, section 2.2). --config.train.steps=0 evaluates without training.
"""

from ml_collections import ConfigDict

from configs import base
from research.configuration import apply_deltas, flatten
from research.errors import UserError
from research.runs.bucket import open_workdir
from research.training.runs import load_run_config


def get_config(run: str = "") -> ConfigDict:
    """Returns the config that continues the run in this directory."""
    if not run:
        raise UserError("which run goes on? Name it: --config=configs/continued.py:runs/text.")
    before = flatten(load_run_config(open_workdir(run)))
    # An imported run may have no steps of its own.
    steps = max(round(0.05 * before["train.steps"]), 1)
    return apply_deltas(
        base.get_config(),
        before
        | {
            "train.init_from": run,
            "train.steps": steps,
            "train.log_every": max(steps // 20, 1),
            "train.eval_every": max(steps // 5, 1),
            "train.checkpoint_every": steps,
            "optimizer.learning_rate": before["optimizer.learning_rate"] / 10,
            "optimizer.warmup_steps": steps // 20,
        },
    )
