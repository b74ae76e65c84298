"""What a rank says."""

import logging
import re
import warnings

import pytest

from training import log


@pytest.fixture(autouse=True)
def as_before():
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level
    logging.captureWarnings(False)


def test_a_line_has_time_rank_and_who_speaks(capsys):
    log.set_up(7)
    logging.getLogger("training.setup").info("%d checkpoints", 3)
    line = capsys.readouterr().out.strip()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ rank 7 info training.setup: 3 checkpoints", line)


def test_others_are_heard_only_when_they_warn(capsys):
    log.set_up(0)
    logging.getLogger("urllib3.pool").info("chatter")
    logging.getLogger("urllib3.pool").warning("a real thing")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old name", UserWarning, stacklevel=1)
    lines = capsys.readouterr().out
    assert "chatter" not in lines
    assert "rank 0 warning urllib3.pool: a real thing" in lines
    assert "rank 0 warning py.warnings" in lines and "old name" in lines


def test_speaking_twice_as_a_rank_says_things_once(capsys):
    log.set_up(0)
    log.set_up(1)
    logging.getLogger("training").info("hello")
    assert capsys.readouterr().out.count("hello") == 1
