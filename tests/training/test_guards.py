"""Signals and the clock against hanging."""

import os
import signal
import subprocess
import sys

import pytest

from training.guards import SIGNALS, StopRequest


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_remembered_and_nothing_else_happens(number):
    with StopRequest() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signal == number.name


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_process_that_hangs_ends_and_shows_where_it_was():
    code = (
        "import time\nfrom training.guards import HangWatch\nHangWatch(0.01).beat()\n"
        "def waits_for_a_peer():\n    time.sleep(60)\nwaits_for_a_peer()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode != 0
    assert "waits_for_a_peer" in done.stderr
