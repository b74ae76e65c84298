"""The watch over ranks: who is to blame is found and told to all, by ranks that are threads with real connections."""

import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch.distributed as dist

from training.events import EventLog
from training.phases import Phase
from training.plane import Links
from training.watch import Watch
from training.whereabouts import Place, looked_up, patience, worst

NODE = socket.gethostname()
MINUTES = dict.fromkeys(Phase, 0.02)


class Ended(Watch):
    """A watch that remembers what its process would have ended with."""

    def __init__(self, rank, minutes, events):
        super().__init__(rank, minutes, events)
        self.over, self.waiting = threading.Event(), True

    def _exit(self):
        self.over.set()
        self.stop()


@pytest.fixture
def ranks(tmp_path, monkeypatch):
    """Makes so many watched ranks that are joined in a tree."""
    made = []

    def make(size, minutes=MINUTES):
        monkeypatch.setattr("training.watch.looked_up", dict)
        monkeypatch.setattr("training.watch.faulthandler.dump_traceback_later", lambda *_, **__: None)
        store = dist.HashStore()

        def join(rank):
            watch = Ended(rank, minutes, EventLog(tmp_path, rank))
            watch.join(Links.connect(rank, size, store, 30, name="watch"))
            return watch

        with ThreadPoolExecutor(size) as threads:
            made.extend(threads.map(join, range(size)))
        return made

    yield make
    for watch in made:
        watch.stop()


def told(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def place(**facts) -> Place:
    return Place(**{"rank": 0, "node": "n", "beats": 5, "waiting": True, **facts})


@pytest.mark.parametrize(
    "culprit",
    [
        place(rank=3, answers=False, beats=9),
        place(rank=3, beats=4),
        place(rank=3, waiting=False),
        place(rank=3, begun=-1),
        place(rank=3, seconds=1.0),
    ],
    ids=["does not answer", "is behind", "is in no collective", "has begun fewer of them", "has been there longest"],
)
def test_the_rank_that_others_wait_for_is_the_one_that(culprit):
    assert worst([place(rank=1), culprit, place(rank=2)]) is culprit


def test_a_sentence_names_rank_node_phase_and_line():
    words = place(rank=3, phase="step", step=7, minutes=10, waiting=False, where="training/step.py:9").sentence()
    assert words == "rank 3 on node n got nowhere for 10 minutes in phase step 7, at training/step.py:9"


def test_a_sentence_names_what_goes_on_behind_the_steps_too():
    watch = Watch(3)
    watch.beat(Phase.STEP, 7)
    watch.goes_behind(Phase.SAVE)
    watch.beat(Phase.STEP, 8)
    assert watch.place.at == "phase step 8 and, behind it, phase save"
    watch.beat(Phase.SAVE)
    assert watch.place.at == "phase save"
    watch.goes_behind(None)
    watch.beat(Phase.STEP, 9)
    assert watch.place.at == "phase step 9"


@pytest.mark.parametrize("minutes", [0.01, 0.5, 10, 10080])
def test_who_is_to_blame_is_looked_for_before_the_deadline(minutes):
    assert 0 < patience(minutes) < 60 * minutes
    assert 60 * minutes - patience(minutes) == pytest.approx(min(20, 20 * minutes))


def test_a_thread_that_waits_in_no_exchange_is_seen_at_its_line():
    seen = looked_up()
    assert seen["where"].startswith("tests/training/test_watch.py:") or seen["where"].startswith("training/")
    assert not seen["waiting"]


@pytest.mark.parametrize(("size", "culprit"), [(2, 1), (3, 0), (20, 17), (20, 1)])
def test_all_ranks_end_with_the_one_that_is_behind_and_one_tells(ranks, tmp_path, size, culprit):
    watches = ranks(size)
    for watch in watches:
        watch.beat(Phase.SAVE)
        if watch is not watches[culprit]:
            watch.beat(Phase.STEP, 4)
    for watch in watches:
        assert watch.over.wait(20)
        assert watch.heard(0)[0].startswith(f"rank {culprit} on node {NODE} got nowhere for 0.02 minutes in phase save")
    (event,) = {event["message"]: event for event in told(tmp_path)}.values()
    assert (event["rank"], event["node"], event["phase"], event["exit_code"]) == (culprit, NODE, "save", 1)


def test_a_rank_whose_process_stands_still_is_named_by_the_others(ranks):
    watches = ranks(3)
    for watch in watches:
        watch.beat(Phase.STEP, 4)
    watches[2].stop()  # it says nothing more, and its connection stays open
    for watch in watches[:2]:
        assert watch.over.wait(20)
        assert (
            watch.heard(0)[0].startswith(f"rank 2 on node {NODE} got nowhere")
            and "answers nothing" in watch.heard(0)[0]
        )


def test_an_error_of_one_rank_is_what_all_others_end_with(ranks, monkeypatch):
    monkeypatch.setattr("training.watch.GRACE", 0.1)
    watches = ranks(20, dict.fromkeys(Phase, 5.0))
    for watch in watches:
        watch.beat(Phase.LOAD)
    watches[18].end_all("no such weights", 2)
    for watch in watches[:18] + watches[19:]:
        assert watch.over.wait(20)
        assert watch.heard(0) == ("no such weights", 2)


def test_a_rank_that_is_gone_without_a_word_is_named_and_one_that_leaves_in_order_is_not(ranks, monkeypatch):
    monkeypatch.setattr("training.watch.GRACE", 0.1)
    watches = ranks(3, dict.fromkeys(Phase, 5.0))
    for watch in watches:
        watch.beat(Phase.STEP, 2)
    watches[2].leave()
    watches[2].stop()
    watches[2]._parent._socket.close()
    time.sleep(0.5)
    assert watches[0].heard(0) is None
    watches[1].stop()
    watches[1]._parent._socket.close()
    assert watches[0].over.wait(20)
    assert (
        watches[0].heard(0)[0] == f"rank 1 on node {NODE} left without a word in phase step 2: its process was killed"
    )


def test_ranks_leave_once_those_below_them_have(ranks):
    parent, child = ranks(2, dict.fromkeys(Phase, 5.0))
    leaving = threading.Thread(target=parent.leave)
    leaving.start()
    child.leave()
    leaving.join(0.3)
    assert leaving.is_alive()
    child.stop()
    child._parent._socket.close()
    leaving.join(20)
    assert not leaving.is_alive()


def test_a_watch_without_deadlines_or_one_that_was_stopped_ends_nothing():
    idle, stopped = Watch(), Ended(0, dict.fromkeys(Phase, 0.001), None)
    idle.beat(Phase.STEP, 1)
    stopped.beat(Phase.STEP, 1)
    stopped.stop()
    time.sleep(0.2)
    assert not stopped.over.is_set()


def test_a_process_that_hangs_ends_and_shows_where_it_was():
    code = (
        "import time\nfrom training.watch import Watch\nfrom training.phases import Phase\n"
        "Watch(3, {Phase.DATA: 0.02}).beat(Phase.DATA)\n"
        "def waits_for_a_disk():\n    time.sleep(60)\nwaits_for_a_disk()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    assert "waits_for_a_disk" in done.stderr
    assert f"rank 3 on node {NODE} got nowhere for 0.02 minutes in phase data; where" in done.stderr


@pytest.mark.parametrize("backend", ["gloo", pytest.param("nccl", marks=pytest.mark.gpu)])
def test_collectives_are_counted_by_torchs_own_record(backend):
    code = (
        "import os, time, torch, torch.distributed as dist\n"
        "from training.whereabouts import collectives\n"
        "os.environ['TORCH_FR_BUFFER_SIZE'] = os.environ['TORCH_NCCL_TRACE_BUFFER_SIZE'] = '100'\n"
        f"device = torch.device('cuda' if '{backend}' == 'nccl' else 'cpu')\n"
        f"dist.init_process_group('{backend}', store=dist.HashStore(), rank=0, world_size=1)\n"
        "before = collectives()\n"
        "for _ in range(3):\n    dist.all_reduce(torch.ones(2, device=device))\n"
        # A thread of torch's own writes down that one is done, a moment after its waiters have gone on.
        "end = time.monotonic() + 60\n"
        "while collectives()[1] < 3 and time.monotonic() < end:\n    time.sleep(0.01)\n"
        "begun, done = collectives()\n"
        "assert before == (0, 0) and begun == done == 3, (before, begun, done)\n"
        "dist.destroy_process_group()\n"  # or that thread may end the process by a signal
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
