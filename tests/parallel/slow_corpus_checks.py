"""What `corpus_checks` leaves out: programs that take long to compile."""

from tests.parallel.corpus_checks import SLOW

CHECKS = SLOW
