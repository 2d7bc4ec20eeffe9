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


def progress_line() -> Callable[[Callable[[float], str], bool], None]:
    """Returns a function that shows a line of progress on stderr.

    Called with (text, ended): `text` makes the line from the seconds since the start. On a terminal
    one line is updated in place, and stays at the end; otherwise a line is printed every 15 seconds
    and none at the end.
    """
    began = said = time.perf_counter()
    live = sys.stderr.isatty()
    wait = LIVE_SECONDS if live else PLAIN_SECONDS

    def report(text: Callable[[float], str], ended: bool) -> None:
        nonlocal said
        now = time.perf_counter()
        if not (live and ended) and (ended or now - said < wait):
            return
        said = now
        if live:
            # Overwrites the previous line; padding with spaces clears the rest of a longer one.
            end = "\n" if ended else ""
            print(f"\r{text(now - began):<79}", end=end, file=sys.stderr, flush=True)
        else:
            tell(text(now - began))

    return report


def progress_of(total: int, noun: str) -> Callable[[int], None]:
    """Returns a function that reports progress on stderr when called with the number done.

    See `progress_line` for when and how.

    Args:
      total: number of items in all.
      noun: plural noun for the items, such as "lines".
    """
    line = progress_line()

    def report(done: int) -> None:
        def text(seconds: float) -> str:
            rate = done / max(seconds, 1e-9)
            left = f", {(total - done) / max(rate, 1e-9):,.0f} s left" if done < total else ""
            return f"{done:,}/{total:,} {noun}, {rate:,.1f} {noun}/s{left}"

        line(text, done >= total)

    return report
