"""Writes TensorBoard event files."""

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
    """An event file that is written by the calling thread.

    The usual writers use a background thread. If a full disk kills it, no error is raised, and once
    its queue is full, adding an event or closing the writer blocks forever.

    Args:
      directory: directory of the file; TensorBoard shows all files in it as one run.
      step: step at which training starts or resumes.

    Every method raises OSError, with the file's name, if a write fails.
    """

    def __init__(self, directory: Path, step: int):
        began = int(time.time())
        # The name has pid and step: a run that resumes within the same second must not overwrite
        # its first file.
        name = f"events.out.tfevents.{began}.{socket.gethostname()}.{os.getpid()}.{step}"
        self._path = directory / name
        directory.mkdir(parents=True, exist_ok=True)
        self._records = RecordWriter(str(self._path))
        self._flushed = 0.0
        self._write(Event(wall_time=time.time(), file_version=VERSION))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the scalars of a step, {name: value}; flushes every `FLUSH_SECONDS`."""
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
        """Flushes and closes the file."""
        with naming(self._path):
            self._records.close()
