"""Shows the progress of training: a live bar on a terminal, otherwise a line now and then."""

import sys
import time
from collections.abc import Sequence

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 15.0
"""Seconds between plain lines when the output is not a terminal."""


class ProgressLine:
    """Shows steps, steps/s, tokens/s, MFU, metrics and remaining time of one population.

    Steps/s are since the start; tokens/s and MFU are those of the latest metrics row, the latter
    only on devices whose peak is known.

    Args:
      title: label of the line.
      start, steps: first and last step.
      shown: names of the metrics to show, as in a metrics row.
      quiet: shows nothing; set on all processes but one.
    """

    def __init__(
        self, title: str, start: int, steps: int, shown: Sequence[str], quiet: bool = False
    ):
        self._title, self._start, self._steps, self._shown = title, start, steps, shown
        self._began = self._said = time.perf_counter()
        self._live = sys.stderr.isatty() and not quiet
        self._quiet = quiet
        if self._live:
            from rich.console import Console

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[text]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(title, total=steps, completed=start, text="")

    def update(self, step: int, rows: Sequence[dict]) -> None:
        """Shows the state at `step`; `rows` are the latest metrics rows of the members."""
        now = time.perf_counter()
        rate = (step - self._start) / max(now - self._began, 1e-9)
        text = f"{rate:,.1f} steps/s{self._values(rows)}"
        if self._live:
            self._bar.update(self._task, completed=step, text=text)
        elif now - self._said >= PLAIN_SECONDS and not self._quiet:
            self._said = now
            left = (self._steps - step) / max(rate, 1e-9)
            print(
                f"{self._title}: step {step:,}/{self._steps:,}, {text}, {left:,.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def _values(self, rows: Sequence[dict]) -> str:
        text = ""
        latest = rows[0] if rows else {}  # these are of all members together
        if "tokens_per_second" in latest:
            text += f", {latest['tokens_per_second']:,.0f} tokens/s"
        if "model_flops_utilization" in latest:
            text += f", MFU {latest['model_flops_utilization']:.1%}"
        for name in self._shown:
            values = [row[name] for row in rows if name in row]
            if values:
                low, high = min(values), max(values)
                shown = f"{low:.3f}" if len(values) == 1 else f"{low:.3f}..{high:.3f}"
                text += f", {name} {shown}"
        return text

    def close(self) -> None:
        """Removes the live bar."""
        if self._live:
            self._bar.stop()
