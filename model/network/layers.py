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
from model.kernels.ops import layer_norm, linear, rms_norm, rms_norm_1p
from model.network.tensor_ranks import Division, TensorRanks, between_rows

BLOCK = 1 << 20
"""Values drawn at a time: 4 MiB. A multiple of 16, the number torch draws together, so that blocks join seamlessly."""


class FirstValues(Protocol):
    """What a parameter starts as."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter, all of it."""

    def fill(self, out: torch.Tensor, start: int = 0) -> None:
        """Writes the values from place `start` of the flat parameter on into out [n], of any dtype and device."""

    def blocks(self, start: int, stop: int) -> Iterator[tuple[int, torch.Tensor]]:
        """The values from `start` to `stop` in blocks, one behind another, each with the place where it begins."""


@dataclasses.dataclass(frozen=True)
class Constant:
    """The same number everywhere."""

    shape: tuple[int, ...]
    value: float

    def fill(self, out: torch.Tensor, start: int = 0) -> None:
        """See `FirstValues`."""
        out.fill_(self.value)

    def blocks(self, start: int, stop: int) -> Iterator[tuple[int, torch.Tensor]]:
        """See `FirstValues`."""
        for begin in range(start, stop, BLOCK):
            yield begin, torch.full((min(BLOCK, stop - begin),), self.value, device="cpu")


@dataclasses.dataclass(frozen=True)
class Draw:
    """The normal distribution with mean 0, drawn in fp32 on the host from a generator that seed and name give."""

    shape: tuple[int, ...]
    std: float
    seed: int
    name: str

    def fill(self, out: torch.Tensor, start: int = 0) -> None:
        """See `FirstValues`."""
        for begin, values in self.blocks(start, start + out.numel()):
            out[begin - start : begin - start + len(values)].copy_(values)

    def blocks(self, start: int, stop: int) -> Iterator[tuple[int, torch.Tensor]]:
        """See `FirstValues`; what lies before `start` is drawn and dropped, no more than a block at a time."""
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
                yield first, values[first - begin : last - begin]


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
    """Says what the weights of one module and its children start as; `name` is where they stand in the model.

    `ranks` share the layers, where there are such: then a module holds its part of the weights that are cut.
    """

    def __init__(self, seed: int, name: str = "", ranks: TensorRanks | None = None):
        self.seed, self.name, self.ranks = seed, name, ranks

    def __truediv__(self, child: str) -> "Initializer":
        return Initializer(self.seed, f"{self.name}.{child}" if self.name else child, self.ranks)

    def split(self, count: int) -> int:
        """A rank's share of `count` heads."""
        return count // self.ranks.size if self.ranks else count

    def normal(self, *shape: int, std: float) -> Draw:
        """First values of a weight of this shape from the normal distribution with mean 0."""
        return Draw(shape, std, self.seed, self.name)


class Layer(nn.Module):
    """A module that owns weights, or a rank's part of them."""

    is_hidden = False
    """Whether its weight leads from hidden states to hidden states."""

    def __init__(self, ranks: TensorRanks | None = None) -> None:
        super().__init__()
        self.ranks = ranks
        """Who shares the module's weights; None where they are whole."""
        self.first_values: dict[str, FirstValues] = {}
        """Of the whole weight, by its name in this module."""
        self.divisions: dict[str, Division] = {}
        """How weights are cut where ranks share the module, of those that are."""

    def own(self, name: str, first: FirstValues, division: Division | None = None) -> nn.Parameter:
        """A new parameter with its first values, on torch's default device and in its default dtype."""
        self.first_values[name] = first
        if division is not None:
            self.divisions[name] = division
        if self.ranks is None or division is None:
            weight = torch.empty(first.shape)
            if not weight.is_meta:
                first.fill(weight.view(-1))
            return nn.Parameter(weight)
        weight = torch.empty(division.shape(first.shape, self.ranks.size))
        if not weight.is_meta:
            whole = torch.empty(first.shape)
            first.fill(whole.view(-1))
            weight = division.of(whole, self.ranks.rank, self.ranks.size)
        return nn.Parameter(weight)


def first_values(model: nn.Module) -> dict[str, FirstValues]:
    """What each parameter of a model starts as, by its name; a tied one is named once, as `named_parameters` does."""
    return {name: layer.first_values[own] for name, (layer, own) in _owners(model).items()}


def divisions(model: nn.Module) -> dict[str, Division]:
    """How the parameters of a model are cut where ranks share it, of those that are, by name as in `first_values`."""
    owners = _owners(model)
    return {name: layer.divisions[own] for name, (layer, own) in owners.items() if own in layer.divisions}


def hidden_matrices(model: nn.Module) -> dict[str, Division]:
    """The weights that lead from hidden states to hidden states, and the sections that are matrices by themselves."""
    owners = _owners(model)
    return {name: layer.divisions[own] for name, (layer, own) in owners.items() if layer.is_hidden and own == "weight"}


def _owners(model: nn.Module) -> dict[str, tuple[Layer, str]]:
    """The layer that owns each parameter, and the parameter's name there."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Layer)}
    parts = {name: name.rpartition(".") for name, _ in model.named_parameters()}
    return {name: (layers[layer], own) for name, (layer, _, own) in parts.items()}


class CutRows(Layer):
    """x [T, I] -> [T, O] by a matrix [O, I] and a bias [O], where asked for, that starts at 0.

    O is the sum of `sections`; of each of them a tensor rank computes its part, [T, O / size] in all.
    """

    is_hidden = True

    def __init__(self, d_in: int, sections: tuple[int, ...], std: float, init: Initializer, bias: bool = False):
        super().__init__(init.ranks)
        d_out, division = sum(sections), Division(0, sections)
        self.weight = self.own("weight", init.normal(d_out, d_in, std=std), division)
        self.bias = self.own("bias", Constant((d_out,), 0.0), division) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X W^T + bias."""
        if self.ranks is None:
            return linear(x, self.weight, self.bias)
        return self.ranks.cut_rows(x, self.weight, self.bias)


class CutColumns(Layer):
    """x [T, I] -> [T, O] by a matrix [O, I] and a bias [O], where asked for, that starts at 0.

    A tensor rank is given its part of x, [T, I / size]; what the ranks make of theirs is summed.
    """

    is_hidden = True

    def __init__(self, d_in: int, d_out: int, std: float, init: Initializer, bias: bool = False):
        super().__init__(init.ranks)
        self.weight = self.own("weight", init.normal(d_out, d_in, std=std), Division(1, (d_in,)))
        self.bias = self.own("bias", Constant((d_out,), 0.0)) if bias else None

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """X W^T + bias, plus residual [T, O] where it is given."""
        if self.ranks is None:
            return linear(x, self.weight, self.bias, residual)
        product = self.ranks.summed(linear(x, self.weight))
        if self.bias is not None:
            product = product + (self.ranks.shared(self.bias) if self.ranks.sequence else self.bias)
        return product if residual is None else residual + product


class CutInside(CutColumns):
    """The same between layers that are whole: of x [T, I], or rows of it, a tensor rank takes its columns by itself."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """X W^T + bias, plus residual [T, O] where it is given."""
        if self.ranks is not None:
            x = self.ranks.whole(x).chunk(self.ranks.size, 1)[self.ranks.rank].contiguous()
        return super().forward(x, residual)


class Embedding(Layer):
    """Rows of a matrix [V, M] by position."""

    def __init__(self, num_rows: int, width: int, std: float, init: Initializer):
        super().__init__(between_rows(init.ranks))
        self.weight = self.own("weight", init.normal(num_rows, width, std=std))

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        """int64 [T] -> [T, M], or this rank's rows of it."""
        if self.ranks is None:
            return nn.functional.embedding(index, self.weight)
        return nn.functional.embedding(self.ranks.own_rows(index), self.ranks.shared(self.weight))


class FirstRow(Embedding):
    """A matrix [S, M] of which all tokens have the first row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X [T, M], or this rank's rows of it, plus the row."""
        return x + (self.weight if self.ranks is None else self.ranks.shared(self.weight))[0]


class TokenEmbedding(Layer):
    """Rows of a matrix [V, M] by token, times `scale`; of tensor ranks each has some of them."""

    def __init__(self, num_rows: int, width: int, std: float, init: Initializer, scale: float = 1.0):
        super().__init__(init.ranks)
        self.scale = scale
        self.weight = self.own("weight", init.normal(num_rows, width, std=std), Division(0, (num_rows,)))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [T] -> [T, M]; of tensor ranks that which `complete` is still to make whole."""
        found = self._rows(tokens)
        return found if self.scale == 1 else found * self.scale

    def _rows(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.ranks is None:
            return nn.functional.embedding(tokens, self.weight)
        place = tokens - self.ranks.rank * self.weight.shape[0]
        elsewhere = (place < 0) | (place >= self.weight.shape[0])
        found = nn.functional.embedding(place.masked_fill(elsewhere, 0), self.weight)
        return found.masked_fill(elsewhere[:, None], 0)

    def complete(self, found: torch.Tensor) -> torch.Tensor:
        """What all ranks have found of a row of tokens, or this rank's rows of it."""
        return found if self.ranks is None else self.ranks.summed(found)


class RMSNorm(Layer):
    """RMSNorm with a weight [M] that starts at 1, or at 0 where it is kept less 1.

    `ranks` have parts of what is normed, of rows or of heads.
    """

    def __init__(self, width: int, eps: float, ranks: TensorRanks | None = None, less_one: bool = False):
        super().__init__(ranks)
        self.weight = self.own("weight", Constant((width,), 0.0 if less_one else 1.0))
        self.eps, self.less_one = eps, less_one

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., M] -> [..., M]."""
        weight = self.weight if self.ranks is None else self.ranks.shared(self.weight)
        return (rms_norm_1p if self.less_one else rms_norm)(x, weight, self.eps)


class LayerNorm(Layer):
    """LayerNorm with a weight [M] that starts at 1 and, where asked for, a bias [M] that starts at 0."""

    def __init__(self, width: int, eps: float, bias: bool, ranks: TensorRanks | None = None):
        super().__init__(ranks)
        self.weight = self.own("weight", Constant((width,), 1.0))
        self.bias = self.own("bias", Constant((width,), 0.0)) if bias else None
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, M] -> [T, M]."""
        if self.ranks is None:
            return layer_norm(x, self.weight, self.bias, self.eps)
        bias = None if self.bias is None else self.ranks.shared(self.bias)
        return layer_norm(x, self.ranks.shared(self.weight), bias, self.eps)


def make_norm(config: ModelConfig, init: Initializer) -> nn.Module:
    """A norm [T, M] -> [T, M] of the kind that the config says, of as many rows as this rank has."""
    if config.norm != "layernorm":
        return RMSNorm(config.d_model, config.norm_eps, between_rows(init.ranks), config.norm == "rmsnorm_1p")
    return LayerNorm(config.d_model, config.norm_eps, config.bias, between_rows(init.ranks))
