"""Time limits: they end a wait, and leave another timer of the process alone."""

import signal
import time

import pytest

from training.signals import TimedOut, time_limit


def test_a_limit_ends_a_wait_and_only_that():
    with pytest.raises(TimedOut), time_limit(0.05):
        time.sleep(60)
    with time_limit(60):
        pass
    with time_limit(0):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_another_timer_goes_on_after_the_block():
    fired = []
    before = signal.signal(signal.SIGALRM, lambda *_: fired.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        with time_limit(60):
            time.sleep(0.2)
            assert not fired
        while len(fired) < 3:  # that one late, and its repetitions
            time.sleep(0.01)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
