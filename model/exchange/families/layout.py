"""How a weight of ours lies in weights of Hugging Face's classes, there and back.

    rows of ours -> steps, each of which can be undone (rows in another order, transposed, multiplied ...) -> theirs

A weight of ours is one of theirs, or several one below the other (q, k, v; gate and up). A step sees the weight it is
for and no other, so that weights can go through one at a time.
"""

import dataclasses
from typing import NamedTuple, Protocol

import torch

from common.mistakes import Mistake

Shape = tuple[int, ...]


class Step(Protocol):
    """Something done to rows of ours on the way to theirs."""

    def shape(self, shape: Shape) -> Shape:
        """What comes of a shape."""

    def there(self, rows: torch.Tensor) -> torch.Tensor:
        """Ours -> theirs."""

    def back(self, piece: torch.Tensor, name: str) -> torch.Tensor:
        """Theirs -> ours. Mistake naming their weight when it is none that `there` gives."""


@dataclasses.dataclass(frozen=True)
class Scaled:
    """Multiplied by a number, in fp32."""

    factor: float

    def shape(self, shape: Shape) -> Shape:
        """See `Step`."""
        return shape

    def there(self, rows: torch.Tensor) -> torch.Tensor:
        """See `Step`."""
        return rows.float() * self.factor

    def back(self, piece: torch.Tensor, name: str) -> torch.Tensor:
        """See `Step`."""
        return piece.float() / self.factor


@dataclasses.dataclass(frozen=True)
class Added:
    """A number added, in fp32."""

    number: float

    def shape(self, shape: Shape) -> Shape:
        """See `Step`."""
        return shape

    def there(self, rows: torch.Tensor) -> torch.Tensor:
        """See `Step`."""
        return rows.float() + self.number

    def back(self, piece: torch.Tensor, name: str) -> torch.Tensor:
        """See `Step`."""
        return piece.float() - self.number


@dataclasses.dataclass(frozen=True)
class Transposed:
    """[O, I] as [I, O], as GPT-2's Conv1D has it."""

    def shape(self, shape: Shape) -> Shape:
        """See `Step`."""
        return shape[::-1]

    def there(self, rows: torch.Tensor) -> torch.Tensor:
        """See `Step`."""
        return rows.T

    def back(self, piece: torch.Tensor, name: str) -> torch.Tensor:
        """See `Step`."""
        return piece.T


@dataclasses.dataclass(frozen=True)
class Repeated:
    """Each head's rows so many times, one after the other, where a class has no grouped heads."""

    times: int
    head_dim: int

    def shape(self, shape: Shape) -> Shape:
        """See `Step`."""
        return (shape[0] * self.times, *shape[1:])

    def there(self, rows: torch.Tensor) -> torch.Tensor:
        """See `Step`."""
        return rows.unflatten(0, (-1, self.head_dim)).repeat_interleave(self.times, 0).flatten(0, 1)

    def back(self, piece: torch.Tensor, name: str) -> torch.Tensor:
        """See `Step`."""
        heads = piece.unflatten(0, (-1, self.times, self.head_dim))
        if not torch.equal(heads, heads[:, :1].expand_as(heads)):
            raise Mistake(f"{name}: its heads differ where the config has {self.times} of them share keys")
        return heads[:, 0].flatten(0, 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Reordered:
    """Rows in another order: theirs[i] is ours[order[i]]."""

    order: torch.Tensor
    """int64 [rows]."""

    def shape(self, shape: Shape) -> Shape:
        """See `Step`."""
        return shape

    def there(self, rows: torch.Tensor) -> torch.Tensor:
        """See `Step`."""
        return rows[self.order]

    def back(self, piece: torch.Tensor, name: str) -> torch.Tensor:
        """See `Step`."""
        return torch.empty_like(piece).index_copy_(0, self.order, piece)


def interleaved(num_heads: int, head_dim: int, rotary_dim: int) -> Reordered:
    """Rotary dims of each head as pairs of neighbours (GPT-J, Cohere), which ours has as two halves."""
    rows = torch.arange(num_heads * head_dim).view(num_heads, head_dim)
    turned = rows[:, :rotary_dim].view(num_heads, 2, rotary_dim // 2).transpose(1, 2).flatten(1)
    return Reordered(torch.cat((turned, rows[:, rotary_dim:]), 1).flatten())


def by_head(num_heads: int, head_dim: int) -> Reordered:
    """Queries, keys and values of each head together [H, 3, D] (BLOOM, GPT-NeoX), which ours has as [3, H, D]."""
    return Reordered(torch.arange(3 * num_heads * head_dim).view(3, num_heads, head_dim).transpose(0, 1).flatten())


class Part(NamedTuple):
    """A weight of theirs, made of rows of one of ours."""

    name: str
    """Its name."""
    of: Shape
    """Shape of those rows in ours."""
    start: int = 0
    """The first of them."""
    steps: tuple[Step, ...] = ()
    """What is done to them on the way."""

    @property
    def shape(self) -> Shape:
        """Its shape."""
        shape = self.of
        for step in self.steps:
            shape = step.shape(shape)
        return shape

    @property
    def end(self) -> int:
        """Row of ours behind the last of them."""
        return self.start + self.of[0]

    def there(self, ours: torch.Tensor) -> torch.Tensor:
        """The whole weight of ours -> theirs, a view of its rows where values are the same."""
        piece = ours[self.start : self.end]
        for step in self.steps:
            piece = step.there(piece)
        return piece

    def back(self, piece: torch.Tensor) -> torch.Tensor:
        """Theirs -> those rows of ours."""
        for step in reversed(self.steps):
            piece = step.back(piece, self.name)
        return piece


WeightTable = dict[str, list[Part]]
"""Our name -> the weights of theirs that hold it."""


def stacked(*parts: Part) -> list[Part]:
    """Parts one below the other."""
    start, result = 0, []
    for part in parts:
        result.append(part._replace(start=start))
        start += part.of[0]
    return result


def linear(ours: str, theirs: list[tuple[str, int]], width: int, bias: bool, *steps: Step) -> WeightTable:
    """A map of ours as one or several of theirs, (name, rows in ours) each, from `width` inputs.

    `steps` are for weight and bias alike, but that a bias is not transposed.
    """
    of_bias = tuple(step for step in steps if not isinstance(step, Transposed))
    table = {f"{ours}.weight": stacked(*(Part(f"{name}.weight", (rows, width), 0, steps) for name, rows in theirs))}
    if bias:
        table[f"{ours}.bias"] = stacked(*(Part(f"{name}.bias", (rows,), 0, of_bias) for name, rows in theirs))
    return table


def norm(ours: str, theirs: str, width: int, bias: bool = False, *of_weight: Step) -> WeightTable:
    """A norm of ours and theirs; `of_weight` are what is done to its weight."""
    table = {f"{ours}.weight": [Part(f"{theirs}.weight", (width,), 0, of_weight)]}
    return table | ({f"{ours}.bias": [Part(f"{theirs}.bias", (width,))]} if bias else {})


def ends(embedding: str, head: str, vocab_size: int, width: int, tied: bool) -> tuple[WeightTable, WeightTable]:
    """Embedding and head by their names; a tied head has no entry of its own."""
    shape = (vocab_size, width)
    return {"embedding.weight": [Part(embedding, shape)]}, {} if tied else {"head.weight": [Part(head, shape)]}
