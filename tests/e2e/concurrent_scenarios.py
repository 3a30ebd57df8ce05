"""Runs scenarios that mostly wait at the same time; each test then waits for the result of one."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

# seconds for something immediate, on a heavily loaded machine
SOON = 10


def start_all(request, argument):
    """Starts all selected scenarios of the module, each as `scenario(argument)` on a thread. Returns a future for each."""
    chosen = [item.callspec.params["scenario"] for item in request.session.items if item.module is request.module]
    pool = ThreadPoolExecutor(len(chosen))
    return {scenario: pool.submit(scenario, argument) for scenario in chosen}


def parametrize_scenarios(*scenarios):
    """Makes the scenarios parameters of one test; the ids are the functions' names."""
    return pytest.mark.parametrize("scenario", scenarios, ids=lambda scenario: scenario.__name__)


def wait_until(condition, seconds, what):
    """Waits until `condition` returns something true, and returns that."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return result
