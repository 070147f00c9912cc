"""What `make test` leaves to `make sweep` is no pair of choices."""

from __future__ import annotations

from itertools import combinations, product

from tests.sweep import checkerboard_product


def test_every_pair_of_choices_is_tested_without_the_sweep() -> None:
    choices = "ab", "cdefgh", "ij"
    cases = checkerboard_product(*choices)
    assert [case.values for case in cases] == list(product(*choices))
    at_once = [case.values for case in cases if not case.marks]
    assert len(at_once) == len(cases) / 2
    for one, other in combinations(range(3), 2):
        assert {(case[one], case[other]) for case in at_once} == set(product(choices[one], choices[other]))
