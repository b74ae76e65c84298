"""A step computed twice more every `guards.recompute_interval` steps: the same rank must get the same bits."""

import torch
import xxhash

from training.engine import Engine
from training.parts.comparing import end_of
from training.parts.part import Moment, Part, Run
from training.plane import node_name
from training.replicas import Deviants
from training.step import StepInput, run_again


class Recomputing(Part):
    """Ends the run where a rank computes something else the second time, naming it; its node is left out as well.

    Losses of every micro-batch are compared, on a CPU gradients too: on a GPU kernels may add them up in any order.
    """

    def __init__(self, run: Run, engine: Engine):
        self.run, self.engine = run, engine

    def reads(self, moment: Moment) -> bool:
        return moment.due(self.run.config.guards.recompute_interval)

    def after_step(self, moment: Moment) -> None:
        if not self.reads(moment):
            return
        first, second = (self._digest(moment.data) for _ in range(2))
        world = self.run.world
        mine = Deviants(1, ((world.rank, node_name()),), True) if first != second else Deviants(0, (), True)
        found = world.plane.join(mine, Deviants.__add__)
        if found.count:
            raise end_of(self.run, moment.step, found, "computes something else from the same batch the second time")

    def _digest(self, data: StepInput) -> int:
        """Of losses and gradients of this rank."""
        world, seen = self.run.world, list[int]()

        def note(_: str, gradient: torch.Tensor) -> None:
            if world.device.type == "cpu":
                seen.append(xxhash.xxh3_64_intdigest(gradient.contiguous().view(torch.uint8).numpy().data))

        result = run_again(self.engine, data, world, "recomputing", note)
        return xxhash.xxh3_64_intdigest(repr((result.own_losses, seen)).encode())
