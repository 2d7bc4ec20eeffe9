"""Bash that is written for other machines. Whatever comes from a person is quoted."""

import base64
import shlex

from research.cloud.launch.job import Command

GRACE = 300
"""Seconds that saving may take before the process is killed."""


class Bash(str):
    """A word that is bash already; it never holds anything that a person gave."""


def line(command: Command, indent: str = "  ") -> str:
    """Returns a command as bash, on several lines where it would be long."""
    words = [word if isinstance(word, Bash) else shlex.quote(word) for word in command]
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) + len(indent) > 95:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return f" \\\n{indent}".join(lines)


def limited(command: Command, hours: int) -> Command:
    """Returns the command with a SIGTERM after `hours`: it saves, and ends with its own code.

    `--foreground` because `timeout` would else signal its process group beside the child, and the
    second SIGTERM stops training at once.
    """
    timeout = ("timeout", "--foreground", "--preserve-status", "--signal=TERM")
    return (*timeout, f"--kill-after={GRACE}", f"{hours}h", *command)


def supervised(command: str, when_stopped: str) -> str:
    """Returns bash that runs `command`, hands SIGTERM on to it once, and ends with its code.

    Args:
      command: bash, one simple command.
      when_stopped: bash that runs after the command when a SIGTERM came from outside; $code is
        the command's exit code.
    """
    return f"""\
signals=0
child=
forwarded=
forward() {{
  # Once: a second SIGTERM stops the training without saving.
  if [ -n "$child" ] && [ -z "$forwarded" ]; then
    forwarded=1
    kill -TERM "$child" 2>/dev/null || true
  fi
}}
trap 'signals=$((signals + 1)); forward' TERM INT

{command} &
child=$!
if [ "$signals" != 0 ]; then forward; fi
# A signal ends `wait` before the command has saved: wait again until none came meanwhile.
while :; do
  seen=$signals
  wait "$child"
  code=$?
  [ "$signals" = "$seen" ] && break
done
if [ "$signals" != 0 ]; then
{when_stopped.rstrip()}
fi
"""


RESTART = """\
  # The machine is taken away: not 0, so that whoever watches starts it again elsewhere.
  [ "$code" = 0 ] && code=143
"""


def install(requirements: str) -> str:
    """Returns bash that makes a Python 3.11 environment in $venv once.

    TPU VM images carry an older Python; uv brings its own.
    """
    return f"""\
if [ ! -e "$venv/ready" ]; then
  export PIP_BREAK_SYSTEM_PACKAGES=1
  python3 -m pip install --quiet uv
  python3 -m uv venv --quiet --clear --python 3.11 "$venv"
  python3 -m uv pip install --quiet --python "$venv/bin/python" -r {requirements}
  touch "$venv/ready"
fi
"""


PYTHON = Bash('"$venv/bin/python"')
"""The interpreter that `install` makes."""


def in_one_word(script: str, path: str) -> str:
    """Returns a line that runs `script` on a machine where no file of ours is.

    Only letters, digits and +/= stand for the script, so that nothing on the way changes it.
    """
    text = base64.b64encode(script.encode()).decode()
    return f"echo {text} | base64 -d > {path} && exec bash {path}"
