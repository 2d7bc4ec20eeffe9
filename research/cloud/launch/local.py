"""Runs the shards of a sweep side by side on this machine, each on its own devices.

<workdir>/launch/local/shard-1.log   output of each shard, appended by every launch
                       lock          held while any shard runs
"""

import fcntl
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from research.ablation.cells import read_cells
from research.cloud.launch.devices import Binding
from research.cloud.launch.request import Job
from research.errors import UserError
from research.runs.store import RESULT

POLL_SECONDS = 0.2
LAST_LINES = 5


@dataclass
class Shard:
    """A running shard.

    Attributes:
      number: number of the shard, from 1.
      binding: its devices.
      process: its process; None before it is started.
      log: file of its output.
      read: number of bytes of the log shown so far.
    """

    number: int
    binding: Binding
    log: Path
    process: subprocess.Popen | None = None
    read: int = 0
    lines: list[str] = field(default_factory=list)

    @property
    def code(self) -> int | None:
        """The exit code, or None while it runs."""
        return self.process.poll() if self.process else None


def commands(job: Job) -> list[tuple[str, ...]]:
    """Returns the command of every shard."""
    start = (job.python, "-m", job.module, *job.arguments, f"--workdir={job.workdir}")
    if job.shards == 1:
        return [start]
    return [(*start, f"--shard={i}/{job.shards}") for i in range(1, job.shards + 1)]


def preview(job: Job, bindings: Sequence[Binding]) -> str:
    """Returns the devices and command of each shard that `run` would start."""
    rows = zip(bindings, commands(job), strict=True)
    return "\n".join(f"{_label(b)}:\n  {shlex.join(c)}" for b, c in rows)


def _label(binding: Binding) -> str:
    return " ".join([binding.label, *(f"{k}={v}" for k, v in binding.environment.items())])


def run(job: Job, bindings: Sequence[Binding], folder: Path, say: Callable = print) -> int:
    """Starts the shards, shows their output, forwards signals and waits; returns 0 or 1.

    Raises UserError if shards of an earlier launch are still running.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = [Shard(i, binding, folder / f"shard-{i}.log") for i, binding in enumerate(bindings, 1)]
    with _lock(folder) as lock, _forwarding(shards) as received:
        for shard, command in zip(shards, commands(job), strict=True):
            # After a signal, start no more shards: it was forwarded only to those running then.
            if received:
                break
            _start(shard, command, lock)
            say(f"[{shard.number}/{len(shards)}] {shard.binding.label}, log in {shard.log}")
        _follow(shards, say)
    return _conclude(shards, job, bool(received), say)


def _start(shard: Shard, command: Sequence[str], lock: int) -> None:
    allowed = os.sched_getaffinity(0)
    with open(shard.log, "ab") as log:
        shard.read = log.tell()
        # A child inherits the CPU affinity of the thread that starts it.
        os.sched_setaffinity(0, shard.binding.cores or allowed)
        try:
            shard.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(shard.binding.environment),
                pass_fds=(lock,),
                # In its own session, so that Ctrl-C reaches only the launcher, which forwards it.
                start_new_session=True,
            )
        finally:
            os.sched_setaffinity(0, allowed)


@contextmanager
def _lock(folder: Path) -> Generator[int]:
    """Holds a file lock that the shards inherit, so that it is held until the last one ends."""
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: shards of an earlier launch still run there; wait for them, or stop "
                "them."
            ) from None
        except OSError:
            pass  # this file system has no locks
        yield file.fileno()


@contextmanager
def _forwarding(shards: Sequence[Shard]) -> Generator[list[int]]:
    """Forwards SIGTERM and SIGINT to the shards as SIGTERM; yields the list of signals received."""
    received: list[int] = []

    def forward(number: int, frame: object) -> None:
        received.append(number)
        for shard in shards:
            if shard.process and shard.process.poll() is None:
                shard.process.send_signal(signal.SIGTERM)

    previous = {n: signal.signal(n, forward) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _follow(shards: Sequence[Shard], say: Callable) -> None:
    """Shows the output of the shards line by line until all have ended."""
    running = True
    while running:
        running = any(shard.process and shard.code is None for shard in shards)
        for shard in shards:
            for text in _new_lines(shard) if shard.process else ():
                shard.lines = [*shard.lines, text][-LAST_LINES:]
                say(f"[{shard.number}/{len(shards)}] {text}")
        if running:
            time.sleep(POLL_SECONDS)


def _new_lines(shard: Shard) -> list[str]:
    """Returns the complete lines since the last call, and an incomplete last one after the end."""
    ended = shard.code is not None
    with open(shard.log, "rb") as log:
        log.seek(shard.read)
        content = log.read()
    if not ended:
        content = content[: content.rfind(b"\n") + 1]
    shard.read += len(content)
    return [text for text in content.decode(errors="replace").splitlines() if text.strip()]


def progress(workdir: Path) -> str:
    """Returns a text on how many known runs of a sweep have a result; "" if none is known yet.

    Report runs are known only after their tuning is finished.
    """
    runs = {cell["run"] for cell in read_cells(workdir)}
    done = sum((workdir / run / RESULT).exists() for run in runs)
    return f"{done} of {len(runs)} known runs finished" if runs else ""


def _conclude(shards: Sequence[Shard], job: Job, stopped: bool, say: Callable) -> int:
    """Reports how the shards ended; returns the exit code."""
    failed = [shard for shard in shards if shard.process and shard.code]
    for shard in failed:
        say(f"[{shard.number}/{len(shards)}] failed with exit code {shard.code}, see {shard.log}:")
        for text in shard.lines:
            say(f"    {text}")
    if len(shards) > 1 and progress(Path(job.workdir)):
        say(progress(Path(job.workdir)))
    if stopped:
        say("Stopped by a signal; the same command goes on where it was.")
    elif job.module == "research.sweep":
        say(shlex.join(("python", "-m", "research.report", f"--workdir={job.workdir}")))
    return 1 if failed else 0
