"""The layouts that `layout_checks` leaves out."""

from tests.parallel.layout_checks import SLOW

CHECKS = SLOW
