"""Handles SIGTERM and SIGINT as a request to save and stop between two dispatches."""

import signal
import sys
from types import FrameType

from research.parallel.processes import RaisedByAll, any_process

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(RaisedByAll):
    """Training saved its state and stopped because it was asked to."""

    def __init__(self, what: str):
        super().__init__(f"{what}; run the same command to continue.")


class StopRequest:
    """Context manager that records the first signal; a second signal has its usual effect."""

    def __init__(self) -> None:
        self._received = False

    def agreed(self) -> bool:
        """Returns whether any process received a signal; a collective that all must call."""
        return any_process(self._received)

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True
        self._restore()
        name = signal.Signals(number).name
        print(f"{name}: saving, then stopping (once more: stop at once)", file=sys.stderr)
