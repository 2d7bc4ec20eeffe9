"""Checks that need eight devices, in one process that has them: virtual ones, of the CPU.

    python -m tests.eight_devices MODULE [MODULE ...]

A module has `CHECKS`, {name: function}. Prints {name: traceback or ""}, which a test of each name
reads.
"""

import importlib
import json
import os
import subprocess
import sys
import traceback

from tests.commands import ROOT

DEVICES = "--xla_force_host_platform_device_count=8"


def outcomes(*modules: str) -> dict[str, str]:
    """Returns the outcome of each check of the modules, by name; "" is good."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}"
    done = subprocess.run(
        [sys.executable, "-m", "tests.eight_devices", *modules],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags},
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def main() -> None:
    """Runs the checks of the modules named on the command line."""
    from research.training.records.environment import enable_compilation_cache

    enable_compilation_cache()
    found = {}
    for module in sys.argv[1:]:
        for name, check in importlib.import_module(module).CHECKS.items():
            try:
                check()
                found[name] = ""
            except Exception:
                found[name] = traceback.format_exc()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
