"""Any sequence of what operators, machines, networks and brokers can do to complete branches: what must be true, is.

The steps stand in steps.py; the invariants 1 to 4, 6, 10 and 11 of the mesh's design are looked at all the time, and 5
when everything was healed and is quiet: witness.py.
"""

import pytest
from hypothesis import HealthCheck, given, settings

from tests.simulation.loop import run
from tests.simulation.steps import Story, live, stories


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(stories(12))
def test_the_invariants_hold(story: Story) -> None:
    run(live(story))


@pytest.mark.soak
@pytest.mark.timeout(3600)
@settings(max_examples=2000, derandomize=False, suppress_health_check=list(HealthCheck))
@given(stories(30))
def test_the_invariants_hold_for_long(story: Story) -> None:
    run(live(story))
