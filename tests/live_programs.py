"""Prints how many compiled programs live in this process, before and after they are forgotten."""

import jax

from research.training.program import clear_programs, make_members, make_program
from tests import small


def main() -> None:
    """Compiles a program, then drops all."""
    config = small.recall(model__num_layers=1)
    make_program(config).init(make_members([config]))
    client = jax.devices()[0].client
    before = len(client.live_executables())
    clear_programs()
    print(before, len(client.live_executables()))
