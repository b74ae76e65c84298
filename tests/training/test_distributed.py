"""Which GPU a rank takes, and which sharing is refused."""

import contextlib
import dataclasses
import os

import pytest

from tests.training.planes import in_threads
from training.distributed import World, choose_gpu, refuse_shared_gpus, share_cores, take_gpu
from training.worker import fenced


@pytest.mark.parametrize(
    ("local_rank", "local_size", "num_gpus", "expected"),
    [(0, 1, 1, 0), (0, 1, 8, 0), (3, 4, 4, 3), (3, 4, 8, 3), (3, 4, 1, 0)],
)
def test_each_rank_takes_the_gpu_of_its_number_or_the_only_one_it_is_shown(local_rank, local_size, num_gpus, expected):
    assert choose_gpu(local_rank, local_size, num_gpus) == expected


@pytest.mark.parametrize("local_rank", [0, 3])
def test_more_ranks_than_gpus_are_refused_on_every_rank(local_rank):
    with pytest.raises(ValueError, match=r"num_processes: 4 ranks on this machine but 2 GPU.*use --nproc 2"):
        choose_gpu(local_rank, 4, 2)


@pytest.mark.parametrize(("num_gpus", "number"), [(1, "0"), (8, "3")])
def test_deepspeed_is_told_the_gpu_that_the_rank_has_taken(monkeypatch, num_gpus, number):
    taken = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: num_gpus)
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    for name, value in {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    device = take_gpu(3)
    assert (str(device), taken) == (f"cuda:{number}", [int(number)])
    assert os.environ["LOCAL_RANK"] == os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] == number


def test_one_rank_of_a_machine_keeps_the_watch_though_all_compute_on_a_gpu_of_number_0(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    watching = [
        not isinstance(fenced(tmp_path, dataclasses.replace(World.alone(), local_rank=rank)), contextlib.nullcontext)
        for rank in range(4)
    ]
    assert watching == [True, False, False, False]


def refused(gpus: list[str]) -> list[str]:
    """What each of several ranks says to the GPU it was shown, empty where nothing."""

    def look(world: World) -> str:
        try:
            refuse_shared_gpus(world, gpus[world.rank])
        except ValueError as error:
            return str(error)
        return ""

    return in_threads(len(gpus), look)


def test_ranks_that_are_shown_one_gpu_each_are_fine_if_these_are_different_ones():
    assert refused(["GPU-1", "GPU-2", "GPU-3"]) == ["", "", ""]


def test_ranks_that_are_shown_the_same_gpu_are_refused_on_every_rank():
    words = refused(["GPU-1", "GPU-2", "GPU-1"])
    assert all("2 ranks hold the same GPU, 3 ranks being on its machine" in each for each in words)


def test_cores_are_split_between_the_ranks_that_may_use_the_same_ones(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    assert in_threads(3, lambda world: share_cores(world, None)) == [4, 4, 4]
    assert in_threads(3, lambda world: share_cores(world, 2)) == [2, 2, 2]
