"""What is private of DeepSpeed about the training state: where an engine of any ZeRO stage keeps it, in one place.

engine -> layout, flat vectors of this rank -> copied out (snapshot) or filled (loading) -> what it computes with
"""

from typing import Any

import torch

from common.mistakes import Mistake
from training.state.boxes import Box
from training.state.index import WEIGHT
from training.state.layout import Layout, replicated, sharded

PREFIX = "model."
"""What `LossModel` puts in front of the names of weights."""


class ZeroState:
    """Weights and moments of this rank, as they lie in DeepSpeed's engine and optimizer."""

    def __init__(self, engine: Any, optimizer: Any, boxes: list[Box]):
        """`boxes` are the parameters in the optimizer's order.

        Raises ValueError for state on NVMe, where nothing but DeepSpeed finds it.
        """
        self._engine, self._optimizer, self._boxes = engine, optimizer, boxes
        self._stage: int = engine.zero_optimization_stage()
        offloaded = engine.zero_offload_param()
        if engine.zero_nvme_offload_optimizer() or (offloaded is not None and offloaded.device == "nvme"):
            raise Mistake(
                "training.deepspeed.zero_optimization: checkpoints hold no state that was offloaded to nvme; "
                "set device to cpu in offload_optimizer and offload_param, or use more ranks"
            )

    def layout(self) -> Layout:
        """How the ranks share the state."""
        if self._stage == 0:
            return replicated(self._boxes)
        named = self._engine._get_zero_param_shapes()
        boxes = [[Box.whole(name.removeprefix(PREFIX), shape) for name, shape in group.items()] for group in named]
        lengths = [vector.numel() for vector in self._flat()]
        gaps = getattr(self._optimizer, "round_robin_bit16_padding", None) if self._stage < 3 else None
        return sharded(self._stage, self._engine.dp_world_size, boxes, lengths, gaps)

    def vectors(self) -> dict[str, list[torch.Tensor]]:
        """Flat fp32 vectors of this rank by kind of state, the live ones; weights alone before the first step."""
        flat = self._flat()
        moments = [kind for kind in self._state_of(flat[0]) if kind != "step"]
        kinds = {kind: [self._state_of(vector)[kind].view(-1) for vector in flat] for kind in moments}
        return {WEIGHT: [vector.detach().view(-1) for vector in flat], **kinds}

    @property
    def updates(self) -> int:
        """Steps that the optimizer has done."""
        return int(self._state_of(self._flat()[0]).get("step", 0))

    def make_moments(self, kinds: list[str], updates: int) -> None:
        """Sets the number of steps, and makes the moments that the optimizer would make at its first step."""
        group = self._inner.param_groups[0]
        for vector in self._flat() if kinds else []:
            device = vector.device if group["fused"] or group["capturable"] else "cpu"
            state = self._inner.state[vector]
            state["step"] = torch.tensor(float(updates), dtype=torch.float32, device=device)
            for kind in kinds:
                if kind not in state:
                    state[kind] = torch.zeros_like(vector, memory_format=torch.preserve_format)

    def before_filling(self) -> None:
        """Makes the live vectors the ones that count."""
        if self._stage == 3:
            self._optimizer.checkpoint_event_prologue()

    def after_filling(self, updates: int) -> None:
        """Takes what the vectors hold over into what the model computes with; every rank must call it."""
        if self._stage == 3:
            for number in range(len(self._flat())):
                self._optimizer._reassign_or_swap_out_partitioned_parameters(number)
            self._optimizer.checkpoint_event_epilogue()
        elif self._stage > 0:
            self._optimizer.update_lp_params()
        self._engine.global_steps = updates
        self._engine.global_samples = updates * self._engine.train_batch_size()

    @property
    def _inner(self) -> torch.optim.Optimizer:
        """The optimizer that we gave to DeepSpeed."""
        return self._optimizer if self._stage == 0 else self._optimizer.optimizer

    def _flat(self) -> list[torch.Tensor]:
        if self._stage == 3:
            return self._optimizer.fp32_partitioned_groups_flat
        return [parameter for group in self._inner.param_groups for parameter in group["params"]]

    def _state_of(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        return self._inner.state.get(vector, {})
