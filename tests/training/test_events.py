"""The run's diary."""

import threading

import pytest

from common.json_lines import append_line, read_lines
from training.events import EventLog, read_events


def test_only_rank_0_writes_ordinary_events_and_any_rank_an_error(tmp_path):
    EventLog(tmp_path, 0).write("start", steps=3)
    EventLog(tmp_path, 1).write("start", steps=3)
    EventLog(tmp_path, 1).error("the disk is full", 2)
    events = read_lines(tmp_path / "events.jsonl")
    assert [(event["event"], event.get("rank")) for event in events] == [("start", None), ("error", 1)]
    assert events[1]["exit_code"] == 2


def test_an_error_that_all_ranks_share_is_written_once(tmp_path):
    for rank in range(3):
        EventLog(tmp_path, rank).error("no such dataset", 2)
    assert len(read_lines(tmp_path / "events.jsonl")) == 1


def test_what_several_machines_have_to_say_stands_in_a_file_for_each_and_is_merged_by_time(tmp_path):
    job = {"job": 7, "restart": 0}
    EventLog(tmp_path, 0, job).write("start")
    for rank in range(3):
        EventLog(tmp_path, rank, job).error("no such dataset", 2)
    EventLog(tmp_path, 2, job).error("another", 1)
    append_line(tmp_path / "events" / "job-7.0.jsonl", {"time": 0.5, "event": "job_start"})
    append_line(tmp_path / "events" / "job-7.0.jsonl", {"time": "yesterday", "event": "odd"})
    assert [event["event"] for event in read_lines(tmp_path / "events.jsonl")] == ["start"]
    found = [(event["event"], event.get("rank")) for event in read_events(tmp_path)]
    assert found == [("odd", None), ("job_start", None), ("start", None), ("error", 0), ("error", 2)]
    EventLog(tmp_path, 1, {"job": 7, "restart": 1}).error("no such dataset", 2)
    assert len(read_events(tmp_path)) == 6


def test_lines_of_many_writers_never_mix(tmp_path):
    path = tmp_path / "events.jsonl"

    def write(number: int) -> None:
        for _ in range(200):
            append_line(path, {"writer": number, "text": "x" * 500})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_lines(path)) == 800


def test_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "start"}\n{"event": "sa')
    assert read_lines(path) == [{"event": "start"}]
    assert read_lines(tmp_path / "none") == []


def test_a_line_that_does_not_fit_the_disk_names_its_file(tmp_path):
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"events.jsonl: a line could not be written .No space left"):
        EventLog(tmp_path, 0).write("start")
