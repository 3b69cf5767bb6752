"""Time limits: they end a wait, and leave another timer of the process alone."""

import os
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


@pytest.fixture
def fired():
    """The alarms of another timer; the test sets it."""
    alarms = []
    before = signal.signal(signal.SIGALRM, lambda *_: alarms.append(1))
    yield alarms
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)  # an alarm on its way would end the process
    signal.signal(signal.SIGALRM, before)


def wait_for(alarms, count):
    deadline = time.monotonic() + 60
    while len(alarms) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_another_timer_goes_on_after_the_block(fired):
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    with time_limit(60):
        already = len(fired)  # on a busy machine it fires before the block
        time.sleep(0.2)
        assert len(fired) == already
    wait_for(fired, already + 3)  # the one that is late, and its repetitions


def test_an_alarm_at_the_end_of_the_block_leaves_the_other_timer_on(fired, monkeypatch):
    """It comes between the block and what ends it."""
    set_timer = signal.setitimer

    def late(which, seconds, interval=0.0):
        if not seconds:
            os.kill(os.getpid(), signal.SIGALRM)
        return set_timer(which, seconds, interval)

    signal.setitimer(signal.ITIMER_REAL, 0.5, 0.05)
    handler = signal.getsignal(signal.SIGALRM)
    with monkeypatch.context() as patch:
        limit = time_limit(60)
        limit.__enter__()
        patch.setattr(signal, "setitimer", late)
        limit.__exit__(None, None, None)
    assert signal.getsignal(signal.SIGALRM) == handler
    wait_for(fired, 2)
