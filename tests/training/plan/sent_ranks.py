"""Run by test_sent.py on two ranks: what they send of one micro-batch, counted, beside what the plan says.

usage: torchrun --nproc-per-node=2 -m tests.training.plan.sent_ranks FILE DATA
"""

import itertools
import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from benchmarks.sent import SentBytes
from data_pipeline.manifest import Manifest
from model.network.transformer import EncoderInput, Transformer
from tests.model.packs import crossing_of, pattern_of, positions_of
from tests.training.runs import tiny_config
from training.context import HeadExchange
from training.distributed import World, connect, disconnect
from training.megatron import MegatronRanks
from training.plan.activations import Rows
from training.plan.deepspeed_keys import keys_of
from training.plan.memory import count
from training.plan.sent import between_layers, between_rows, gathered_weights, gradients
from training.worker import leave

VOCAB = 64
LENGTHS, READ = [16] * 4, [12] * 4
ENCDEC = {"shape": "encdec"}
MODELS: dict[str, dict[str, Any]] = {
    "causal": {},
    "layernorm": {"norm": "layernorm", "bias": True, "activation": "gelu"},
    "parallel": {"parallel_block": True},
    "embedding norm, learned": {"embedding_norm": True, "positions": "learned", "max_positions": 32},
    "qk norm": {"qk_norm": True},
    "no first norm, biases behind attention": {"embedding_norm": True, "first_attention_norm": False}
    | {"attention_output_bias": True},
    "encdec": ENCDEC,
    "encdec, layernorm": ENCDEC | {"norm": "layernorm", "bias": True},
    "recomputed": {"activation_checkpointing": "full"},
    "every second recomputed": {"activation_checkpointing": "full", "activation_checkpointing_interval": 2},
    "attention recomputed": {"activation_checkpointing": "attention"},
    "encdec, recomputed": ENCDEC | {"activation_checkpointing": "full"},
    "gated": {"attention_gate": True},
    "head transform, a further depth": {"head_transform": True, "multi_token_depths": 1, "head_bias": True}
    | {"norm": "layernorm", "bias": True, "segment_embeddings": 2},
    "sandwich, a further depth, recomputed": {"norm_placement": "sandwich", "multi_token_depths": 1}
    | {"activation_checkpointing": "full"},
    "encdec, post, recomputed": ENCDEC | {"norm_placement": "post", "activation_checkpointing": "full"},
    "encdec, output, attention recomputed": ENCDEC
    | {"norm_placement": "output", "activation_checkpointing": "attention"},
    "further depths": {"multi_token_depths": 2},
    "further depths, recomputed": {"multi_token_depths": 1, "activation_checkpointing": "full"},
    "encdec, attention recomputed": ENCDEC | {"activation_checkpointing": "attention"},
}
WAYS: dict[str, dict[str, Any]] = {
    "layers": {"tensor": 2},
    "layers, whole rows": {"tensor": 2, "sequence_parallel": False},
    "rows": {"context": 2},
}


def between_replicas(world: World, data: Path) -> dict[str, list[float]]:
    """The same of whole steps, of one and of two micro-batches, at every ZeRO stage."""
    from training.engine import private_extensions
    from training.setup import build_engine
    from training.step import train_step
    from training.verify.plain import loader_of

    found, manifest = {}, Manifest.load(data)
    for stage, passes in itertools.product(range(4), (1, 2)):
        sizes = {"num_layers": 3, "d_model": 32, "num_heads": 4, "d_ff": 48}
        keys = {"zero_stage": stage, "micro_batch_size": 1, "global_batch_size": 2 * passes, "sequence_length": 16}
        cut = {"zero_optimization": {"stage3_param_persistence_threshold": 2000} if stage == 3 else {}}
        run = tiny_config(data, model=sizes, training=keys | {"deepspeed": cut})
        with private_extensions():
            engine = build_engine(run, manifest.vocab_size, world)
            batches = next(loader_of(run, manifest, world.rank, world.size))
            train_step(engine, batches, 1e-3, world)
            with SentBytes() as sent:
                train_step(engine, batches, 1e-3, world)
            engine.close()
        read = keys_of(run, 2, "cpu")
        weights = count(run.model, manifest.vocab_size, run.parallel, read.kept_whole)
        planned = gradients(run, weights.all, 2, passes) + gathered_weights(run, weights, read, 2, passes)
        found[f"stage {stage}, {passes} micro-batches"] = [sum(sent.by_members.values()), planned]
    return found


def main(file: str, data: str) -> int:
    """Counts all of them."""
    world = connect(timedelta(minutes=2))
    torch.set_num_threads(1)
    found = {}
    for name, keys in MODELS.items():
        for way, parallel in WAYS.items():
            sizes = {"num_layers": 3, "d_model": 32, "num_heads": 4, "num_kv_heads": 2, "d_ff": 48}
            objective = {"name": "prefix_lm" if keys.get("shape") == "encdec" else "next_token"}
            run = tiny_config("data", model=sizes | keys, parallel=parallel, objective=objective)
            mesh = world.grouped(**run.parallel.axes).mesh
            ranks = MegatronRanks(mesh.tensor, run.parallel.cuts_rows) if mesh.tensor.size > 1 else None
            context = HeadExchange(mesh.context) if mesh.context.size > 1 else None
            model = Transformer(run.model, VOCAB, 0, ranks, context)
            tokens, read = (torch.arange(sum(lengths)) % VOCAB for lengths in (LENGTHS, READ))
            encoder = None
            if model.encoder is not None:
                pattern = pattern_of(READ, READ)
                encoder = EncoderInput(read, positions_of(READ), pattern, crossing_of(LENGTHS, READ))
            with SentBytes() as sent:
                pattern = pattern_of(LENGTHS, [0] * len(LENGTHS))
                model(tokens, positions_of(LENGTHS), pattern, tokens, 0.0, encoder).loss_sum.backward()
            rows = Rows(len(tokens), len(read) if encoder else 0, LENGTHS[0])
            found[f"{name}: {way}"] = [
                sum(sent.by_members.values()),
                between_layers(run, rows) + between_rows(run, rows),
            ]
    found |= between_replicas(world, Path(data))
    if world.is_main:
        Path(file).write_text(json.dumps(found))
    disconnect(world)
    return 0


if __name__ == "__main__":
    leave(main(*sys.argv[1:]))
