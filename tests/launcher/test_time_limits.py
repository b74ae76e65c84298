"""Time limits as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.time_limits import seconds_of, time_limit


def test_times_are_read_as_slurm_reads_them():
    times = {"90": 5400, "10:30": 630, "02:00:00": 7200, "1-0": 86400, "1-12:30": 131400, "2-01:00:05": 176405}
    assert {text: seconds_of(time_limit(text, "--time")) for text in times} == times


def test_times_are_read_as_people_say_them():
    times = {"24h": 86400, "1d": 86400, "90m": 5400, "1d12h": 129600, "2H30M": 9000, " 45s ": 45, "unlimited": None}
    assert {text: seconds_of(time_limit(text, "--time")) for text in times} == times
    assert time_limit("infinite", "--time") == "UNLIMITED"
    assert time_limit("36h", "--time") == "1-12:00:00"


@pytest.mark.parametrize("text", ["x", "-5", "1;id", "", "  ", "1.5h", "h", "24:0:0", "1d1d", "٣", "9" * 5000])
def test_what_is_no_time_is_one_sentence_with_the_forms_there_are(text):
    with pytest.raises(ValueError, match=r"--time: .* is not a time limit; allowed: 90 .* or UNLIMITED") as told:
        time_limit(text, "--time")
    assert len(str(told.value)) < 300


@given(st.integers(0, 99), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_a_full_time_is_the_sum_of_its_parts(days, hours, minutes, seconds):
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert seconds_of(f"{days}-{hours:02}:{minutes:02}:{seconds:02}") == total
    assert seconds_of(time_limit(f"{days}d{hours}h{minutes}m{seconds}s", "time")) == total
