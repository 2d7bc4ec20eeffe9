"""Everything `research.train` does with its options short of training: for tests of commands."""

from absl import flags

from research.configuration import define_config_flag
from research.training.program import make_program

define_config_flag()
flags.DEFINE_string("workdir", None, "Where the run would be.", required=True)


def main() -> None:
    """Checks the config and builds its program, uncompiled."""
    make_program(flags.FLAGS.config)
