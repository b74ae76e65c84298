"""Run by test_sent.py on two ranks: what they send of one micro-batch, counted, beside what the plan says.

usage: torchrun --nproc-per-node=2 -m tests.training.plan.sent_ranks FILE
"""

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from benchmarks.sent import SentBytes
from model.network.transformer import EncoderInput, Transformer
from tests.model.packs import crossing_of, pattern_of, positions_of
from tests.training.runs import tiny_config
from training.context import HeadExchange
from training.distributed import connect, disconnect
from training.megatron import MegatronRanks
from training.plan.activations import Rows
from training.plan.sent import between_layers, between_rows
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
    "encdec": ENCDEC,
    "encdec, layernorm": ENCDEC | {"norm": "layernorm", "bias": True},
    "recomputed": {"activation_checkpointing": "full"},
    "every second recomputed": {"activation_checkpointing": "full", "activation_checkpointing_interval": 2},
    "attention recomputed": {"activation_checkpointing": "attention"},
    "encdec, recomputed": ENCDEC | {"activation_checkpointing": "full"},
    "gated": {"attention_gate": True},
    "further depths": {"multi_token_depths": 2},
    "further depths, recomputed": {"multi_token_depths": 1, "activation_checkpointing": "full"},
    "encdec, attention recomputed": ENCDEC | {"activation_checkpointing": "attention"},
}
WAYS: dict[str, dict[str, Any]] = {
    "layers": {"tensor": 2},
    "layers, whole rows": {"tensor": 2, "sequence_parallel": False},
    "rows": {"context": 2},
}


def main(file: str) -> int:
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
    if world.is_main:
        Path(file).write_text(json.dumps(found))
    disconnect(world)
    return 0


if __name__ == "__main__":
    leave(main(*sys.argv[1:]))
