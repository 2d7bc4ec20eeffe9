"""Brings the data of coming steps to the devices while earlier steps are computed."""

from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from research.training.program import Program


def feed_steps(
    program: Program, seeds: np.ndarray, spans: Iterable[tuple[int, int]]
) -> Generator[Any]:
    """Yields what `program.train` reads for each span of steps, (start, stop).

    If the task is streamed, a thread reads one span ahead: two chunks are in memory at a time, and
    a third while one is handed over.

    Args:
      program: the program.
      seeds: (P,) uint32, the members' seeds.
      spans: the spans in order.
    """
    if not program.task.streamed:
        for _ in spans:
            yield program.data
        return
    spans = iter(spans)
    with ThreadPoolExecutor(1, "reading") as thread:

        def read() -> Future | None:
            span = next(spans, None)
            return span and thread.submit(program.training_data, seeds, *span)

        waiting = read()
        while waiting is not None:
            data, waiting = waiting.result(), read()
            yield data
