"""The run's diary."""

import threading

import pytest

from common.json_lines import append_line, read_lines
from training.events import EventLog
from training.lines import EVENT


def test_only_rank_0_writes_ordinary_events_and_any_rank_an_error(tmp_path):
    EventLog(tmp_path, 0).write("start", steps=3)
    EventLog(tmp_path, 1).write("start", steps=3)
    EventLog(tmp_path, 1).error("the disk is full", 2)
    events = read_lines(tmp_path / "events.jsonl")
    assert [(event["event"], event.get("rank")) for event in events] == [("start", None), ("error", 1)]
    assert events[1]["exit_code"] == 2


def test_an_error_that_all_ranks_share_is_written_once_wherever_each_of_them_met_it(tmp_path):
    for rank in range(3):
        EventLog(tmp_path, rank).error("no such dataset", 2, where=f" (rank {rank})")
    (line,) = read_lines(tmp_path / "events.jsonl")
    assert line["message"] == "no such dataset (rank 0)"


def test_each_start_of_a_job_tells_each_error_once_in_a_file_of_its_own(tmp_path):
    job = {"attempt": "7.0", "job": 7, "restart": 0}
    EventLog(tmp_path, 0, job).write("start")
    assert not EventLog(tmp_path, 1, job).has_been_told()
    for rank in range(3):
        EventLog(tmp_path, rank, job).error("no such dataset", 2, where=f" (rank {rank})")
    EventLog(tmp_path, 2, job).error("another", 1)
    assert EventLog(tmp_path, 1, job).has_been_told()
    again = {"attempt": "7.1", "job": 7, "restart": 1}
    assert not EventLog(tmp_path, 1, again).has_been_told()
    EventLog(tmp_path, 1, again).error("no such dataset", 2)
    assert [event["event"] for event in read_lines(tmp_path / "events.jsonl")] == ["start"]
    found = [read_lines(path) for path in (tmp_path / "events").iterdir()]
    assert sorted((line["attempt"], line["rank"]) for (line,) in found) == [("7.0", 0), ("7.0", 2), ("7.1", 1)]


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


@pytest.mark.parametrize("line", [b'{"event": "save", "time": "noon"}\n', b'{"event": "sa', b"\xff\x00\n", b"[1]\n"])
def test_a_strange_line_in_the_diary_costs_no_error_its_sentence(tmp_path, line):
    (tmp_path / "events.jsonl").write_bytes(line)
    EventLog(tmp_path, 1).error("the disk is full", 2)
    assert read_lines(tmp_path / "events.jsonl", EVENT)[-1]["message"] == "the disk is full"


def test_the_same_error_of_another_start_is_written_again(tmp_path):
    for attempt in ("first", "second"):
        for rank in range(2):
            EventLog(tmp_path, rank, {"attempt": attempt}).error("no such dataset", 2)
    assert [event["attempt"] for event in read_lines(tmp_path / "events.jsonl")] == ["first", "second"]
