"""The combinations that `verify --grid` goes through: every way to cut, round, add up and offload, for every shape."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

from training.config import RunConfig

SHAPES: dict[str, dict[str, Any]] = {
    "causal": {"objective": {"name": "next_token"}, "model": {"num_kv_heads": 2, "tie_embeddings": True}},
    "prefix": {
        "objective": {"name": "ul2"},
        "model": {"positions": "learned", "max_positions": 512, "norm": "layernorm", "bias": True}
        | {"activation": "gelu", "parallel_block": True, "embedding_norm": True},
    },
    "encdec": {
        "objective": {"name": "span_corruption"},
        "model": {"positions": "t5_bias", "activation": "geglu", "tie_embeddings": True},
    },
    "encoder": {
        "objective": {"name": "masked_lm"},
        "model": {"positions": "alibi", "qk_norm": True, "qkv_bias": True, "attention_output_bias": True}
        | {"embedding_norm": True, "first_attention_norm": False},
    },
}
"""Of each shape an objective and blocks, so that every kind of block is there once."""
BLOCKS = {"sliding_window": 1024, "layer_types": ["sliding_attention", "full_attention"], "attention_gate": True}
"""Switches of blocks that any shape has."""
ROTARY = {"positions": "rope", "max_positions": None, "no_rope_layer_interval": 2}
"""Switches that only rotary positions have."""
PUBLIC = {
    "norm_placement": "post",
    "first_attention_norm": True,
    "parallel_block": False,
    "segment_embeddings": 2,
    "embedding_scale": 8.0,
    "head_transform": True,
    "head_bias": True,
    "logit_softcap": 30.0,
    "attention_softcap": 2.0,
}
"""Switches of public models that any shape has."""
TABLES = {"positions": "t5_bias", "max_positions": None, "t5_bias_per_layer": True}
"""Biases by distance in every layer, which any shape may have."""
FURTHER = {"multi_token_depths": 2}
"""What every decoder has."""
RECOMPUTATIONS = ({"activation_checkpointing": "full"}, {"activation_checkpointing": "attention"})
ON_CPU = {"device": "cpu"}
OFFLOADS: dict[str, dict[str, Any]] = {
    "": {},
    "optimizer": {"offload_optimizer": ON_CPU},
    "parameters": {"offload_param": ON_CPU},
    "both": {"offload_optimizer": ON_CPU, "offload_param": ON_CPU},
}
"""Keys of zero_optimization by what they keep in host memory."""
MUON = {"name": "muon"}
SHARING = 2
"""Ranks that share a layer, where some do, or a row."""
AS_ON_GPUS = {"overlap_comm": True, "contiguous_gradients": True, "reduce_bucket_size": 3000}
"""How gradients are reduced on GPUs, with buckets so small that there are several and one weight fits into none."""


def grid(num_ranks: int) -> Iterator[tuple[str, RunConfig]]:
    """Names and configs, before they are made small."""
    for shape, stage, precision in itertools.product(SHAPES, range(4), ("fp32", "bf16")):
        if (stage, precision) == (0, "bf16"):
            continue
        for accumulation, clipping in ((1, 0.0), (4, 0.05)) if shape == "causal" else ((4, 0.05),):
            for offload in ("", *_offloads(stage)) if shape == "causal" else ("",):
                how = {"zero_stage": stage, "precision": precision, "deepspeed": _zero(OFFLOADS[offload])}
                words = f"{offload} offloaded" if offload else ""
                yield _case(num_ranks, shape, how, accumulation, clipping, words)
    for stage in (1, 2, 3):
        how = {"zero_stage": stage, "precision": "bf16", "deepspeed": _zero(AS_ON_GPUS)}
        yield _case(num_ranks, "causal", how, 4, 0.05, "overlapped buckets")
        how = {"zero_stage": stage, "precision": "bf16", "gradient_communication": "bf16"}
        yield _case(num_ranks, "causal", how, 4, 0.05, "bf16 gradients")
        for recomputed in RECOMPUTATIONS:
            how = {"zero_stage": stage, "precision": "fp32"}
            words = f"{recomputed['activation_checkpointing']} recomputed"
            yield _case(num_ranks, "encdec", how, 4, 0.05, words, recomputed)
    yield from _muon(num_ranks)
    for stage, precision in itertools.product((1, 2, 3), ("fp32", "bf16")):
        how = {"zero_stage": stage, "precision": precision, "multi_token_weight": 0.5}
        yield _case(num_ranks, "prefix" if stage == 2 else "causal", how, 4, 0.05, "two tokens on", FURTHER)
    for shape in SHAPES:
        how = {"zero_stage": 3, "precision": "fp32"}
        yield _case(num_ranks, shape, how, 4, 0.05, "blocks of today", BLOCKS)
        yield _case(num_ranks, shape, how, 4, 0.05, "blocks of today, rope in every second layer", BLOCKS | ROTARY)
        yield _case(num_ranks, shape, how, 4, 0.05, "ends of public models", PUBLIC)
        yield _case(num_ranks, shape, how, 4, 0.05, "biases of each layer", TABLES)
    if num_ranks % SHARING == 0:
        yield from _shared_layers(num_ranks)
        yield from _shared_rows(num_ranks)
        for shape, axis in itertools.product(("causal", "prefix", "encdec"), ("tensor", "context")):
            yield _sharing(num_ranks, shape, 3, f"two tokens on, 2 to a {axis} rank", {axis: SHARING}, FURTHER)
        for shape, axis in itertools.product(SHAPES, ("tensor", "context")):
            yield _sharing(num_ranks, shape, 2, f"blocks of today, 2 to a {axis} rank", {axis: SHARING}, BLOCKS)
            yield _sharing(num_ranks, shape, 2, f"ends of public models, 2 to a {axis} rank", {axis: SHARING}, PUBLIC)
        for axis in ("tensor", "context"):
            yield _sharing(num_ranks, "encdec", 3, f"biases of each layer, 2 to a {axis} rank", {axis: SHARING}, TABLES)


def _muon(num_ranks: int) -> Iterator[tuple[str, RunConfig]]:
    """Muon: every shape, every stage that keeps matrices, both precisions, and layers and rows that ranks share."""
    for shape, stage in itertools.product(SHAPES, (0, 1, 2)):
        yield _sharing(num_ranks, shape, stage, "muon", {}, optimizer=MUON)
        if stage and shape == "causal":
            yield _sharing(num_ranks, shape, stage, "muon", {}, optimizer=MUON, precision="bf16")
        if num_ranks % SHARING == 0:
            shared = {"tensor": SHARING}
            yield _sharing(num_ranks, shape, stage, "muon, 2 ranks to a layer", shared, optimizer=MUON)
    if num_ranks % SHARING == 0:
        shared = {"context": SHARING}
        yield _sharing(num_ranks, "encdec", 2, "muon, 2 ranks to a row", shared, optimizer=MUON)
        words, shared = "muon, 2 ranks to a layer", {"tensor": SHARING}
        yield _sharing(num_ranks, "causal", 1, words, shared, optimizer=MUON, precision="bf16")


def _shared_layers(num_ranks: int) -> Iterator[tuple[str, RunConfig]]:
    """Two ranks to a layer: every shape at every stage, and for one shape what else changes how ranks talk."""
    words, shared = "2 ranks to a layer", {"tensor": SHARING}
    for shape, stage in itertools.product(SHAPES, range(4)):
        yield _sharing(num_ranks, shape, stage, words, shared)
        if stage == 1:
            yield _sharing(num_ranks, shape, stage, f"{words}, whole rows", shared | {"sequence_parallel": False})
            yield from _recomputed(num_ranks, shape, stage, words, shared)
    for stage in (1, 2, 3):
        yield _sharing(num_ranks, "causal", stage, words, shared, precision="bf16")
        offloaded = {"deepspeed": _zero(OFFLOADS["optimizer"])}
        yield _sharing(num_ranks, "causal", stage, f"{words}, optimizer offloaded", shared, **offloaded)


def _shared_rows(num_ranks: int) -> Iterator[tuple[str, RunConfig]]:
    """Two ranks to a row; with four ranks, two to a layer as well."""
    words, shared = "2 ranks to a row", {"context": SHARING}
    both, heads = shared | {"tensor": SHARING}, {"num_kv_heads": SHARING**2}
    for shape, stage in itertools.product(SHAPES, range(4)):
        yield _sharing(num_ranks, shape, stage, words, shared)
        if num_ranks % SHARING**2 == 0:
            yield _sharing(num_ranks, shape, stage, "2 to a row, 2 to a layer", both, heads)
    for stage in (1, 3):
        yield _sharing(num_ranks, "encdec", stage, words, shared, precision="bf16")
        yield from _recomputed(num_ranks, "encdec", stage, words, shared)


def _recomputed(
    num_ranks: int, shape: str, stage: int, words: str, parallel: dict[str, Any]
) -> Iterator[tuple[str, RunConfig]]:
    for how in RECOMPUTATIONS:
        yield _sharing(num_ranks, shape, stage, f"{words}, {how['activation_checkpointing']} recomputed", parallel, how)


def _sharing(
    num_ranks: int,
    shape: str,
    stage: int,
    words: str,
    parallel: dict[str, Any],
    model: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
    **training: Any,
) -> tuple[str, RunConfig]:
    how = {"zero_stage": stage, "precision": "fp32"} | training
    return _case(num_ranks, shape, how, 4, 0.05, words, model, parallel, optimizer)


def _offloads(stage: int) -> tuple[str, ...]:
    return {0: (), 1: ("optimizer",), 2: ("optimizer",)}.get(stage, tuple(OFFLOADS)[1:])


def _zero(keys: dict[str, Any]) -> dict[str, Any]:
    return {"zero_optimization": keys} if keys else {}


def _case(
    num_ranks: int,
    shape: str,
    how: dict[str, Any],
    accumulation: int,
    clipping: float,
    words: str,
    model: dict[str, Any] | None = None,
    parallel: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
) -> tuple[str, RunConfig]:
    parts = SHAPES[shape]
    sizes = {"shape": shape, "num_layers": 2, "d_model": 64, "num_heads": 4, "d_ff": 80}
    data_ranks = num_ranks // math.prod((parallel or {}).get(axis, 1) for axis in ("tensor", "context"))
    batch = {"global_batch_size": 2 * data_ranks * accumulation, "micro_batch_size": 2, "num_processes": num_ranks}
    name = [shape, f"ZeRO {how['zero_stage']}", how["precision"], f"accumulation {accumulation}"]
    name += [f"clipping {clipping}"] if clipping else []
    tree = {
        "name": "grid",
        "tokenizer": {"path": "none"},
        "data": {"path": "none"},
        "objective": parts["objective"],
        "model": sizes | parts["model"] | (model or {}),
        "optimizer": {"gradient_clipping": clipping} | (optimizer or {}),
        "parallel": parallel or {},
        "training": {"steps": 1, "sequence_length": 128, **batch, **how},
    }
    return ", ".join([*name, *([words] if words else [])]), RunConfig.model_validate(tree)
