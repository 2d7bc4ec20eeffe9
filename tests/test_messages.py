"""Progress is said seldom, in lines where there is no terminal and in one line where there is."""

import io
import sys

import pytest

from research import messages


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves when it is told to."""
    now = [0.0]
    monkeypatch.setattr(messages.time, "perf_counter", lambda: now[0])
    return now


def test_without_a_terminal_a_line_comes_every_quarter_of_a_minute(clock, capsys):
    report = messages.progress_of(200, "lines")
    for done in range(20, 201, 20):
        clock[0] = done / 5
        report(done)
    assert capsys.readouterr().err.splitlines() == [
        "80/200 lines, 5.0 lines/s, 24 s left",
        "160/200 lines, 5.0 lines/s, 8 s left",
    ]


def test_a_terminal_shows_one_line_that_stays(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    report = messages.progress_of(4, "files")
    for done, at in ((1, 0.1), (2, 0.5), (3, 0.6), (4, 0.65)):
        clock[0] = at
        report(done)
    first, second = sys.stderr.getvalue().split("\r")[1:]
    assert first.rstrip(" ") == "2/4 files, 4.0 files/s, 0 s left"
    assert second.startswith("4/4 files, 6.2 files/s ") and second.endswith(" \n")
    assert len(first) == len(second.rstrip("\n"))
