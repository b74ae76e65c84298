"""The loss of a batch that never changes: kept with each checkpoint, it must come back to the last bit after loading.

    save: weights -> forward pass -> digest -> state.json      load: weights -> forward pass -> digest, the same?

Checksums see what a disk did to a checkpoint. This sees what memory or the way into an engine did.
"""

import json
import operator
from typing import Any

import torch
import xxhash

from data_pipeline.reading.packing import PackedBatch
from training.engine import Engine
from training.hardware import execution_facts
from training.parts.part import Run
from training.state.identity import CUT
from training.step import Patterns


class Spoilt(RuntimeError):
    """What was loaded computes something else than what was saved."""


class Probe:
    """Computes the loss of one batch of each rank, and changes nothing."""

    def __init__(self, run: Run, engine: Engine, batch: PackedBatch, mix: list[Any] | None = None):
        """`mix` is what the batch was drawn from, where that is a mix: a probe of another one says nothing."""
        self._engine, self._world = engine, run.world
        self._batch = batch.to(run.world.device)
        self._pattern = Patterns.of(batch).to(run.world.device)
        cut = {key: getattr(run.identity, key) for key in CUT}
        facts = [execution_facts(run.config, run.world), cut, len(batch.tokens), torch.__version__]
        facts += [] if mix is None else [mix]
        self._ways = xxhash.xxh3_64_hexdigest(json.dumps(facts, sort_keys=True).encode())

    def __call__(self) -> str:
        """What the bits depend on besides weights, and their digest over all ranks, which call it together."""
        module = self._engine.module
        module.eval()
        with torch.no_grad():
            loss = float(self._engine(self._batch, self._pattern)[1][0])
        module.train()
        own = xxhash.xxh3_64_intdigest(f"{self._world.rank} {loss.hex()}".encode())
        return f"{self._ways}:{self._world.plane.join(own, operator.xor):016x}"

    def check(self, saved: str, where: str) -> None:
        """Raises Spoilt on every rank when the loss is not what it was when the checkpoint was `saved`.

        A checkpoint of another layout, device or version of torch, or without a probe, says nothing of it.
        """
        if saved.partition(":")[0] == self._ways and (now := self()) != saved:
            raise Spoilt(
                f"{where}: its weights give another loss than when they were saved (digest {now.partition(':')[2]}, "
                f"it was {saved.partition(':')[2]}): memory of a node spoilt them before or since; restore an older one"
            )
