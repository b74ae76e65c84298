"""One rank that holds each step's gradient norm against autograd's: -m tests.training.plain_norm_rank DATASET FILE

FILE gets, by stage, for each step the norm that the engine reports and that of the gradients which autograd gives for
the same weights and micro-batches without any hook of DeepSpeed's, summed in fp32.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch

from tests.training.runs import VOCAB_SIZE, tiny_config
from tests.training.step_ranks import batches_of
from training.distributed import World, connect, disconnect
from training.engine import Engine
from training.setup import build_engine
from training.step import Patterns, count, train_step

STEPS = 4
MODEL = {"d_model": 64, "num_heads": 4, "num_kv_heads": 4, "num_layers": 4, "tie_embeddings": True}
SEVERAL_BUCKETS = {"zero_optimization": {"reduce_bucket_size": 20_000}}


def plain_norm(engine: Engine, batches: list, world: World) -> float:
    """Norm of the gradient of the step that is about to be done."""
    patterns = [Patterns.of(batch) for batch in batches]
    weight = 1 / count(batches, patterns, world).targets
    weights = list(engine.module.parameters())
    total = [torch.zeros(each.shape, device=world.device) for each in weights]
    for batch, pattern in zip(batches, patterns, strict=True):
        loss, _ = engine.module(batch.to(world.device), pattern.to(world.device))
        for into, gradient in zip(total, torch.autograd.grad(loss * weight, weights), strict=True):
            into += gradient
    return float(torch.stack([each.norm() for each in total]).norm())


def main(data: str, output: str) -> None:
    """Trains at each stage that keeps its weights whole."""
    world = connect(timedelta(minutes=3))
    norms: dict[int, list[tuple[float, float]]] = {}
    for stage in (1, 2):
        training = {"precision": "bf16", "zero_stage": stage, "deepspeed": SEVERAL_BUCKETS}
        config = tiny_config(Path(data), model=MODEL, training=training)
        engine = build_engine(config, VOCAB_SIZE, world)
        with batches_of(config, 0, 1) as loader:
            for _ in range(STEPS):
                batches = next(loader)
                expected = plain_norm(engine, batches, world)
                result = train_step(engine, batches, 1e-3, world)
                norms.setdefault(stage, []).append((result.grad_norm, expected))
        engine.close()
    Path(output).write_text(json.dumps(norms))
    disconnect(world)


if __name__ == "__main__":
    main(*sys.argv[1:])
