"""Run on two ranks by test_step.py: trains with our engine in all the ways the test compares with a plain loop.

usage: python -m tests.training.step_ranks DATASET OUTPUT.json
"""

import dataclasses
import json
import sys
from datetime import timedelta
from pathlib import Path

import torch

from data_pipeline.manifest import Manifest
from data_pipeline.reading.batches import Reading
from data_pipeline.reading.loader import Loader
from data_pipeline.reading.packing import PackedBatch
from tests.training.runs import VOCAB_SIZE, tiny_config
from training.config import RunConfig
from training.distributed import World, connect, disconnect
from training.engine import Engine
from training.schedule import learning_rate
from training.setup import build_engine
from training.step import train_step

STEPS = 20
EVEN_STAGES, LOPSIDED_STAGES = (1, 3), (0, 2)
"""Twenty steps of each stage; a few steps of each in every precision are test_parity's."""
SHAPES = {
    "encdec": {
        "model": {"positions": "t5_bias", "num_encoder_layers": 1, "activation": "geglu", "tie_embeddings": True}
        | {"activation_checkpointing": True, "embedding_norm": True, "first_attention_norm": False}
        | {"attention_output_bias": True},
        "objective": {"name": "prefix_lm"},
        "training": {"zero_stage": 3, "z_loss": 1e-3},
    },
    "prefix": {
        "model": {"positions": "learned", "max_positions": 32, "norm": "layernorm", "bias": True, "activation": "gelu"}
        | {"parallel_block": True, "embedding_norm": True},
        "objective": {"name": "mixture", "parts": [{"name": "prefix_lm"}, {"name": "next_token"}]},
        "training": {"zero_stage": 2, "z_loss": 1e-3},
    },
    "encoder": {
        "model": {"positions": "alibi", "qk_norm": True, "qkv_bias": True},
        "objective": {"name": "masked_lm"},
        "training": {"zero_stage": 3, "z_loss": 1e-3},
    },
}
"""What a run of each other shape is made of, so that every kind of block is trained sharded once."""


def config_of(data: Path, shape: str, **training) -> RunConfig:
    """A run of a shape."""
    parts = SHAPES[shape]
    return tiny_config(
        data,
        model={"shape": shape, **parts["model"]},
        objective=parts["objective"],
        training=parts["training"] | training,
    )


def batches_of(config: RunConfig, rank: int, world_size: int) -> Loader:
    """Loader of one rank."""
    training = config.training
    reading = Reading(
        config.data.path,
        Manifest.load(config.data.path),
        objective=config.objective,
        shape=config.model.shape,
        sequence_length=training.sequence_length,
        micro_batch_size=training.micro_batch_size,
        rank=rank,
        world_size=world_size,
        seed=config.seed,
        pad_id=2,
    )
    return Loader(reading, global_batch_size=training.global_batch_size)


def without_targets(batch: PackedBatch) -> PackedBatch:
    """The batch with nothing to predict."""
    return dataclasses.replace(batch, labels=torch.full_like(batch.labels, -100), num_targets=0)


def is_silent(step: int, rank: int) -> bool:
    """Whether a rank gets no target in a step of the lopsided run."""
    return step % 2 == rank


def train(config: RunConfig, world: World, lopsided: bool, steps: int = STEPS) -> list[dict]:
    """Loss, norm and this rank's targets of each step."""
    engine = build_engine(config, VOCAB_SIZE, world)
    loader = batches_of(config, world.rank, world.size)
    lines = []
    for step in range(1, steps + 1):
        batches = next(loader)
        if lopsided and is_silent(step, world.rank):
            batches = [without_targets(batch) for batch in batches]
        lr = learning_rate(config.schedule, config.optimizer.lr, step, STEPS)
        result = train_step(engine, batches, lr, world)
        own = world.gather_to_main(sum(batch.num_targets for batch in batches))
        lines.append({"loss": result.loss, "grad_norm": result.grad_norm, "targets": own})
    loader.close()
    engine.close()
    return lines


def refuse_nan(config: RunConfig, world: World) -> dict:
    """What is said about a loss that is no number, and whether a weight changed."""
    engine = build_engine(config, VOCAB_SIZE, world)
    with torch.no_grad():
        if world.rank == 1:
            engine.module.model.head.weight[7, 7] = float("nan")
    before = weights(engine)
    with batches_of(config, world.rank, world.size) as loader:
        try:
            train_step(engine, next(loader), 1e-3, world, where="step 1 (samples 0 to 15)")
            message = ""
        except ValueError as error:
            message = str(error)
    engine.close()
    return {"message": message, "unchanged": torch.equal(before.nan_to_num(), weights(engine).nan_to_num())}


def weights(engine: Engine) -> torch.Tensor:
    """All weights in one row."""
    return torch.cat([weight.detach().flatten().clone() for weight in engine.module.parameters()])


def main() -> None:
    """Runs every case and writes what rank 0 saw."""
    data, output = Path(sys.argv[1]), Path(sys.argv[2])
    world = connect(timedelta(minutes=3))
    results = {}
    for stage in EVEN_STAGES + LOPSIDED_STAGES:
        config = tiny_config(data, training={"zero_stage": stage, "z_loss": 1e-3})
        results[f"zero{stage}"] = train(config, world, lopsided=stage in LOPSIDED_STAGES)
    results["tied"] = train(tiny_config(data, model={"tie_embeddings": True}, training={"zero_stage": 3}), world, False)
    leaner = tiny_config(data, model={"activation_checkpointing": True}, training={"zero_stage": 3, "z_loss": 1e-3})
    results["recomputed"] = train(leaner, world, lopsided=False)
    for shape in SHAPES:
        results[shape] = train(config_of(data, shape), world, lopsided=False)
        results[f"{shape} bf16"] = train(config_of(data, shape, precision="bf16"), world, lopsided=False)
    results["nan"] = refuse_nan(tiny_config(data), world)
    if world.is_main:
        output.write_text(json.dumps(results))
    disconnect(world)


if __name__ == "__main__":
    main()
