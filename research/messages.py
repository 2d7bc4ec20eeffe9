"""Messages and progress that commands print to stderr."""

import sys
import time
from collections.abc import Callable

PLAIN_SECONDS = 15.0
"""Seconds between progress lines if stderr is not a terminal."""
LIVE_SECONDS = 0.2
"""Seconds between updates of the progress line on a terminal."""


def tell(text: str) -> None:
    """Prints a line to stderr."""
    print(text, file=sys.stderr, flush=True)


def progress_of(total: int, noun: str) -> Callable[[int], None]:
    """Returns a function that reports progress on stderr when called with the number done.

    On a terminal it updates one line in place, which stays at the end; otherwise it prints a line
    every 15 seconds.

    Args:
      total: number of items in all.
      noun: plural noun for the items, such as "lines".
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
            # Overwrites the previous line; padding with spaces clears the rest of a longer one.
            print(f"\r{text:<79}", end="\n" if ended else "", file=sys.stderr, flush=True)
        else:
            tell(text)

    return report
