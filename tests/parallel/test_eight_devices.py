"""Eight devices compute what one does."""

import pytest

from tests.eight_devices import outcomes
from tests.parallel import (
    corpus_checks,
    layout_checks,
    slow_corpus_checks,
    slow_layout_checks,
)


@pytest.fixture(scope="module")
def found():
    return outcomes(layout_checks.__name__)


@pytest.fixture(scope="module")
def found_slowly():
    return outcomes(slow_layout_checks.__name__)


@pytest.fixture(scope="module")
def found_of_corpora():
    return outcomes(corpus_checks.__name__)


@pytest.fixture(scope="module")
def found_of_corpora_slowly():
    return outcomes(slow_corpus_checks.__name__)


@pytest.mark.parametrize("name", layout_checks.CHECKS)
def test_eight_devices(found, name):
    assert not found[name], found[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_layout_checks.CHECKS)
def test_eight_devices_slowly(found_slowly, name):
    assert not found_slowly[name], found_slowly[name]


@pytest.mark.parametrize("name", corpus_checks.CHECKS)
def test_corpora_on_eight_devices(found_of_corpora, name):
    assert not found_of_corpora[name], found_of_corpora[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_corpus_checks.CHECKS)
def test_corpora_on_eight_devices_slowly(found_of_corpora_slowly, name):
    assert not found_of_corpora_slowly[name], found_of_corpora_slowly[name]
