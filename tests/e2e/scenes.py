"""Scenarios that mostly wait, played all at once: each test then looks at the outcome of its own."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

# seconds for what happens at once on any machine but a heavily loaded one
SOON = 10


def all_at_once(request, stage):
    """Begins the scenarios that are asked for, each as `scenario(stage)`; they are parameters of the module's tests."""
    chosen = [item.callspec.params["scenario"] for item in request.session.items if item.module is request.module]
    pool = ThreadPoolExecutor(len(chosen))
    return {scenario: pool.submit(scenario, stage) for scenario in chosen}


def each(*scenarios):
    """The scenarios as parameters of one test; their names are sentences."""
    return pytest.mark.parametrize("scenario", scenarios, ids=lambda scenario: scenario.__name__)


def until(condition, seconds, what):
    """What `condition` returns, once that is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return found
