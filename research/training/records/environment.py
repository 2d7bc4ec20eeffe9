"""Describes the environment of a run: versions, device, git commit, command line."""

import datetime
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax

from research.parallel.xla_flags import flags_in_use

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ml_collections", "numpy")


def describe_environment() -> dict:
    """Returns the content of environment.json; "flags" are the compiler's, if any are set."""
    devices = jax.devices()
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "device": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
            "cpu_cores": os.cpu_count(),
        },
        **({"flags": flags} if (flags := flags_in_use()) else {}),
        "git": git_state(Path(__file__).parent),
        "command": command_line(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def command_line() -> list[str]:
    """Returns the arguments of the command that started this process, as typed in a shell."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", spec.name] if spec else [sys.argv[0]]
    return ["python", *program, *sys.argv[1:]]


def git_state(directory: Path) -> dict | None:
    """Returns {"commit", "dirty"} of the checkout that contains `directory`; None if there is none.

    "dirty" says whether tracked files differ from the commit.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(directory), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "-uno")),
        }
    except (subprocess.CalledProcessError, FileNotFoundError):
        return None


def enable_compilation_cache() -> None:
    """Enables JAX's persistent compilation cache, so that a program compiles once per machine.

    The directory is $JAX_COMPILATION_CACHE_DIR, by default ~/.cache/attest/compilation.
    """
    default = Path.home() / ".cache" / "attest" / "compilation"
    directory = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(default)
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
