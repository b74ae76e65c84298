"""The layers that hold weights: initialised matrices, embeddings, norms.

Weights are made where they are owned and drawn from a generator of their own, seeded by the run's
seed and their name: the same values whatever is built around them, in parallel or not.
"""

import hashlib

import torch
from torch import nn

from model.config import ModelConfig
from model.kernels.ops import layer_norm, linear, rms_norm


class Initializer:
    """Draws the weights of one module and its children; `name` is where they stand in the model."""

    def __init__(self, seed: int, name: str = ""):
        self.seed, self.name = seed, name

    def __truediv__(self, child: str) -> "Initializer":
        return Initializer(self.seed, f"{self.name}.{child}" if self.name else child)

    def normal(self, *shape: int, std: float) -> nn.Parameter:
        """A parameter of this shape from the normal distribution with mean 0."""
        if torch.get_default_device().type == "meta":
            return nn.Parameter(torch.empty(shape))
        digest = hashlib.blake2b(f"{self.seed}:{self.name}".encode(), digest_size=8).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)
        values = torch.empty(shape, dtype=torch.float32, device="cpu").normal_(0.0, std, generator=generator)
        return nn.Parameter(values.to(torch.get_default_device(), torch.get_default_dtype()))


class Linear(nn.Module):
    """x [T, I] -> [T, O] by a matrix [O, I], and a bias [O] that starts at 0 where one is asked for."""

    def __init__(self, d_in: int, d_out: int, std: float, init: Initializer, bias: bool = False):
        super().__init__()
        self.weight = init.normal(d_out, d_in, std=std)
        self.bias = nn.Parameter(torch.zeros(d_out)) if bias else None

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """X W^T + bias, or residual [T, O] + x W^T + bias in one call."""
        return linear(x, self.weight, self.bias, residual)


class Embedding(nn.Module):
    """Rows of a matrix [V, M] by token or by position."""

    def __init__(self, num_rows: int, width: int, std: float, init: Initializer):
        super().__init__()
        self.weight = init.normal(num_rows, width, std=std)

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        """int64 [T] -> [T, M]."""
        return nn.functional.embedding(index, self.weight)


class RMSNorm(nn.Module):
    """RMSNorm with a weight [M] that starts at 1."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., M] -> [..., M]."""
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(nn.Module):
    """LayerNorm with a weight [M] that starts at 1 and, where asked for, a bias [M] that starts at 0."""

    def __init__(self, width: int, eps: float, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, M] -> [T, M]."""
        return layer_norm(x, self.weight, self.bias, self.eps)


def make_norm(config: ModelConfig) -> nn.Module:
    """A norm [T, M] -> [T, M] of the kind that the config says."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.d_model, config.norm_eps)
    return LayerNorm(config.d_model, config.norm_eps, config.bias)
