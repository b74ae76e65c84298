"""A model that holds no weights: each part reads its own when its turn comes and forgets them after it.

So a model of any size can be run where one of its parts fits into memory, at the cost of reading it anew every time.
"""

from collections.abc import Callable, Iterator

import torch
from torch import nn

Read = Callable[[str], torch.Tensor]
"""Gives a weight by its name."""


def read_on_demand(model: nn.Module, units: list[nn.Module], read: Read) -> None:
    """From now on each of `units` reads its weights, and those of the modules inside it, in fp32 when it is called.

    `read` is asked by the names of `model`, of a tied weight by the first of its names. A weight must be used only
    while one of the units that hold it runs.
    """
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), name)
    for unit in units:
        _Weights(unit, names, read)


def owners(model: nn.Module) -> list[nn.Module]:
    """Modules with weights of their own: the smallest units there are."""
    return [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]


def layers_and_owners(model: nn.Module) -> list[nn.Module]:
    """The items of all lists of modules as units, and what has weights outside of them."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    inside = {id(part) for group in lists for layer in group for part in layer.modules()}
    outermost = [layer for group in lists if id(group) not in inside for layer in group]
    return [*outermost, *(owner for owner in owners(model) if id(owner) not in inside)]


class _Weights:
    """Hooks of one unit."""

    def __init__(self, unit: nn.Module, names: dict[int, str], read: Read):
        self.unit, self.read = unit, read
        self.slots = [(owner, key, kept, names[id(kept)]) for owner, key, kept in _slots(unit)]
        unit.register_forward_pre_hook(self._fetch)
        unit.register_forward_hook(self._forget, always_call=True)

    def _fetch(self, *_: object) -> None:
        for owner, key, _kept, name in self.slots:
            owner._parameters[key] = nn.Parameter(self.read(name).float(), requires_grad=False)

    def _forget(self, *_: object) -> None:
        for owner, key, kept, _name in self.slots:
            owner._parameters[key] = kept


def _slots(unit: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for owner in unit.modules():
        for key, parameter in owner._parameters.items():
            if parameter is not None:
                yield owner, key, parameter
