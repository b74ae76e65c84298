"""The layers that hold weights: initialised matrices, embeddings, norms.

Every weight knows what it starts as (`FirstValues`): the values are drawn from a generator of its own, seeded by the
run's seed and its name. So they are the same whatever is built around them, and any part of them can be made where it
is held. On the meta device a model has shapes alone: nothing is drawn and no memory taken.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import nn

from model.config import ModelConfig
from model.kernels.ops import layer_norm, linear, rms_norm

BLOCK = 1 << 20
"""Values drawn at a time: 4 MiB. A multiple of 16, the number torch draws together, so that blocks join seamlessly."""


class FirstValues(Protocol):
    """What a parameter starts as."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter."""

    def fill(self, out: torch.Tensor, start: int = 0) -> None:
        """Writes the values from place `start` of the flat parameter on into out [n], of any dtype and device."""


@dataclasses.dataclass(frozen=True)
class Constant:
    """The same number everywhere."""

    shape: tuple[int, ...]
    value: float

    def fill(self, out: torch.Tensor, start: int = 0) -> None:
        """See `FirstValues`."""
        out.fill_(self.value)


@dataclasses.dataclass(frozen=True)
class Draw:
    """The normal distribution with mean 0, drawn in fp32 on the host from a generator that seed and name give."""

    shape: tuple[int, ...]
    std: float
    seed: int
    name: str

    def fill(self, out: torch.Tensor, start: int = 0) -> None:
        """See `FirstValues`; what lies before `start` is drawn and dropped, no more than a block at a time."""
        stop = start + out.numel()
        digest = hashlib.blake2b(f"{self.seed}:{self.name}".encode(), digest_size=8).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)
        for begin, end in _blocks(math.prod(self.shape)):
            if begin >= stop:
                break
            values = torch.empty(end - begin, dtype=torch.float32, device="cpu").normal_(
                0.0, self.std, generator=generator
            )
            first, last = max(begin, start), min(end, stop)
            if first < last:
                out[first - start : last - start].copy_(values[first - begin : last - begin])


def _blocks(numel: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each block; what is left in the end joins the last one if it is less than 16."""
    begin = 0
    while begin < numel:
        end = min(begin + BLOCK, numel)
        if numel - end < 16:
            end = numel
        yield begin, end
        begin = end


class Initializer:
    """Says what the weights of one module and its children start as; `name` is where they stand in the model."""

    def __init__(self, seed: int, name: str = ""):
        self.seed, self.name = seed, name

    def __truediv__(self, child: str) -> "Initializer":
        return Initializer(self.seed, f"{self.name}.{child}" if self.name else child)

    def normal(self, *shape: int, std: float) -> Draw:
        """First values of a weight of this shape from the normal distribution with mean 0."""
        return Draw(shape, std, self.seed, self.name)


class Layer(nn.Module):
    """A module that owns weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first_values: dict[str, FirstValues] = {}
        """By the weight's name in this module."""

    def own(self, name: str, first: FirstValues) -> nn.Parameter:
        """A new parameter with its first values, on torch's default device and in its default dtype."""
        self.first_values[name] = first
        weight = torch.empty(first.shape)
        if not weight.is_meta:
            first.fill(weight.view(-1))
        return nn.Parameter(weight)


def first_values(model: nn.Module) -> dict[str, FirstValues]:
    """What each parameter of a model starts as, by its name; a tied one is named once, as `named_parameters` does."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Layer)}
    owners = {name: name.rpartition(".") for name, _ in model.named_parameters()}
    return {name: layers[layer].first_values[own] for name, (layer, _, own) in owners.items()}


class Linear(Layer):
    """x [T, I] -> [T, O] by a matrix [O, I], and a bias [O] that starts at 0 where one is asked for."""

    def __init__(self, d_in: int, d_out: int, std: float, init: Initializer, bias: bool = False):
        super().__init__()
        self.weight = self.own("weight", init.normal(d_out, d_in, std=std))
        self.bias = self.own("bias", Constant((d_out,), 0.0)) if bias else None

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """X W^T + bias, or residual [T, O] + x W^T + bias in one call."""
        return linear(x, self.weight, self.bias, residual)


class Embedding(Layer):
    """Rows of a matrix [V, M] by token or by position."""

    def __init__(self, num_rows: int, width: int, std: float, init: Initializer):
        super().__init__()
        self.weight = self.own("weight", init.normal(num_rows, width, std=std))

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        """int64 [T] -> [T, M]."""
        return nn.functional.embedding(index, self.weight)


class RMSNorm(Layer):
    """RMSNorm with a weight [M] that starts at 1."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = self.own("weight", Constant((width,), 1.0))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., M] -> [..., M]."""
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(Layer):
    """LayerNorm with a weight [M] that starts at 1 and, where asked for, a bias [M] that starts at 0."""

    def __init__(self, width: int, eps: float, bias: bool):
        super().__init__()
        self.weight = self.own("weight", Constant((width,), 1.0))
        self.bias = self.own("bias", Constant((width,), 0.0)) if bias else None
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, M] -> [T, M]."""
        return layer_norm(x, self.weight, self.bias, self.eps)


def make_norm(config: ModelConfig) -> nn.Module:
    """A norm [T, M] -> [T, M] of the kind that the config says."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.d_model, config.norm_eps)
    return LayerNorm(config.d_model, config.norm_eps, config.bias)
