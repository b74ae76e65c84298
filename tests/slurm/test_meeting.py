"""Nodes that meet at the first one."""

import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from slurm import health_check, meeting
from slurm.meeting import Guest, Unreached
from tests.training.runs import free_port


def visit(port: int, fit: bool = True, delay: float = 0.0) -> bool:
    time.sleep(delay)
    guest = Guest("127.0.0.1", port, 20.0)
    guest.clock()
    answer = guest.all_fit(fit)
    guest.close()
    return answer


def meet(num_guests: int, *, patience: float = 20.0, host_fits: bool = True, **unusual) -> tuple[bool, list[bool]]:
    """What the host and each guest hear; `unusual` is of the last guest."""
    port = free_port()
    with ThreadPoolExecutor(num_guests + 1) as threads:
        host = threads.submit(meeting.host, port, num_guests + 1, host_fits, patience)
        guests = [threads.submit(visit, port, **(unusual if i == num_guests - 1 else {})) for i in range(num_guests)]
        return host.result(), [guest.result() for guest in guests]


def test_when_all_are_fit_all_hear_it():
    assert meet(100) == (True, [True] * 100)


def test_one_that_is_unfit_is_heard_of_by_all_at_once_and_those_who_come_late_too():
    started = time.monotonic()
    assert meet(3, fit=False) == (False, [False] * 3)
    assert meet(3, host_fits=False, delay=1.0) == (False, [False] * 3)
    assert time.monotonic() - started < 10


def test_one_that_does_not_come_keeps_the_others_no_longer_than_the_patience():
    port = free_port()
    with ThreadPoolExecutor(2) as threads:
        host = threads.submit(meeting.host, port, 3, True, 1.5)
        guest = threads.submit(visit, port)
        assert (host.result(), guest.result()) == (False, False)


def test_nobody_who_starts_late_has_a_wrong_clock():
    port = free_port()
    with ThreadPoolExecutor(1) as threads:
        threads.submit(meeting.host, port, 2, True, 20.0)
        time.sleep(2)
        guest = Guest("127.0.0.1", port, 20.0)
        health_check.check_clock(guest.clock(), 0.5)
        guest.all_fit(True)
        guest.close()


def test_a_clock_that_is_ahead_or_behind_is_told_by_how_much():
    port = free_port()
    with ThreadPoolExecutor(1) as threads:
        threads.submit(meeting.host, port, 2, True, 20.0)
        guest = Guest("127.0.0.1", port, 20.0)
        for shift in (100.0, -100.0):
            clock = guest.clock(lambda shift=shift: time.time() + shift)
            assert abs(clock.ahead - shift) <= clock.error + 0.05
            with pytest.raises(health_check.Unfit, match=re.escape(f"the first node's by {shift:+.0f} s")):
                health_check.check_clock(clock, 30.0)
        guest.all_fit(True)
        guest.close()


def test_a_first_node_that_is_not_there_or_goes_away_is_unreached():
    with pytest.raises(Unreached):
        Guest("127.0.0.1", free_port(), 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        guest = Guest("127.0.0.1", server.getsockname()[1], 5.0)
        server.accept()[0].close()
        with pytest.raises(Unreached):
            guest.clock()
        guest.close()


def test_a_host_that_goes_home_leaves_no_complaint(capfd, caplog):
    port = free_port()
    with ThreadPoolExecutor(1) as threads:
        host = threads.submit(meeting.host, port, 3, False, 0.5)
        guest = Guest("127.0.0.1", port, 5.0)
        guest.clock()  # and says no more
        assert not host.result()
    assert "Traceback" not in capfd.readouterr().err + caplog.text
    guest.close()
