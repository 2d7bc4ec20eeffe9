"""Eight devices compute what one does."""

import pytest

from tests.eight_devices import outcomes
from tests.parallel import layout_checks

MODULES = (layout_checks,)


@pytest.fixture(scope="module")
def found():
    return outcomes(*(module.__name__ for module in MODULES))


@pytest.mark.parametrize("name", [name for module in MODULES for name in module.CHECKS])
def test_eight_devices(found, name):
    assert not found[name], found[name]
