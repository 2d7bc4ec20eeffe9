"""Checks that need eight devices, in a process that has them: virtual ones, of the CPU.

    python -m tests.eight_devices MODULE

A module has `CHECKS`, {name: function}. Prints {name: traceback or ""}, which a test of each name
reads.
"""

import importlib
import json
import os
import sys
import traceback

from tests.commands import run_commands

DEVICES = "--xla_force_host_platform_device_count=8"


def outcomes(module: str) -> dict[str, str]:
    """Returns the outcome of each check of the module, by name; "" is good."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}"
    (done,) = run_commands([("tests.eight_devices", [module])], XLA_FLAGS=flags)
    assert done.code == 0, done.err[-4000:]
    return json.loads(done.out)


def main(module: str) -> None:
    """Runs the checks of the module."""
    from research.training.records.environment import enable_compilation_cache

    enable_compilation_cache()
    found = {}
    for name, check in importlib.import_module(module).CHECKS.items():
        try:
            check()
            found[name] = ""
        except Exception:
            found[name] = traceback.format_exc()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
