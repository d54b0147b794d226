"""What is counted while it happens adds up."""

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngcp_task_agent.tally import BOUNDS, Durations, Tally


@given(st.lists(st.floats(0, 1e6)))
def test_every_duration_is_in_one_bucket(seconds):
    """A bucket too few, and percentiles lie."""
    durations = Durations()
    for one in seconds:
        durations.add(one)

    assert sum(durations.buckets) == len(seconds)
    assert durations.total == pytest.approx(sum(seconds))
    for at, end in enumerate(BOUNDS):
        assert sum(durations.buckets[: at + 1]) == sum(one <= end for one in seconds)


def test_the_bounds_rise():
    """Else the search for a bucket finds any."""
    assert list(BOUNDS) == sorted(set(BOUNDS))
    assert bisect_left(BOUNDS, 9.5) == BOUNDS.index(10.0)


def test_a_job_that_never_ran_has_no_duration():
    """Withdrawn from the queue: an outcome, a cause, and no time that would spoil the mean."""
    tally = Tally()

    tally.ended("ping", "error", "cancelled", None, 0)

    assert tally.outcomes == {("ping", "error"): 1}
    assert tally.failures == {("ping", "cancelled"): 1}
    assert (tally.durations, tally.output) == ({}, {})


def test_what_went_well_has_no_cause():
    """Only errors are failures."""
    tally = Tally()

    tally.ended("ping", "done", "", 0.002, 5)
    tally.ended("ping", "done", "", 0.5, 7)
    tally.refused("ping", "rejected")

    assert tally.outcomes == {("ping", "done"): 2, ("ping", "rejected"): 1}
    assert (tally.failures, tally.output) == ({}, {"ping": 12})
    assert tally.durations["ping"].total == 0.502
