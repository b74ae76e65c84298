"""Run on ranks by test_start.py: starts models in all the ways a run may and tells what the ranks hold.

usage: python -m tests.training.start_ranks DATASET FOLDER
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import yaml

from model.exchange.importing import MODEL_FILE
from model.exchange.tensor_files import TensorWriter
from model.network.layers import Draw
from model.network.transformer import Transformer
from tests.memory import peak_memory
from tests.training.runs import VOCAB_SIZE, tiny_config
from training.config import RunConfig
from training.distributed import World, connect, disconnect
from training.engine import Engine
from training.setup import build_engine
from training.zero import PREFIX

SHAPES = {
    "causal": {"model": {"qk_norm": True}},
    "prefix": {
        "model": {
            "positions": "learned",
            "max_positions": 32,
            "norm": "layernorm",
            "bias": True,
            "embedding_norm": True,
        },
        "objective": {"name": "prefix_lm"},
    },
    "encoder": {
        "model": {"positions": "alibi", "qkv_bias": True, "attention_output_bias": True},
        "objective": {"name": "masked_lm"},
    },
    "encdec": {
        "model": {"positions": "t5_bias", "num_encoder_layers": 1, "activation_checkpointing": True},
        "objective": {"name": "prefix_lm"},
    },
}
"""What a run of each shape is made of, so that every kind of weight is made once."""
IMPORTED_SEED = 99
"""Seed of the weights that runs start from which import some."""
LARGE = {"num_layers": 12, "d_model": 512, "num_heads": 8, "num_kv_heads": 8, "d_ff": 2048}
"""A model whose weights are large beside what its making takes for itself."""

drawn = 0
"""Values drawn in this process so far."""


def count_draws() -> None:
    """Counts from now on."""
    fill = Draw.fill

    def counting(self: Draw, out: torch.Tensor, start: int = 0) -> None:
        global drawn
        drawn += out.numel()
        fill(self, out, start)

    Draw.fill = counting  # type: ignore[method-assign]


WAYS = [(0, "fp32"), (1, "bf16"), (3, "bf16"), (1, "fp32"), (2, "fp32"), (2, "bf16"), (3, "fp32")]
"""Stages and precisions; the first three for every shape, all of them for two."""


def configs_of(data: Path, shape: str) -> list[tuple[str, RunConfig]]:
    """Runs of a shape by stage and precision, embeddings tied at every other one."""
    parts = SHAPES[shape]
    found = []
    for number, (stage, precision) in enumerate(WAYS if shape in ("causal", "encdec") else WAYS[:3]):
        config = tiny_config(
            data,
            model={"shape": shape, "tie_embeddings": number % 2 == 1, **parts["model"]},
            training={"zero_stage": stage, "precision": precision},
            **({"objective": parts["objective"]} if "objective" in parts else {}),
        )
        found.append((f"{shape} ZeRO {stage} {precision}", config))
    return found


def rearranged(data: Path) -> list[tuple[str, RunConfig]]:
    """Runs whose DeepSpeed keys put weights elsewhere or in another order."""
    host = {"device": "cpu"}
    ways: list[tuple[int, dict]] = [
        (1, {"offload_optimizer": host}),
        (2, {"round_robin_gradients": True}),
        (3, {"offload_optimizer": host, "offload_param": host, "sub_group_size": 5000}),
    ]
    found = []
    for stage, zero in ways:
        precision = "fp32" if "round_robin_gradients" in zero else "bf16"
        training = {"zero_stage": stage, "precision": precision, "deepspeed": {"zero_optimization": zero}}
        found.append((f"ZeRO {stage} {', '.join(zero)}", tiny_config(data, training=training)))
    return found


def imported(data: Path, folder: Path, world: World) -> list[tuple[str, RunConfig]]:
    """Runs that start from imported weights, those of seed 99, at every way of sharing."""
    found = []
    model = {"shape": "encdec", "positions": "t5_bias", "num_encoder_layers": 1, "tie_embeddings": True}
    for stage, precision in WAYS[:5]:
        config = tiny_config(
            data,
            model=model,
            objective={"name": "prefix_lm"},
            training={"zero_stage": stage, "precision": precision, "initial_weights": str(folder)},
        )
        found.append((f"imported ZeRO {stage} {precision}", config))
    if world.is_main:
        folder.mkdir()
        weights = dict(Transformer(config.model, VOCAB_SIZE, IMPORTED_SEED).named_parameters())
        writer = TensorWriter(folder, {name: tuple(w.shape) for name, w in weights.items()}, torch.float32, 1 << 14)
        for name, weight in weights.items():
            writer.write(name, weight)
        keys = config.model.model_dump(mode="json", exclude_defaults=True) | {"vocab_size": VOCAB_SIZE}
        (folder / MODEL_FILE).write_text(yaml.safe_dump({"model": keys}))
    world.max([0.0])
    return found


def differing(engine: Engine, config: RunConfig) -> list[str]:
    """Weights that are not those of a plain model: the fp32 ones bit for bit, those to compute with their rounding.

    Where gradients go round robin, DeepSpeed looks masters up in the wrong places; there those to compute with, which
    are made of them, must do.
    """
    from deepspeed.runtime.zero import GatheredParameters  # after training.engine, which sets DeepSpeed up
    from deepspeed.utils import safe_get_full_fp32_param

    seed = IMPORTED_SEED if config.training.initial_weights else config.seed
    plain = dict(Transformer(config.model, VOCAB_SIZE, seed).named_parameters())
    wrong = []
    is_alone = config.training.zero_stage == 0 or "round_robin_gradients" in str(config.training.deepspeed)
    for name, parameter in engine.module.named_parameters():
        expected = plain.pop(name.removeprefix(PREFIX)).detach()
        master = expected if is_alone else safe_get_full_fp32_param(parameter)
        with GatheredParameters([parameter], enabled=config.training.zero_stage == 3):
            here = parameter.detach().clone()
        if not torch.equal(master.detach().view(-1), expected.view(-1)):
            wrong.append(f"{name}: master")
        if here.dtype != getattr(torch, {"fp32": "float32", "bf16": "bfloat16"}[config.training.precision]):
            wrong.append(f"{name}: {here.dtype}")
        if not torch.equal(here, expected.to(here.dtype)):
            wrong.append(name)
    return wrong + [f"{name}: missing" for name in plain]


def large(data: Path, stage: int, precision: str) -> RunConfig:
    """A run of the large model."""
    return tiny_config(data, model=LARGE, training={"zero_stage": stage, "precision": precision})


def measure(config: RunConfig, world: World, resuming: bool) -> dict:
    """Bytes that a start takes at its peak in each rank, and values drawn there."""
    global drawn
    world.max([0.0])
    drawn = 0
    with peak_memory() as peak:
        engine = build_engine(config, VOCAB_SIZE, world, resuming=resuming)
    shapes = engine.module.named_parameters()
    numel = sum(getattr(weight, "ds_numel", weight.numel()) for _, weight in shapes)
    engine.close()
    return {"peak": world.gather_to_main(peak.growth), "drawn": world.gather_to_main(drawn), "numel": numel}


def main() -> None:
    """Runs every case and writes what rank 0 saw."""
    data, folder = Path(sys.argv[1]), Path(sys.argv[2])
    world = connect(timedelta(minutes=3))
    wrong = {}
    cases = [case for shape in SHAPES for case in configs_of(data, shape)] + rearranged(data)
    for name, config in cases + imported(data, folder / f"imported-{world.size}", world):
        engine = build_engine(config, VOCAB_SIZE, world)
        wrong[name] = differing(engine, config)
        engine.close()
    count_draws()
    starts = {}
    for stage, precision in ((0, "fp32"), (1, "fp32"), (2, "bf16"), (3, "fp32"), (3, "bf16")):
        for resuming in (False, True):
            name = f"ZeRO {stage} {precision} {'resumed' if resuming else 'fresh'}"
            starts[name] = measure(large(data, stage, precision), world, resuming)
    if world.is_main:
        (folder / f"start-{world.size}.json").write_text(json.dumps({"wrong": wrong, "starts": starts}))
    disconnect(world)


if __name__ == "__main__":
    main()
