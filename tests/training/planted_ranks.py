"""Ranks of `shardline verify` with a fault planted in what they run: test_planted.py starts them.

usage: torchrun --nproc-per-node=2 -m tests.training.planted_ranks DATASET FOLDER...    (config.yaml names the fault)
"""

import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero import stage_1_and_2

from model.network.layers import CutColumns
from training import engine, muon
from training.config import RunConfig
from training.engine import Engine
from training.verify import ranks
from training.worker import leave

backward, deepspeed_config = Engine.backward, engine.deepspeed_config
orthogonalized, train = muon.orthogonalized, ranks.train


def without_the_last(self: Engine, loss: torch.Tensor) -> None:
    """The last micro-batch of a step adds nothing."""
    backward(self, loss * 0 if self._engine.is_gradient_accumulation_boundary() else loss)


def summed_in_bf16(*arguments: Any) -> dict[str, Any]:
    """Gradients are rounded to bf16 between the ranks."""
    return deepspeed_config(*arguments) | {"communication_data_type": "bf16"}


def residual_on_each(self: CutColumns, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """Every rank that shares a layer adds the residual to its part of the sum."""
    assert self.ranks is not None
    return self.ranks.summed(torch.nn.functional.linear(x, self.weight) + self.ranks.whole(residual))


def with_padding(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix is orthogonalised together with rows that lie behind it."""
    return orthogonalized(torch.cat([matrix, matrix[:8].flip(1)]))[: len(matrix)]


def as_large(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix is not orthogonalised, only made as large as if it were."""
    return matrix / matrix.norm() * min(matrix.shape) ** 0.5


FAULTS: dict[str, tuple[str, Any, str, Callable[..., Any]]] = {
    "last-micro-batch-dropped": ("causal, ZeRO 2, {}", Engine, "backward", without_the_last),
    "sum-in-bf16": ("causal, ZeRO 1, {}", engine, "deepspeed_config", summed_in_bf16),
    "residual-once-per-rank": ("encdec, ZeRO 1, {}, 2 ranks to a layer", CutColumns, "forward", residual_on_each),
    "muon-without-orthogonalisation": ("causal, ZeRO 1, {}, muon", muon, "orthogonalized", as_large),
    "muon-with-padding": ("causal, ZeRO 2, {}, muon", muon, "orthogonalized", with_padding),
    "norm-counts-copies": (
        "prefix, ZeRO 1, {}, 2 ranks to a layer",
        stage_1_and_2,
        "is_model_parallel_parameter",
        lambda _: True,
    ),
    "rows-not-summed": (
        "encdec, ZeRO 0, {}, 2 ranks to a row",
        DeepSpeedEngine,
        "allreduce_gradients",
        lambda *_, **__: None,
    ),
}
"""By name: the way to train, and what is replaced by what."""


def train_faultily(config: RunConfig, *how: Any) -> dict[str, Any]:
    """Trains a run with the fault that it is named after."""
    _, place, attribute, faulty = FAULTS[config.name]
    with mock.patch.object(place, attribute, faulty):
        return train(config, *how)


if __name__ == "__main__":
    ranks.train = train_faultily
    leave(ranks.main(*sys.argv[1:]))
