"""Notes as numbers and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintet.errors import UserError
from quintet.piano.notes import HEADER, Notes, from_numbers, notes, to_numbers

TABLES = st.lists(
    st.tuples(st.integers(0, 127), st.integers(0, 127), st.floats(0, 40_000), st.floats(1e-4, 300)),
    max_size=20,
).map(
    lambda rows: notes(
        np.array([row[0] for row in rows]),
        np.array([row[1] for row in rows]),
        np.array([row[2] for row in rows]),
        np.array([row[2] + row[3] for row in rows]),
    )
)


@given(TABLES, st.integers(0, 9), st.integers(0, 14))
def test_notes_come_back_to_half_a_unit(table: Notes, dataset: int, composer: int) -> None:
    numbers = to_numbers(table, dataset, composer)
    assert numbers.dtype == np.uint16
    assert numbers[:HEADER].tolist() == [dataset, composer]
    back = from_numbers(numbers[HEADER:])
    assert np.array_equal(back.pitch, table.pitch)
    assert np.array_equal(back.velocity, table.velocity)
    assert np.abs(back.start - table.start).max(initial=0) <= 0.5e-4 + 1e-9
    assert np.abs(back.end - table.end).max(initial=0) <= 1.5e-4
    assert (back.end > back.start).all()


def test_times_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="119 hours"):
        to_numbers(notes(np.array([60]), np.array([60]), np.array([0.0]), np.array([5e5])), 0, 0)
