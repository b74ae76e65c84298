"""A run made small enough to be trained twice in seconds: everything that decides how it trains stays as it is.

small(config) -> the same shape, objective, blocks, precision, ZeRO stage, DeepSpeed keys ... with narrow layers
write_documents(folder) -> documents of random ids, with every special piece that an objective may ask for
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.flags import packed_flags
from data_pipeline.manifest import Manifest, ShardInfo
from data_pipeline.shards import ShardWriter
from model.config import SLIDING, ModelConfig
from training.config import RunConfig
from training.offload import nvme_paths

STEPS = 3
"""The first shows gradients, the second what leaks from it, the third moments that have seen both."""
LR = 1e-3
"""Constant, so that every step moves the weights."""
VOCAB_SIZE = 509
"""A prime: what is cut evenly by mistake is found out."""
SEQUENCE_LENGTH = 128
WINDOW = 24
"""Tokens; documents have up to 100."""
MOST_ACCUMULATION = 4
SWAPPABLE = 8
"""How many times as wide a model is that is offloaded to NVMe, where DeepSpeed swaps nothing of less than 1 MiB."""
SPECIAL = {"unk": 0, "pad": 3, "mask": 4, "cls": 5, "sep": 6, "R": 7, "S": 8, "X": 9}
FIRST_SENTINEL, NUM_SENTINELS = 10, 64
LEAST_DOCUMENTS = 400


def small(config: RunConfig, data: Path, num_ranks: int) -> RunConfig:
    """The same run of `STEPS` steps at a small size, on a dataset of `write_documents`.

    Kept are all keys of the objective, the optimizer and DeepSpeed, stage, precision, kernel, recomputation and what a
    block is made of; a window is so short that it hides something, and layers of both kinds stay both. A step has as
    many micro-batches, up to 4; heads keep their kind (one, some or all with keys); of the ranks that share layers,
    rows or copies of weights as many are kept as there may be.
    """
    model, training = config.model, config.training
    tensor = math.gcd(config.parallel.tensor, num_ranks)
    context = math.gcd(config.parallel.context, num_ranks // tensor)
    heads = _next_multiple(min(model.num_heads, 4), tensor * context)
    groups = {1: 1, model.num_heads: heads}.get(model.kv_heads, max(heads // 2, 1))
    groups = groups if groups % (tensor * context) == 0 else heads
    layers, width = min(model.num_layers, 2), SWAPPABLE if nvme_paths(config) else 1
    narrow: dict[str, Any] = {
        "num_layers": layers,
        "num_encoder_layers": min(model.encoder_layers, layers) or None,
        "d_model": heads * 16 * width,
        "num_heads": heads,
        "num_kv_heads": groups,
        "head_dim": _head_size(model),
        "d_ff": _next_multiple(80 if width == 1 else 2048, tensor),
        "vocab_size": None if tensor == 1 else _next_multiple(VOCAB_SIZE, tensor),
    }
    if model.sliding_window is not None:
        kinds = list(dict.fromkeys(model.layer_types or [SLIDING]))
        narrow["sliding_window"] = min(model.sliding_window, WINDOW)
        narrow["layer_types"] = kinds if len(kinds) <= layers else [SLIDING]
    narrow["no_rope_layer_interval"] = 2 if model.no_rope_layer_interval is not None and layers > 1 else None
    narrow["multi_token_depths"] = min(model.multi_token_depths, 2)
    narrow["max_positions"] = None if model.max_positions is None else 4 * SEQUENCE_LENGTH
    per_pass = training.micro_batch_size * training.num_processes // config.parallel.num_sharing
    per_rank = training.global_batch_size // max(per_pass, 1)
    accumulation = min(max(per_rank, 1), MOST_ACCUMULATION)
    samples = _next_multiple(2, tensor * context)  # however long rows are, they can be cut
    short = {
        "steps": STEPS,
        "sequence_length": SEQUENCE_LENGTH,
        "target_length": None,
        "global_batch_size": samples * num_ranks // (tensor * context) * accumulation,
        "micro_batch_size": samples,
        "num_processes": num_ranks,
        "initial_weights": None,
        "profile": None,
        "peak_tflops": 1.0,
    }
    tree = config.model_dump(mode="json")
    tree["data"] = {"path": str(data)}
    tree["schedule"] = {"name": "constant"}
    tree["model"] |= narrow
    tree["training"] |= short
    tree["parallel"] |= {"tensor": tensor, "context": context} | ({"sequence_parallel": None} if tensor == 1 else {})
    zero = tree["training"]["deepspeed"].get("zero_optimization", {})
    if isinstance(neighbours := zero.get("zero_hpz_partition_size"), int):
        zero["zero_hpz_partition_size"] = math.gcd(neighbours, num_ranks)
    return RunConfig.model_validate(tree)


def _next_multiple(number: int, of: int) -> int:
    return -(-number // of) * of


def _head_size(model: ModelConfig) -> int:
    """The least multiple of 16 of which the same share can be rotated."""
    for size in range(16, model.head_size, 16):
        rotated = int(size * model.rope_fraction)
        if model.positions != "rope" or (rotated >= 2 and rotated % 2 == 0):
            return size
    return model.head_size


def write_documents(folder: Path, global_batch: int = 1) -> Manifest:
    """A dataset that small runs of so many samples a step train on."""
    rng = np.random.default_rng(0)
    # half of a row's length each, so four to a sample are enough with room for what objectives leave out
    lengths = rng.integers(8, 100, max(LEAST_DOCUMENTS, 4 * global_batch))
    tokens = rng.integers(FIRST_SENTINEL + NUM_SENTINELS, VOCAB_SIZE, lengths.sum())
    ends = np.cumsum(lengths)
    tokens[ends - lengths], tokens[ends - 1] = 1, 2
    with ShardWriter(folder / "train-00000", VOCAB_SIZE) as shard:
        shard.add(tokens, lengths)
    counts = {"num_documents": shard.num_documents, "num_tokens": shard.num_tokens, "source_bytes": shard.num_tokens}
    manifest = Manifest(
        tokenizer_fingerprint="random",
        config_fingerprint="random",
        vocab_size=VOCAB_SIZE,
        dtype=shard.dtype.name,
        bos_id=1,
        eos_id=2,
        special_ids=SPECIAL,
        first_sentinel_id=FIRST_SENTINEL,
        num_sentinels=NUM_SENTINELS,
        word_starts=packed_flags(rng.random(VOCAB_SIZE) < 0.5),
        word_ends=packed_flags(np.zeros(VOCAB_SIZE, bool)),
        splits={"train": [ShardInfo(name="train-00000", checksums=shard.checksums, **counts)]},  # type: ignore[dict-item]
    )
    manifest.save(folder)
    return manifest
