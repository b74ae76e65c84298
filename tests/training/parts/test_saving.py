"""Checkpoints behind the steps: when they are complete, when that is seen, and what their failing leaves."""

import dataclasses
import errno
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from tests.training.runs import events_of, tiny_config
from tests.training.stand_ins import moment_of, run_in
from tests.training.state.ranks import ALONE, IDENTITY, VectorEngine, chosen, on_ranks, save_step
from training import fence
from training.distributed import World
from training.parts.part import Part
from training.parts.saving import Saving
from training.plane import PeerLost
from training.state import saving
from training.state.behind import Behind, Hanging
from training.state.folder import checkpoints_dir, latest_checkpoint

MINUTE = timedelta(minutes=1)
PATIENCE = 60
"""Seconds after which everything has happened, or a test has failed."""


class Noting(Part):
    """Remembers what it was told, and after which step."""

    def __init__(self) -> None:
        self.told: list[tuple[int, str]] = []
        self.step = 0

    def before_step(self, step) -> None:
        self.step = step

    def before_save(self) -> None:
        self.told.append((self.step, "before"))

    def after_save(self, folder) -> None:
        self.told.append((self.step, folder.name))


class Steps:
    """Steps of one rank that do nothing but save."""

    def __init__(self, folder, world: World = ALONE, hang_minutes: float = 1.0, **checkpoint):
        config = tiny_config("none", checkpoint=checkpoint, training={"hang_minutes": hang_minutes})
        run = dataclasses.replace(run_in(folder, config, world), identity=IDENTITY)
        self.noting, self.world = Noting(), world
        self.saving = Saving(run, VectorEngine(world), [self.noting])  # type: ignore[arg-type]
        self.saving.begin()

    def do(self, *steps: int, **how) -> None:
        for step in steps:
            self.world.plane.barrier()  # as the sums of a step are
            self.noting.before_step(step)
            self.saving.after_step(moment_of(step, **how))

    def until_told(self, step: int, how_often: int) -> int:
        """Steps from this one on, none of which a save is due at, until parts were told so many things; the last."""
        deadline = time.monotonic() + PATIENCE
        while len(self.noting.told) < how_often:
            assert time.monotonic() < deadline, self.noting.told
            self.do(step)
            time.sleep(0.002)
            last, step = step, step + (2 if step % 10 == 9 else 1)
        return last


def names(folder) -> list[str]:
    return sorted(path.name for path in checkpoints_dir(folder).iterdir())


@pytest.fixture
def gate(monkeypatch):
    """Writing of parts waits for it, on ranks that are not in `open_to`."""
    gate = threading.Event()
    gate.open_to = set()  # type: ignore[attr-defined]
    write = saving.write_part

    def write_part(path, kinds):
        if path.name not in gate.open_to:
            assert gate.wait(PATIENCE)
        return write(path, kinds)

    monkeypatch.setattr(saving, "write_part", write_part)
    yield gate
    gate.set()


def test_checkpoints_are_saved_at_their_interval_and_wherever_the_run_ends(tmp_path):
    for in_background in (True, False):
        steps = Steps(tmp_path / str(in_background), in_background=in_background, interval_steps=10)
        steps.do(*range(1, 12))
        steps.do(13, stopping=True)
        assert [word for _, word in steps.noting.told] == ["before", "step-00000010", "before", "step-00000013"]
        steps.do(20, done=True)
        assert steps.noting.told[-2:] == [(20, "before"), (20, "step-00000020")]
        steps.saving.close()
        found = chosen(tmp_path / str(in_background))
        assert found.state.step == 20 and names(tmp_path / str(in_background))[1:] == ["step-00000013", "step-00000020"]


def test_steps_go_on_while_a_checkpoint_is_written_and_it_counts_once_it_is_whole(tmp_path, gate):
    steps = Steps(tmp_path, interval_steps=10)
    steps.do(*range(10, 16))
    assert steps.noting.told == [(10, "before")]
    assert latest_checkpoint(tmp_path) is None
    time.sleep(0.05)
    gate.set()
    steps.until_told(16, 2)
    steps.saving.close()
    assert names(tmp_path) == ["latest", "step-00000010"]
    (event,) = events_of(tmp_path, "save")
    assert event["step"] == 10 and event["path"] == "checkpoints/step-00000010"
    assert 0 < event["stalled_seconds"] < event["seconds"] and event["seconds"] > 0.05


def test_without_the_background_a_step_waits_for_all_of_it(tmp_path):
    steps = Steps(tmp_path, in_background=False, interval_steps=10)
    steps.do(10)
    assert names(tmp_path) == ["latest", "step-00000010"]
    (event,) = events_of(tmp_path, "save")
    assert event["stalled_seconds"] == event["seconds"]
    steps.saving.close()


def test_a_save_that_comes_due_waits_for_the_one_before_and_says_so(tmp_path, gate):
    steps = Steps(tmp_path, interval_steps=10, keep=1)
    steps.do(10)
    with ThreadPoolExecutor(1) as other:
        due = other.submit(steps.do, 20)
        time.sleep(0.2)
        assert not due.done() and steps.noting.told == [(10, "before")]
        gate.set()
        due.result(PATIENCE)
    assert steps.noting.told[1:] == [(20, "step-00000010"), (20, "before")]
    steps.until_told(21, 4)
    steps.saving.close()
    first, second = events_of(tmp_path, "save")
    assert first["stalled_seconds"] < 0.2 <= second["stalled_seconds"] < second["seconds"]
    assert names(tmp_path) == ["latest", "step-00000020"]
    assert [event["path"] for event in events_of(tmp_path, "delete")] == ["checkpoints/step-00000010"]


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_all_ranks_see_it_complete_after_the_same_step(tmp_path, gate, slow):
    gate.open_to = {f"part-{rank:05d}.safetensors" for rank in range(3) if rank != slow}

    def go(world: World) -> tuple[int, list]:
        steps = Steps(tmp_path, world, interval_steps=10)
        steps.do(*range(10, 15))
        if world.rank == slow:
            gate.set()
        last = steps.until_told(15, 2)
        steps.saving.close()
        return last, steps.noting.told

    ranks = on_ranks(3, go)
    assert ranks == [ranks[0]] * 3 and ranks[0][0] >= 15
    assert len(events_of(tmp_path, "save")) == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_failed_write_is_raised_on_all_ranks_after_the_same_step_and_leaves_no_trace(tmp_path, monkeypatch, rank):
    on_ranks(2, lambda world: save_step(tmp_path, 3, world))
    write = saving.write_part

    def write_part(path, kinds):
        if path.name == f"part-{rank:05d}.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, kinds)

    monkeypatch.setattr(saving, "write_part", write_part)

    def go(world: World) -> tuple[int, OSError]:
        steps = Steps(tmp_path, world, interval_steps=10)
        with pytest.raises(
            OSError, match=r"could not be written \(No space left on device\); the ones before"
        ) as caught:
            steps.until_told(10, 2)
        steps.saving.close()
        return steps.noting.step, caught.value

    (step, error), (same_step, same_error) = on_ranks(2, go)
    assert step == same_step and str(error) == str(same_error) and error.errno == errno.ENOSPC
    assert names(tmp_path) == ["latest", "step-00000003"]


def test_a_run_that_is_taken_over_meanwhile_learns_it_and_leaves_nothing(tmp_path, gate):
    fence.take(tmp_path, "7.0")
    steps = Steps(tmp_path, World.alone(attempt="7.0"), interval_steps=10)
    steps.do(10)
    fence.take(tmp_path, "7.1")
    gate.set()
    with pytest.raises((fence.Superseded, OSError)):
        steps.until_told(11, 2)
    steps.saving.close()
    assert names(tmp_path) == []


def test_a_run_that_breaks_off_lets_the_checkpoint_become_complete(tmp_path, gate):
    steps = Steps(tmp_path, interval_steps=10)
    steps.do(10, 11)
    threading.Timer(0.1, gate.set).start()
    steps.saving.close()
    assert names(tmp_path) == ["latest", "step-00000010"]
    assert [event["step"] for event in events_of(tmp_path, "save")] == [10]


def test_a_run_that_breaks_off_is_not_told_another_reason_by_a_checkpoint_that_fails_too(tmp_path, monkeypatch, caplog):
    def fails(path, kinds):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(saving, "write_part", fails)
    steps = Steps(tmp_path, interval_steps=10)
    steps.do(10)
    steps.saving.close()
    assert "step-00000010 was being written when the run broke off, and failed" in caplog.text
    assert names(tmp_path) == []


def test_a_rank_that_hangs_in_a_write_ends_all_of_them_with_its_number(tmp_path, gate):
    gate.open_to = {"part-00000.safetensors"}

    def go(world: World) -> Exception:
        steps = Steps(tmp_path, world, hang_minutes=0.01, interval_steps=10)
        with pytest.raises((PeerLost, Hanging)) as caught:
            steps.until_told(10, 2)
        if world.rank:
            gate.set()
        steps.saving.close()
        return caught.value

    first, second = map(str, on_ranks(2, go))
    where = r"in phase save, the writing of step-00000010"
    assert re.search(rf"rank 1 on node \S+ did not answer in time \(.*\) {where}", first)
    assert re.search(rf"rank 1 on node \S+ got nowhere for 0.01 minutes {where}|rank 0 on node \S+ has left", second)


def test_a_rank_that_is_alone_notices_that_its_write_hangs(tmp_path, gate):
    steps = Steps(tmp_path, hang_minutes=0.01, interval_steps=10)
    with pytest.raises(
        Hanging, match=r"rank 0 on node \S+ got nowhere for 0.01 minutes in phase save, the writing of step-00000010"
    ):
        steps.until_told(10, 2)
    gate.set()
    steps.saving.close()


def test_exchanges_of_the_work_never_meet_those_of_the_steps():
    def go(world: World) -> list[float]:
        behind: Behind[list[float]] = Behind(world, "test", 1.0, MINUTE)
        held = threading.Event()

        def work() -> list[float]:
            for _ in range(50):
                behind.world.plane.sum([1.0])
            assert held.wait(PATIENCE)
            return behind.world.plane.sum([float(world.rank)])

        behind.begin("adding", work)
        sums = [world.plane.sum([10.0])[0] for _ in range(50)]
        held.set()
        result = behind.outcome()
        behind.close()
        return [*result, *set(sums)]

    assert on_ranks(3, go) == [[3.0, 30.0]] * 3
