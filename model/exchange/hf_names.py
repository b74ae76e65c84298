"""Which weights of ours are which weights of Hugging Face's classes, in both directions (families/layout.py)."""

from collections.abc import Callable, Iterator

import torch

from common.mistakes import Mistake
from model.config import ModelConfig
from model.exchange.families import family_of
from model.exchange.families.layout import Part, WeightTable


def weight_table(config: ModelConfig, vocab_size: int) -> WeightTable:
    """All weights of a model by the class that it is written as; a tied head has no entry of its own."""
    return family_of(config).table(config, vocab_size)


def part_shapes(table: WeightTable) -> dict[str, tuple[int, ...]]:
    """Their names and shapes."""
    return {part.name: part.shape for parts in table.values() for part in parts}


def to_hf(name: str, tensor: torch.Tensor, table: WeightTable) -> list[tuple[str, torch.Tensor]]:
    """One weight of ours as theirs, views of its rows where values are the same.

    Raises ValueError when it is not the model's.
    """
    parts = table.get(name)
    if parts is None:
        raise Mistake(f"{name}: the model has no such weight; was it trained with another model config?")
    expected = our_shape(parts)
    if tuple(tensor.shape) != expected:
        raise Mistake(f"{name}: the weight is {list(tensor.shape)}, the model config makes it {list(expected)}")
    return [(part.name, part.there(tensor)) for part in parts]


def from_hf(read: Callable[[str], torch.Tensor], table: WeightTable) -> Iterator[tuple[str, torch.Tensor]]:
    """All weights of ours in turn, from a function that gives theirs by name. Raises ValueError on a wrong shape."""
    for name in table:
        yield name, one_from_hf(read, table, name)


def one_from_hf(read: Callable[[str], torch.Tensor], table: WeightTable, name: str) -> torch.Tensor:
    """One weight of ours. Raises ValueError on a wrong shape, or when what is one of ours differs in theirs."""
    parts = table[name]
    expected = our_shape(parts)
    ours: torch.Tensor | None = None
    for part in parts:
        piece = read(part.name)
        if tuple(piece.shape) != part.shape:
            raise Mistake(f"{part.name}: the weight is {list(piece.shape)}, the config makes it {list(part.shape)}")
        piece = part.back(piece)
        if piece.shape == expected and ours is None:
            ours = piece
            continue
        if ours is None:
            ours = piece.new_zeros(expected)
        rows = ours[part.start : part.end]
        if len(parts) > 1 and rows.shape == expected and not torch.equal(rows, piece):
            raise Mistake(f"{part.name}: it differs from {parts[0].name}, but the config ties the two")
        rows.copy_(piece)
    assert ours is not None, f"{name} is made of nothing"
    return ours


def our_shape(parts: list[Part]) -> tuple[int, ...]:
    """Shape of the weight of ours that these make up."""
    return (max(part.end for part in parts), *parts[0].of[1:])
