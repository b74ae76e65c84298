"""Who this process is among its peers, and the few numbers they agree upon.

A worker is told by the standard environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). Weights and
gradients travel over nccl or gloo through DeepSpeed; counts, losses and decisions travel over the plane (plane.py),
always from host to host, so that they need no work on the GPU (a value that comes from one, like the loss, is waited
for).
"""

import dataclasses
import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from common.mistakes import Mistake
from training.mesh import Mesh
from training.plane import Links, PeerLost, Plane
from training.watch import Watch

DEVICE_NUMBERS = {"LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"}
"""Variables that DeepSpeed takes for the number of the device; under mpirun it insists that they agree."""
ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclasses.dataclass(frozen=True)
class World:
    """One process among the R ranks of the run."""

    mesh: Mesh
    """Where it stands on each axis."""
    plane: Plane
    """What it agrees upon with the others, from host to host."""
    device: torch.device
    """Where it computes."""
    store: Any = None
    """Key-value store that all ranks reach; None for one that is alone."""
    attempt: str = ""
    """Which start of the run these ranks are (see fence.py); empty outside of a run."""
    local_rank: int = 0
    """Number of this process among those of its machine."""
    watch: Watch = dataclasses.field(default_factory=Watch)
    """What is told where it stands, and ends it when it gets nowhere."""

    @classmethod
    def alone(cls, device: torch.device | str = "cpu", attempt: str = "") -> "World":
        """A process without peers."""
        return cls(Mesh.of(0, 1), Plane(0, 1), torch.device(device), attempt=attempt)

    def grouped(self, *, tensor: int = 1, context: int = 1) -> "World":
        """The same ranks, so many of them to a layer and to a row; all ranks call it together.

        ValueError when they cannot be grouped so.
        """
        mesh = Mesh.of(self.rank, self.size, tensor=tensor, context=context).with_groups()
        return dataclasses.replace(self, mesh=mesh)

    def apart(self, name: str, timeout: timedelta) -> "World":
        """The same ranks with exchanges of their own, which those of this world never wait for; all call it together.

        `name` says whose. Whoever asked for them closes the plane.
        """
        if self.size == 1:
            return dataclasses.replace(self, plane=Plane(0, 1))
        # those who ask again must not find addresses of the time before
        time = self.store.add(f"{name} of rank {self.rank}", 1)
        store = dist.PrefixStore(f"{name} {time}", self.store)
        return dataclasses.replace(self, plane=Plane.connect(self.rank, self.size, store, timeout), store=store)

    @property
    def rank(self) -> int:
        """Number of this process among all, 0 .. size - 1: it names files and logs."""
        return self.mesh.rank

    @property
    def size(self) -> int:
        """Number of processes, R."""
        return self.mesh.size

    @property
    def collectives(self) -> str:
        """What weights and gradients travel over between the ranks."""
        return "nccl" if self.device.type == "cuda" else "gloo"

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that writes what all share."""
        return self.rank == 0

    @property
    def speaks(self) -> bool:
        """Whether this rank counts for those that read the same samples."""
        return self.mesh.tensor.rank == 0 and self.mesh.context.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums of `values` over the replicas, in float64, on every rank; ranks that share layers count once."""
        return self.plane.begin_sum([value if self.mesh.tensor.rank == 0 else 0.0 for value in values]).result()

    def max(self, values: Sequence[float]) -> list[float]:
        """Maxima of `values` over all ranks."""
        return self.plane.max(values)

    def sum_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum of a host tensor along the data axis, on every rank; ranks that read the same samples count once."""
        mine = tensor if self.speaks else torch.zeros_like(tensor)
        return torch.from_numpy(self.plane.join(mine.numpy(), np.add))

    def sum_on_device(self, value: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor [N] over all ranks, in fp64, where it lies: nobody waits for a GPU."""
        if self.device.type == "cpu":
            return torch.tensor(self.plane.sum(value.tolist()), dtype=torch.float64) if self.size > 1 else value.clone()
        total = value.double()
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def from_main(self, value: Any) -> Any:
        """Rank 0's `value`, on every rank; any object that pickles."""
        return self.plane.from_main(value)

    def gather_to_main(self, value: Any) -> list[Any] | None:
        """`value` of every rank in rank order on rank 0, None on the others; any object that pickles."""
        return self.plane.gather_to_main(value)

    def count_alike(self, what: str) -> int:
        """How many ranks call with the same words; all ranks call it together, once for each kind of words."""
        if self.store is None:
            return 1
        self.store.add(what, 1)
        self.plane.barrier()
        return int(self.store.add(what, 0))


def connect(timeout: timedelta, *, tensor: int = 1, context: int = 1, watch: Watch | None = None) -> World:
    """Joins the process groups that the environment names; a collective that waits longer than `timeout` fails.

    `tensor` ranks share each layer and `context` ranks each row; a `watch` hears of its neighbours from here on. Raises
    ValueError when a variable is missing or is not what it should be, when the ranks cannot be grouped so, and when
    ranks would share a GPU; PeerLost, which names them, when ranks do not come within `timeout`.
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
    local_rank = numbers["LOCAL_RANK"]
    device = take_gpu(local_rank) if torch.cuda.is_available() else torch.device("cpu")
    rank, size = numbers["RANK"], numbers["WORLD_SIZE"]
    mesh = Mesh.of(rank, size, tensor=tensor, context=context)
    store = _meet(rank, timeout)
    watch = watch or Watch(rank)
    if watch.minutes and size > 1:
        watch.join(Links.connect(rank, size, store, timeout.total_seconds(), name="watch"))
    # nccl connects nobody yet: that is left to the first collective
    backend = "nccl" if device.type == "cuda" else "gloo"
    tensors = dist.PrefixStore("tensors", store)
    dist.init_process_group(backend, store=tensors, rank=rank, world_size=size, timeout=timeout)
    plane = Plane.connect(rank, size, store, timeout)
    counter = dist.PrefixStore("count", store)
    world = World(mesh.with_groups(), plane, device, counter, local_rank=local_rank, watch=watch)
    if device.type == "cuda":
        refuse_shared_gpus(world, str(torch.cuda.get_device_properties(device).uuid))
    return world


def _meet(rank: int, timeout: timedelta) -> dist.Store:
    """The store where ranks find each other: rank 0's, or that of torch's launcher. Waits for no other rank."""
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if not port.isdecimal():
        raise Mistake(f"MASTER_PORT: {port!r} in the environment; expected a whole number")
    of_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    is_master = rank == 0 and not of_launcher
    how: dict[str, Any] = {"is_master": is_master, "timeout": timeout, "wait_for_workers": False, "multi_tenant": True}
    try:
        return dist.TCPStore(host, int(port), **how)
    except dist.DistNetworkError as error:
        if is_master:
            raise
        seconds = timeout.total_seconds()
        whose = "torch's launcher" if of_launcher else "rank 0"
        words = f"{whose} has not come within {seconds:.3g} s: nothing answers at {host}:{port}"
        raise PeerLost(words) from error


def take_gpu(local_rank: int) -> torch.device:
    """Makes the GPU of the rank with this number on its machine the one that torch and DeepSpeed compute on.

    From here on LOCAL_RANK in the environment is the number of that GPU, for that is how DeepSpeed looks it up: where
    a scheduler shows each rank one GPU, all of them have number 0.
    """
    told = os.environ.get("LOCAL_WORLD_SIZE", "")
    local_size = int(told) if told.isdecimal() else local_rank + 1
    index = choose_gpu(local_rank, local_size, torch.cuda.device_count())
    torch.cuda.set_device(index)
    for name in DEVICE_NUMBERS & os.environ.keys():
        os.environ[name] = str(index)
    return torch.device("cuda", index)


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


def refuse_shared_gpus(world: World, gpu: str) -> None:
    """Raises ValueError on every rank when two ranks hold the same GPU, given the id of this rank's."""
    machine = socket.gethostname()
    sharers, neighbours = world.count_alike(f"gpu {gpu} of {machine}"), world.count_alike(f"machine {machine}")
    most, num_ranks = world.max([sharers, neighbours if sharers > 1 else 0])
    if most > 1:
        raise Mistake(
            f"training.num_processes: {most:.0f} ranks hold the same GPU, {num_ranks:.0f} ranks being on its machine; "
            "start one rank for each GPU and let each see its own"
        )


def _too_few(num_ranks: int, num_gpus: int) -> str:
    return f"training.num_processes: {num_ranks} ranks on this machine but {num_gpus} GPU(s); use --nproc {num_gpus}"


def set_timeout(world: World, timeout: timedelta) -> None:
    """From now on an exchange or a collective of any group that waits longer than `timeout` fails."""
    world.plane.set_timeout(timeout)
    for group in dist.distributed_c10d._world.pg_map if dist.is_initialized() else ():
        dist.distributed_c10d._set_pg_timeout(timeout, group)


def disconnect(world: World) -> None:
    """Leaves the process groups."""
    world.plane.close()
    if dist.is_initialized():
        dist.destroy_process_group()


def share_cores(world: World, threads: int | None) -> int:
    """Sets and returns this rank's number of CPU threads.

    Without a wish, the cores this process may use are split evenly between the ranks that may use the same ones.
    """
    if threads is None:
        cores = sorted(os.sched_getaffinity(0))
        sharers = world.count_alike(f"cores {cores} of {socket.gethostname()}")
        threads = max(1, len(cores) // sharers)
    torch.set_num_threads(threads)
    return threads
