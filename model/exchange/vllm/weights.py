"""Weights of a folder on their way into vLLM's layers."""

from collections.abc import Collection, Iterable, Iterator

import torch

Weights = Iterable[tuple[str, torch.Tensor]]


def with_one_embedding(weights: Weights, name: str, others: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights in which an embedding stands once, as `name`, whichever of its names a folder has.

    ValueError when one of the `others` is not the same.
    """
    first = None
    for found, weight in weights:
        if found != name and found not in others:
            yield found, weight
        elif first is None:
            first = weight.clone()
            yield name, weight
        elif not torch.equal(first, weight):
            raise ValueError(f"{found}: it differs from the embedding under its other names, and here is place for one")
