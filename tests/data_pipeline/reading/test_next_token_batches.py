"""Batches of next_token for a causal model are, bit for bit, those of the release that knew no other objective."""

import hashlib

from data_pipeline.config import ObjectiveConfig
from tests.data_pipeline.opened import evaluation, loader

DIGESTS = {
    "training": "5305d7e4c2d0bd1e44b0b1c2e2fe0f1f022d6715e9ae5c5a823fd10b7d4fff58",
    "in order": "5558e5d31ebb7bd4a84c7cab4779d4fe6569466d964482783965763fe35b8f2c",
    "evaluation": "d886c062d54cc722a1429f8008dc29680e982c1be19c8f8b550fa56bec7aeb98",
}
COUNTS = ("num_targets", "num_padding", "num_cut", "num_vanished")
COMMON = {"objective": ObjectiveConfig(), "shape": "causal", "sequence_length": 32, "rank": 1, "world_size": 2}


def digest(batches):
    """SHA-256 of some batches: what they hold, and how the documents in them lie."""
    result = hashlib.sha256()
    for batch in batches:
        used = len(batch.tokens) - batch.num_padding
        documents = batch.num_documents
        tensors = {
            "tokens": batch.tokens,
            "labels": batch.labels,
            "positions": batch.positions[:used],
            "cu_seqlens": batch.cu_seqlens[: documents + 1],
            "prefix_lengths": batch.prefix_lengths[:documents],
        }
        for name, tensor in tensors.items():
            result.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
        result.update(repr([getattr(batch, name) for name in COUNTS]).encode())
    return result.hexdigest()


def training_batches(path, **changes):
    """Two epochs and more of the second rank's micro-batches."""
    options = {"micro_batch_size": 2, "global_batch_size": 8, "seed": 11, "pad_id": 3, **COMMON, **changes}
    with loader(path, **options) as batches:
        return [micro for _ in range(90) for micro in next(batches)]


def test_training_batches_are_what_they_were(varied_dataset):
    assert digest(training_batches(varied_dataset)) == DIGESTS["training"]
    assert digest(training_batches(varied_dataset, shuffle=False, sequence_length=100)) == DIGESTS["in order"]


def test_evaluation_batches_are_what_they_were(varied_dataset):
    batches = evaluation(varied_dataset, micro_batch_size=3, pad_id=3, **COMMON)
    assert digest(batches) == DIGESTS["evaluation"]
