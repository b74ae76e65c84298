"""The catalogue of GPUs: configs/machines.yaml."""

import functools
from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict, Field

from common.mistakes import Mistake
from training.hardware import GPU_TFLOPS


class Machine(BaseModel):
    """A GPU in the node that it usually stands in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str
    """Its name among `GPU_TFLOPS`."""
    memory_gb: float = Field(gt=0)
    """Of one GPU, 10^9 bytes."""
    memory_gb_per_s: float = Field(gt=0)
    """Of that memory."""
    attention: float = Field(gt=0, le=1)
    """Share of the arithmetic peak that attention's allowed pairs reach, forward and backward, by flash-attn 2."""
    gpus: int = Field(ge=1)
    """In a node."""
    node_gb_per_s: float = Field(gt=0)
    """Between GPUs of a node, one direction."""
    network_gb_per_s: float = Field(gt=0)
    """From one GPU to other nodes, one direction."""
    source: str
    """Where the figures are from."""

    @property
    def peak_flops(self) -> float:
        """Dense bf16 FLOP/s."""
        return GPU_TFLOPS[self.device] * 1e12

    def bandwidth(self, num_ranks: int, stride: int = 1) -> float:
        """Bytes a second of a ring over `num_ranks` GPUs, every `stride`-th of a row of them, one direction.

        Collectives lay as many rings as a node has GPUs in the group, each over another adapter.
        """
        if num_ranks * stride <= self.gpus:
            return self.node_gb_per_s * 1e9
        return min(self.node_gb_per_s, self.network_gb_per_s * max(self.gpus // stride, 1)) * 1e9


@functools.cache
def machines() -> dict[str, Machine]:
    """All of them by name."""
    tree = yaml.safe_load((files("configs") / "machines.yaml").read_text(encoding="utf-8"))
    return {name: Machine(**facts) for name, facts in tree.items()}


def machine(name: str) -> Machine:
    """The one of this name. ValueError, with the names there are, when there is none."""
    found = machines().get(name)
    if found is None:
        raise Mistake(f"--gpu: {name!r} is not in the catalogue; known are {', '.join(machines())}")
    return found
