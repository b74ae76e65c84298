"""Run by test_tensor.py on four ranks: layers and rows shared by one, two or four of them.

usage: torchrun --nproc-per-node=4 -m tests.training.tensor_ranks DATASET FOLDER
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from deepspeed.runtime.zero import stage_1_and_2
from megatron.core import parallel_state
from megatron.core.model_parallel_config import ModelParallelConfig
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, vocab_parallel_cross_entropy

from data_pipeline.manifest import Manifest
from model.network.layers import CutColumns, CutRows, Initializer
from model.network.loss import chunked_cross_entropy
from tests.training.planted_ranks import residual_on_each
from tests.training.runs import VOCAB_SIZE, tiny_config
from training.config import RunConfig
from training.distributed import World, connect, disconnect
from training.engine import Engine
from training.megatron import MegatronRanks
from training.setup import build_engine, identify, vocabulary_size
from training.state.choosing import choose
from training.state.identity import RunState
from training.state.loading import load
from training.state.saving import save
from training.step import train_step
from training.verify.plain import loader_of
from training.worker import leave

SAVED, LAST = 3, 5
LR = 3e-3
SHAPES: dict[str, dict[str, Any]] = {
    "causal": {"model": {"tie_embeddings": True, "qk_norm": True}},
    "prefix": {
        "model": {"shape": "prefix", "norm": "layernorm", "bias": True, "activation": "gelu", "positions": "learned"}
        | {"max_positions": 64},
        "objective": {"name": "prefix_lm"},
    },
    "encdec": {"model": {"shape": "encdec", "positions": "t5_bias"}, "objective": {"name": "prefix_lm"}},
    "muon": {"model": {"activation": "geglu"}, "optimizer": {"name": "muon"}},
}
FAULTS = ("gradients of shared weights are not summed", "residual once per rank", "norm counts copies per rank")
TWO, FOUR = {"tensor": 2}, {"tensor": 4}
ROWS, BOTH = {"context": 2}, {"tensor": 2, "context": 2}
Way = tuple[str, dict[str, Any], int]
"""Name among `SHAPES`, how ranks share, and stage."""
LONG = ("causal, layers", "encdec, both")
"""Those that train twenty steps; the others train six."""
WAYS: dict[str, Way] = {
    "causal, layers": ("causal", TWO, 3),
    "prefix, rows": ("prefix", ROWS, 0),
    "encdec, both": ("encdec", BOTH, 2),
    "causal, four to a layer": ("causal", FOUR, 2),
    "muon, four to a layer": ("muon", FOUR, 2),
}
"""The others are in `shardline verify --grid --ranks 4`, and in fp64 in tests/model/network."""
CROSSINGS: dict[str, tuple[Way, dict[str, Way]]] = {
    "from layers": (
        ("encdec", TWO, 2),
        {
            "itself": ("encdec", TWO, 2),
            "none": ("encdec", {}, 3),
            "both": ("encdec", BOTH, 1),
        },
    ),
    "from none": (("causal", {}, 3), {"four": ("causal", FOUR, 1)}),
    "from muon": (("muon", BOTH, 1), {"none": ("muon", {}, 2), "all": ("muon", {}, 0)}),
    "from both": (("encdec", BOTH, 3), {"itself": ("encdec", BOTH, 3), "rows": ("encdec", ROWS, 2)}),
}
"""The way that saves, and those that go on."""


def config_of(data: Path, shape: str, parallel: dict[str, Any], stage: int) -> RunConfig:
    keys = SHAPES[shape]
    return tiny_config(
        data,
        model={"vocab_size": VOCAB_SIZE + 1, "num_heads": 8, "num_kv_heads": 4} | keys["model"],
        objective=keys.get("objective", {"name": "next_token"}),
        optimizer=keys.get("optimizer", {}),
        training={"zero_stage": stage, "num_processes": 4, "micro_batch_size": 4},
        parallel=parallel,
    )


class Ranks:
    """The four ranks, grouped as a run asks for."""

    def __init__(self, world: World, data: Path):
        self.world, self.data, self.manifest = world, data, Manifest.load(data)

    def train(self, way: Way, last: int, *, start: Path | None = None, into: Path | None = None, sound: bool = True):
        """Losses and norms up to step `last`, from the checkpoint of `start`; what stands at `SAVED` goes `into`."""
        config = config_of(self.data, *way)
        world = self.world.grouped(**config.parallel.axes)
        engine = build_engine(config, vocabulary_size(config, self.manifest), world, resuming=start is not None)
        identity = identify(config, self.manifest, world.size)
        lines = []
        if start is not None:
            found = choose(start, world).checkpoint
            assert found is not None and found.state.step == SAVED
            load(engine, found)
        with loader_of(config, self.manifest, world.mesh.data.rank, world.mesh.data.size) as loader:
            for step in range(1, last + 1):
                batches = next(loader)
                if step > SAVED or start is None:
                    result = train_step(engine, batches, LR, world)
                    lines.append([result.loss, result.grad_norm])
                if step == SAVED and into is not None:
                    save(engine, into, RunState(step, 0, 0), identity, world)
        assert not sound or are_alike(engine, world), "copies of a weight differ between the ranks that share a layer"
        engine.close()
        return lines


def are_alike(engine: Engine, world: World) -> bool:
    """Whether weights that tensor ranks all hold are the same bits on all of them."""
    if engine.stage == 3 or world.mesh.tensor.size == 1:
        return True
    for weight in engine.module.parameters():
        if not weight.tensor_model_parallel:
            first = weight.detach().clone()
            dist.broadcast(first, world.mesh.tensor.first, group=world.mesh.tensor.group)
            if not torch.equal(first, weight):
                return False
    return True


@contextlib.contextmanager
def planted(fault: str) -> Iterator[None]:
    """The fault, while the block runs."""
    if fault == FAULTS[0]:
        place, name, faulty = MegatronRanks, "shared", lambda self, weight: weight
    elif fault == FAULTS[1]:
        place, name, faulty = CutColumns, "forward", residual_on_each
    else:
        place, name, faulty = stage_1_and_2, "is_model_parallel_parameter", lambda _: True
    with mock.patch.object(place, name, faulty):
        yield


def against_megatron(world: World, sequence: bool) -> dict[str, float]:
    """Largest differences between our cut layers and loss, and megatron-core's on the same weights."""
    mesh = world.grouped(tensor=2).mesh
    ranks, group = MegatronRanks(mesh.tensor, sequence), mesh.tensor.group
    config = ModelParallelConfig(tensor_model_parallel_size=2, sequence_parallel=sequence, use_cpu_initialization=True)
    init = Initializer(3, "layer", ranks)
    column, row = CutRows(12, (20,), 0.3, init / "column", True), CutColumns(20, 12, 0.3, init / "row", True)
    how = {
        "init_method": torch.nn.init.zeros_,
        "bias": True,
        "skip_bias_add": False,
        "config": config,
        "tp_group": group,
    }
    theirs = (
        ColumnParallelLinear(12, 20, gather_output=False, **how),
        RowParallelLinear(20, 12, input_is_parallel=True, **how),
    )
    for ours, other in zip((column, row), theirs, strict=True):
        with torch.no_grad():
            ours.bias.add_(torch.arange(len(ours.bias)) / 10)
            other.weight.copy_(ours.weight)
            other.bias.copy_(ours.bias)
    draw = torch.Generator().manual_seed(0)
    x = ranks.own_rows(torch.randn(8, 12, generator=draw)).clone()
    grad = ranks.own_rows(torch.randn(8, 12, generator=draw))
    inputs = x.clone().requires_grad_(), x.clone().requires_grad_()
    outputs = row(column(inputs[0]).relu(), inputs[0]), theirs[1](theirs[0](inputs[1])[0].relu())[0] + inputs[1]
    for output in outputs:
        output.backward(grad)
    weights = [(column.weight, theirs[0].weight), (column.bias, theirs[0].bias), (row.weight, theirs[1].weight)]
    apart = {"output": float((outputs[0] - outputs[1]).abs().max()), "input": _apart(*inputs)}
    apart |= {f"weight {number}": _apart(*pair) for number, pair in enumerate(weights)}

    hidden, weight = torch.randn(8, 12, generator=draw), torch.randn(10, 12, generator=draw).requires_grad_()
    labels = torch.randint(20, (8,), generator=draw)
    own = ranks.own_rows(hidden).clone().requires_grad_()
    loss = chunked_cross_entropy(own, weight, labels, chunk_size=3, ranks=ranks).loss_sum
    loss.backward()
    same = weight.detach().clone().requires_grad_()
    parallel_state._TENSOR_MODEL_PARALLEL_GROUP = group  # this function asks nobody else
    other = vocab_parallel_cross_entropy((hidden @ same.t())[:, None], labels[:, None]).sum()
    parallel_state._TENSOR_MODEL_PARALLEL_GROUP = None
    other.backward()
    return apart | {"loss": abs(float(loss - other)) / float(other), "head": _apart(weight, same)}


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.grad is not None and other.grad is not None
    return float((one.grad - other.grad).abs().max())


def main(data: str, folder: str) -> int:
    """Trains them all."""
    world = connect(timedelta(minutes=5))
    torch.set_num_threads(1)
    ranks, results, place = Ranks(world, Path(data)), {}, Path(folder)
    for sequence in (False, True):
        results[f"megatron {sequence}"] = against_megatron(world, sequence)
    for shape in dict.fromkeys(shape for shape, *_ in WAYS.values()):
        results[shape] = ranks.train((shape, {}, 1), 20 if shape in {WAYS[name][0] for name in LONG} else 6)
    for name, way in WAYS.items():
        results[name] = ranks.train(way, 20 if name in LONG else 6)
    for fault in FAULTS:
        with planted(fault):
            results[fault] = ranks.train(("prefix", TWO, 1), 2, sound=False)
    for name, (begun, others) in CROSSINGS.items():
        results[name] = ranks.train(begun, LAST, into=place / name)
        for to, other in others.items():
            way = f"{name} to {to}"
            results[way] = ranks.train(other, LAST, start=place / name, into=place / way)
    if world.is_main:
        (place / "results.json").write_text(json.dumps(results))
    disconnect(world)
    return 0


if __name__ == "__main__":
    leave(main(*sys.argv[1:]))
