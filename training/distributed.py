"""Who this process is among its peers, and the few numbers they agree upon.

A worker is told by the standard environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). Weights and
gradients travel over nccl or gloo through DeepSpeed; counts, losses and decisions travel over `World`, always from
host to host, so that they need no work on the GPU (a value that comes from one, like the loss, is waited for).
"""

import dataclasses
import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from common.mistakes import Mistake

ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclasses.dataclass(frozen=True)
class World:
    """One process among the R ranks of the run."""

    rank: int
    """Number of this process, 0 .. size - 1."""
    size: int
    """Number of processes, R."""
    device: torch.device
    """Where this process computes."""
    group: Any = None
    """Process group of gloo for host values; None means the default group."""
    attempt: str = ""
    """Which start of the run these ranks are (see fence.py); empty outside of a run."""

    @property
    def collectives(self) -> str:
        """What weights and gradients travel over between the ranks."""
        return "nccl" if self.device.type == "cuda" else "gloo"

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that writes what all share."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums of `values` over the ranks, in float64."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, values: Sequence[float]) -> list[float]:
        """Maxima of `values` over the ranks."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def _reduce(self, values: Sequence[float], op: Any) -> list[float]:
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op=op, group=self.group)
        return tensor.tolist()

    def sum_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum of a host tensor over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, in rank order, on every rank; any object that pickles."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def gather_to_main(self, value: Any) -> list[Any] | None:
        """`value` of every rank, in rank order, on rank 0; None on the others, which need no memory for them."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, values, dst=0, group=self.group)
        return values

    def from_main(self, value: Any) -> Any:
        """Rank 0's `value`, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]


def connect(timeout: timedelta) -> World:
    """Joins the process groups that the environment names; a collective that waits longer than `timeout` fails.

    Raises ValueError when a variable is missing or is not what it should be, and when ranks would share a GPU.
    """
    for name in ENVIRONMENT:
        if not os.environ.get(name):
            raise Mistake(f"{name}: not set in the environment; start workers with `shardline train` or torchrun")
    numbers = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        if not os.environ[name].isdecimal():
            raise Mistake(f"{name}: {os.environ[name]!r} in the environment; expected a whole number")
        numbers[name] = int(os.environ[name])
    if numbers["RANK"] >= numbers["WORLD_SIZE"]:
        raise Mistake(f"RANK: {numbers['RANK']} in the environment; it must be below WORLD_SIZE")
    if not torch.cuda.is_available():
        dist.init_process_group("gloo", timeout=timeout)
        return World(rank=numbers["RANK"], size=numbers["WORLD_SIZE"], device=torch.device("cpu"))
    told = os.environ.get("LOCAL_WORLD_SIZE", "")
    local_size = int(told) if told.isdecimal() else numbers["LOCAL_RANK"] + 1
    device = torch.device("cuda", choose_gpu(numbers["LOCAL_RANK"], local_size, torch.cuda.device_count()))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", timeout=timeout)  # connects nobody yet: that is left to the first collective
    group = dist.new_group(backend="gloo", timeout=timeout)
    world = World(rank=numbers["RANK"], size=numbers["WORLD_SIZE"], device=device, group=group)
    place = (socket.gethostname(), str(torch.cuda.get_device_properties(device).uuid))
    refuse_shared_gpus(world.gather(place))
    return world


def choose_gpu(local_rank: int, local_size: int, num_gpus: int) -> int:
    """Number of the GPU, among the `num_gpus` > 0 that this rank sees, for one of `local_size` ranks on its machine.

    A rank that sees one takes it: schedulers show each rank its own; whether it is, `refuse_shared_gpus` finds out.
    Raises ValueError when there are more ranks than GPUs.
    """
    if num_gpus == 1:
        return 0
    if max(local_size, local_rank + 1) > num_gpus:
        raise Mistake(_too_few(max(local_size, local_rank + 1), num_gpus))
    return local_rank


def refuse_shared_gpus(places: Sequence[tuple[str, str]]) -> None:
    """Raises ValueError when two ranks hold the same GPU, given (machine, id of its GPU) of each rank."""
    for machine, gpu in places:
        if places.count((machine, gpu)) > 1:
            on_machine = [other for name, other in places if name == machine]
            raise Mistake(_too_few(len(on_machine), len(set(on_machine))))


def _too_few(num_ranks: int, num_gpus: int) -> str:
    return f"training.num_processes: {num_ranks} ranks on this machine but {num_gpus} GPU(s); use --nproc {num_gpus}"


def disconnect() -> None:
    """Leaves the process groups."""
    if dist.is_initialized():
        dist.destroy_process_group()


def share_cores(world: World, threads: int | None) -> int:
    """Sets and returns this rank's number of CPU threads.

    Without a wish, the cores this process may use are split evenly between the ranks that may use the same ones.
    """
    if threads is None:
        cores = tuple(sorted(os.sched_getaffinity(0)))
        place = (socket.gethostname(), cores)
        threads = max(1, len(cores) // world.gather(place).count(place))
    torch.set_num_threads(threads)
    return threads
