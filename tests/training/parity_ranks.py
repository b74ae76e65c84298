"""Run on two ranks by test_parity.py: trains a few steps in every way to cut, round, accumulate and offload.

usage: python -m tests.training.parity_ranks DATASET FOLDER
"""

import dataclasses
import functools
import gc
import itertools
import json
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from safetensors.torch import save_file

from tests.training.runs import VOCAB_SIZE, tiny_config
from tests.training.step_ranks import batches_of
from training.config import RunConfig
from training.distributed import World, connect, disconnect
from training.setup import build_engine
from training.step import Patterns, train_step
from training.verify.grid import AS_ON_GPUS, OFFLOADS

STEPS = 3
LR = 1e-3
SEVERAL = {"reduce_bucket_size": 3000}
"""Buckets so small that there are several, and that one weight fits into none."""
KEYS: dict[int, tuple[dict[str, Any], ...]] = {
    1: (
        {"round_robin_gradients": True},
        {"parameter_alignment": True},
        {"reduce_scatter": False, **SEVERAL},
        {"use_multi_rank_bucket_allreduce": False, **SEVERAL},
    ),
    2: (
        {"round_robin_gradients": True},
        {"parameter_alignment": True},
        {"overlap_comm": True, **SEVERAL},
        {"reduce_scatter": False, **SEVERAL},
        {"use_multi_rank_bucket_allreduce": False, "overlap_comm": True, **SEVERAL},
    ),
    3: (
        {"sub_group_size": 1, "contiguous_gradients": True},
        {"zero_hpz_partition_size": 2, "enable_sanity_checks": True},
        {"reduce_scatter": False, **SEVERAL},
        {
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": 0,
            "stage3_max_live_parameters": 0,
            "stage3_max_reuse_distance": 0,
        },
        {"stage3_model_persistence_threshold": 50, "stage3_prefetch_bucket_size": 500},
        {"stage3_use_all_reduce_for_fetch_params": True, "log_trace_cache_warnings": True},
        {"stage3_allgather_sequential": True},
        {"stage3_module_granularity_threshold": 300},
    ),
}
"""Other keys of zero_optimization that a run may set, by stage."""
REDUCING = (
    "all_reduce",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "_reduce_scatter_base",
    "all_to_all_single",
)
"""Collectives of torch that gradients may travel by."""


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to train."""

    stage: int
    precision: str
    accumulation: int
    """Micro-batches of a rank in a step."""
    clipping: float
    offload: str = ""
    as_on_gpus: bool = False
    communication: str = "fp32"
    keys: str = "{}"
    """Further keys of zero_optimization, as JSON."""

    def __str__(self) -> str:
        words = [f"ZeRO {self.stage}", self.precision, f"accumulation {self.accumulation}", f"clipping {self.clipping}"]
        words += [f"offload {self.offload}"] if self.offload else []
        words += ["overlap"] if self.as_on_gpus else []
        words += [f"{self.communication} gradients"] if self.communication != "fp32" else []
        words += [self.keys] if self.keys != "{}" else []
        return " ".join(words)

    @property
    def shows_masters(self) -> bool:
        """Whether DeepSpeed finds a weight's fp32 copy by its name: in another order it takes one for another."""
        return self.stage > 0 and "round_robin_gradients" not in self.keys

    def config(self, data: Path) -> RunConfig:
        """The run of this way."""
        zero = OFFLOADS[self.offload] | (AS_ON_GPUS if self.as_on_gpus else {}) | json.loads(self.keys)
        training = {
            "zero_stage": self.stage,
            "precision": self.precision,
            "gradient_communication": self.communication,
            "sequence_length": 16,
            "global_batch_size": 8,
            "micro_batch_size": 4 // self.accumulation,
            "deepspeed": {"zero_optimization": zero} if zero else {},
        }
        size = {"num_layers": 1, "d_model": 16, "num_heads": 2, "num_kv_heads": 1, "d_ff": 24}
        return tiny_config(data, model=size, training=training, optimizer={"gradient_clipping": self.clipping})


def exact_ways() -> Iterator[Way]:
    """Every combination of stage, precision and offload that the config allows, in one piece and in several, clipped.

    Where gradients are clipped, once as on a CPU and once as on GPUs; other keys of DeepSpeed one by one.
    """
    for stage, precision, (accumulation, clipping) in itertools.product(
        range(4), ("fp32", "bf16"), ((1, 0.0), (4, 0.05))
    ):
        if stage == 0 and precision == "bf16":
            continue
        for offload in (("",), ("", "optimizer"), ("", "optimizer"), OFFLOADS)[stage]:
            for as_on_gpus in (False, True) if stage and clipping else (False,):
                yield Way(stage, precision, accumulation, clipping, offload, as_on_gpus)
    for stage, choices in KEYS.items():
        for keys in choices:
            yield Way(stage, "bf16", 4, 0.05, keys=json.dumps(keys))


def rounded_ways() -> Iterator[Way]:
    """Those that round gradients on their way between the ranks."""
    for stage in (1, 2, 3):
        yield Way(stage, "bf16", 4, 0.05, communication="bf16")


def measured_ways() -> Iterator[Way]:
    """Those of which the bytes that live are counted."""
    for stage, precision in itertools.product(range(4), ("fp32", "bf16")):
        if (stage, precision) != (0, "bf16"):
            yield Way(stage, precision, 4, 0.05)


@dataclasses.dataclass
class Reduced:
    """Notes what tensors of more than a number travel by collectives that sum, while `on`."""

    dtypes: set[str] = dataclasses.field(default_factory=set)
    on: bool = False

    def watch(self) -> "Reduced":
        """Puts itself between torch and whoever calls its collectives."""
        for name in REDUCING:
            setattr(dist, name, self._noting(getattr(dist, name)))
        return self

    def _noting(self, collective):
        @functools.wraps(collective)
        def noting(*args, **kwargs):
            for value in (*args, *kwargs.values()) if self.on else ():
                tensors = value if isinstance(value, list) else [value]
                self.dtypes |= {str(t.dtype) for t in tensors if torch.is_tensor(t) and t.numel() > 1}
            return collective(*args, **kwargs)

        return noting


def train(way: Way, data: Path, world: World, reduced: Reduced) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What a way comes to: loss and gradient norm of each step, and the weights at the end, if they show in fp32."""
    engine = build_engine(way.config(data), VOCAB_SIZE, world)
    lines = []
    reduced.dtypes, reduced.on = set(), True
    with batches_of(way.config(data), world.rank, world.size) as loader:
        for _ in range(STEPS):
            result = train_step(engine, next(loader), LR, world)
            lines.append((result.loss, result.grad_norm))
    reduced.on = False
    weights = {
        name: (safe_get_full_fp32_param(weight) if way.shows_masters else weight).detach().float().clone().contiguous()
        for name, weight in engine.module.model.named_parameters()
    }
    facts = {"lines": lines, "optimizer": engine.holdings().optimizer, "reduced": sorted(reduced.dtypes)}
    engine.close()
    return facts, weights


def held(way: Way, data: Path, world: World) -> dict[str, int]:
    """What the engine says that a rank holds, and the bytes of all tensors that live in the middle of a step."""
    kept = _live()  # what an earlier way has left: none of it counts, whether its tensors go meanwhile or not
    engine = build_engine(way.config(data), VOCAB_SIZE, world)
    with batches_of(way.config(data), world.rank, world.size) as loader:
        train_step(engine, next(loader), LR, world)
        *first, _ = next(loader)
        for batch in first:
            loss, _ = engine(batch, Patterns.of(batch))
            engine.backward(loss)
            engine.step(LR)
        del loss
        live = sum(storage.nbytes() for place, storage in _live().items() if place not in kept)
    holdings = engine.holdings()
    engine.close()
    return dataclasses.asdict(holdings) | {"live": live}


def _live() -> dict[int, torch.UntypedStorage]:
    """The memory of all tensors by its address."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            for tensor in (thing, thing.grad if thing.is_leaf else None, getattr(thing, "grad_accum", None)):
                if tensor is not None and not tensor.is_meta:  # what has no memory has no place either
                    storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
    return storages


def main() -> None:
    """Trains in every way and writes what rank 0 saw."""
    data, folder = Path(sys.argv[1]), Path(sys.argv[2])
    reduced = Reduced().watch()
    world = connect(timedelta(minutes=3))
    ways, weights = {}, {}
    for way in (*exact_ways(), *rounded_ways()):
        ways[str(way)], final = train(way, data, world, reduced)
        weights |= {f"{way}/{name}": weight for name, weight in final.items()}
    sizes = {str(way): held(way, data, world) for way in measured_ways()}
    if world.is_main:
        (folder / "results.json").write_text(json.dumps({"ways": ways, "held": sizes}))
        save_file(weights, folder / "weights.safetensors")
    disconnect(world)


if __name__ == "__main__":
    main()
