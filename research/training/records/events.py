"""TensorBoard's event files."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event  # ty: ignore[missing-module-member]  # generated
from tensorboardX.record_writer import RecordWriter

from research.errors import naming

VERSION = "brain.Event:2"
FLUSH_SECONDS = 30.0


class EventFile:
    """One event file, written by the thread that calls.

    The usual writers hand events to a thread of their own. When it dies of a full disk nobody hears
    of it, and once its queue is full, whoever adds an event or closes the writer waits forever.

    Args:
      directory: where the file is made; TensorBoard shows all files in it as one run.
      step: at which the run begins or goes on.

    Every method raises OSError, with the file's name, when the disk refuses.
    """

    def __init__(self, directory: Path, step: int):
        began = int(time.time())
        # A run that is stopped and goes on within a second must not write over its first file.
        name = f"events.out.tfevents.{began}.{socket.gethostname()}.{os.getpid()}.{step}"
        self._path = directory / name
        directory.mkdir(parents=True, exist_ok=True)
        self._records = RecordWriter(str(self._path))
        self._flushed = 0.0
        self._write(Event(wall_time=time.time(), file_version=VERSION))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the scalars of a step, {name: value}; flushed twice a minute."""
        event = Event(wall_time=time.time(), step=step)
        for name, value in values.items():
            event.summary.value.extend(summary.scalar(name, value).value)
        self._write(event)

    def _write(self, event: Event) -> None:
        with naming(self._path):
            self._records.write(event.SerializeToString())
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self._records.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        """Writes what is left."""
        with naming(self._path):
            self._records.close()
