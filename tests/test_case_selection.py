"""What `make test` leaves to `make nightly` contains no value, and no pair of values, that it does not test itself."""

from __future__ import annotations

from itertools import combinations, product

from tests.case_selection import checkerboard_product, sparse_product

CHOICES = "abc", "defghi", "jk"


def test_a_checkerboard_tests_every_pair_of_values_by_day() -> None:
    cases = checkerboard_product(*CHOICES)
    assert [case.values for case in cases] == list(product(*CHOICES))
    by_day = [case.values for case in cases if not case.marks]
    assert len(by_day) == len(cases) / 2
    for first, second in combinations(range(3), 2):
        pairs = {(case[first], case[second]) for case in by_day}
        assert pairs == set(product(CHOICES[first], CHOICES[second]))


def test_a_sparse_product_tests_every_value_by_day() -> None:
    cases = sparse_product(*CHOICES)
    assert [case.values for case in cases] == list(product(*CHOICES))
    by_day = [case.values for case in cases if not case.marks]
    assert len(by_day) == len(cases) / 6
    for index, values in enumerate(CHOICES):
        assert {case[index] for case in by_day} == set(values)
