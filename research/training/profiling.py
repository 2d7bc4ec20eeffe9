"""Profiles training steps, for xprof, TensorBoard or ui.perfetto.dev."""

from pathlib import Path
from typing import Any

import jax

from research.errors import UserError
from research.parallel.processes import is_first

DIRECTORY = "profile"


def parse_steps(text: str, steps: int) -> range:
    """Parses "start:stop" into a range of steps, "" into an empty range.

    Args:
      text: value of the flag; start is the number of steps done before the trace.
      steps: number of steps of the whole run.

    Raises UserError for any other format, and for steps beyond the run.
    """
    if not text:
        return range(0)
    try:
        start, stop = (int(part) for part in text.split(":"))
    except ValueError:
        start, stop = 0, 0
    if not 0 <= start < stop <= steps:
        raise UserError(
            f"--profile={text!r} must be start:stop with 0 <= start < stop <= "
            f"{steps} (train.steps), for example 20:25."
        )
    return range(start, stop)


class Trace:
    """Traces `steps` into a directory, with a subdirectory per process if there are several.

    Avoid tracing the first dispatch, while devices are still warming up.
    """

    def __init__(self, steps: range, directory: Path):
        own = f"process-{jax.process_index()}" if jax.process_count() > 1 else ""
        self._steps, self._directory, self._running = steps, directory / own, False

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Steps at which dispatches must end, so that the trace covers whole dispatches."""
        return (self._steps.start, self._steps.stop) if self._steps else ()

    def reached(self, step: int, state: Any) -> None:
        """Starts or stops the trace if `step` is a boundary, after pending work has finished."""
        if self._steps and step == self._steps.start:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._directory, create_perfetto_trace=True)
            self._running = True
        elif self._running and step == self._steps.stop:
            jax.block_until_ready(state)
            self.close()
            if is_first():
                print(f"steps {self._steps.start} to {step}: trace in {self._directory}")

    def close(self) -> None:
        """Stops the trace if it is running."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
