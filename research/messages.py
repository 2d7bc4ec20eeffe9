"""What commands say on stderr beside their results: messages, and how far long work has come."""

import sys
import time
from collections.abc import Callable

PLAIN_SECONDS = 15.0
"""Seconds between lines of progress when they do not go to a terminal."""
LIVE_SECONDS = 0.2
"""Seconds between changes of the line on a terminal."""


def tell(text: str) -> None:
    """Prints to stderr."""
    print(text, file=sys.stderr, flush=True)


def progress_of(total: int, noun: str) -> Callable[[int], None]:
    """Returns a function that says on stderr, now and then, how many of `total` are done.

    On a terminal that is one line, which stays at the end; elsewhere a line every 15 seconds.

    Args:
      total: how much there is to do.
      noun: what is counted, in the plural: "lines".
    """
    began = said = time.perf_counter()
    live = sys.stderr.isatty()
    wait = LIVE_SECONDS if live else PLAIN_SECONDS

    def report(done: int) -> None:
        nonlocal said
        now = time.perf_counter()
        ended = done >= total
        if not (live and ended) and (ended or now - said < wait):
            return
        said = now
        rate = done / max(now - began, 1e-9)
        text = f"{done:,}/{total:,} {noun}, {rate:,.1f} {noun}/s"
        if not ended:
            text += f", {(total - done) / max(rate, 1e-9):,.0f} s left"
        if live:
            # The line is written over the one before, and the spaces clear what that had more.
            print(f"\r{text:<79}", end="\n" if ended else "", file=sys.stderr, flush=True)
        else:
            tell(text)

    return report
