"""Reports that several files of tests read."""

import functools

import pytest

from tests.report.example import COSTS, build_and_report


@pytest.fixture
def report(tmp_path):
    return functools.partial(build_and_report, tmp_path)


@pytest.fixture(scope="session")
def complete(tmp_path_factory):
    """The report of the whole sweep, for tests that only read it."""
    return build_and_report(tmp_path_factory.mktemp("complete"), costs=COSTS)
