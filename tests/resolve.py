"""What `research.train` does short of training: for tests of commands.

The config is checked and its program is built, uncompiled. With `--write` it leaves a run with
random weights, for other commands to read.
"""

from pathlib import Path

from absl import flags

from research.command_line import define_config_flag
from research.parallel.xla_flags import use_profile
from research.training.validation import check_config
from tests.random_runs import write_run

define_config_flag()
flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
flags.DEFINE_bool("write", False, "Writes the run.")


def main() -> None:
    """Builds the program of the config and, if that is asked for, writes a run."""
    use_profile(flags.FLAGS.config.parallel.xla_flags)
    check_config(flags.FLAGS.config)
    if flags.FLAGS.write:
        write_run(Path(flags.FLAGS.workdir), flags.FLAGS.config)
