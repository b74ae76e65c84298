"""What counts as a mistake of the user's, and how it is told."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.mistakes import SHOWN_CHARACTERS, Mistake, cut, is_mistake, sentence, shown
from data_pipeline.config import ObjectiveConfig
from data_pipeline.reading.grid import objective_for
from data_pipeline.reading.order import Permutation
from tests.data_pipeline.samples import VOCABULARY


def test_only_our_own_value_errors_and_the_machines_are_mistakes_of_the_user():
    def caught(action):
        try:
            action()
        except Exception as error:
            return error
        raise AssertionError("nothing was raised")

    assert is_mistake(caught(Path("/nowhere/at/all").stat))
    assert not is_mistake(caught(lambda: json.loads("{")))
    assert not is_mistake(caught(lambda: {}["key"]))
    assert is_mistake(caught(lambda: objective_for(ObjectiveConfig(), "encdec", VOCABULARY)))


MENDABLE = "ENOSPC EDQUOT EFBIG ENOENT ENOTDIR EISDIR EEXIST ELOOP ENAMETOOLONG EACCES EPERM EROFS"
PASSING = (
    "EIO ESTALE ETIMEDOUT EAGAIN EBUSY EINTR ENOTCONN ECONNRESET ECONNREFUSED EHOSTUNREACH ENOMEM EMFILE EREMOTEIO"
)


def test_of_what_a_machine_answers_only_what_stays_so_is_a_mistake():
    for name in MENDABLE.split():
        assert is_mistake(OSError(getattr(errno, name), name)), name
    for name in PASSING.split():
        assert not is_mistake(OSError(getattr(errno, name), name)), name
    assert not is_mistake(OSError("without a number"))


def test_a_built_in_that_fails_inside_our_own_code_is_a_bug():
    with pytest.raises(ValueError, match="invalid literal") as caught:
        Permutation(9, 0)(np.array(["not a number"]))
    assert not is_mistake(caught.value)


def test_a_full_disk_is_told_with_its_file_and_without_the_number():
    assert (
        sentence(OSError(errno.ENOSPC, "No space left on device", "here/file")) == "here/file: No space left on device"
    )
    assert sentence(OSError(errno.ENOSPC, "No space left on device")) == "No space left on device"
    assert sentence(OSError("no words of the kernel")) == "no words of the kernel"


@pytest.mark.parametrize(
    "value", ["x" * 5000, ["x" * 100] * 100, {"k": ["x"] * 5000}, 10**4000, "a\nb\x1b[31m\ud800", 0.5]
)
def test_a_value_is_shown_on_one_line_and_in_part(value):
    assert len(shown(value)) <= SHOWN_CHARACTERS
    assert shown(value).isprintable()


@given(st.text(max_size=300), st.integers(10, 100))
def test_a_cut_text_keeps_its_ends(text, length):
    found = cut(text, length)
    assert len(found) <= length
    assert found.isprintable()
    if text.isprintable() and len(text) <= length:
        assert found == text


def test_an_error_about_a_path_without_end_has_one():
    assert len(sentence(OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000))) < 500
    assert len(sentence(Mistake(f"data.path: {'x/' * 3000} holds no manifest.json"))) <= 1500
