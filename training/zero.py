"""What is private of DeepSpeed about the training state: where an engine of any ZeRO stage keeps it, in one place.

engine -> layout, flat vectors of this rank -> copied out (snapshot) or filled (loading) -> what it computes with
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from training.state.index import WEIGHT
from training.state.layout import Layout, Share, replicated, sharded

PREFIX = "model."
"""What `LossModel` puts in front of the names of weights."""


MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps; a group of the optimizer that keeps less says so under `moments`."""
FP32 = 4
"""Bytes of a number of the training state, whatever the model computes in."""


@dataclasses.dataclass(frozen=True)
class Holdings:
    """Bytes of the training state that a rank holds from step to step, on its device or offloaded to host or NVMe."""

    optimizer: str
    """Class that keeps it."""
    weights: int
    """What the model computes with: a part at stage 3, which keeps small ones whole and gathers layers as it goes."""
    gradients: int
    """Their sum over the micro-batches of a step."""
    master_weights: int
    """fp32 weights; 0 at stage 0, where the model computes with them."""
    moments: int
    """Of AdamW two, of Muon one."""

    def __str__(self) -> str:
        parts = {name: value for name, value in dataclasses.asdict(self).items() if name != "optimizer"}
        listed = ", ".join(f"{name.replace('_', ' ')} {size / 1e9:.3g} GB" for name, size in parts.items())
        return f"{listed}; {sum(parts.values()) / 1e9:.3g} GB in all ({self.optimizer})"


class ZeroState:
    """Weights and moments of this rank, as they lie in DeepSpeed's engine and optimizer."""

    def __init__(self, engine: Any, optimizer: Any, holdings: Sequence[Mapping[str, Share]], rank: int):
        """`holdings` are what each tensor rank holds of every parameter, in the optimizer's order; `rank` is this one.

        They must be of the same sizes on all of them, so that ZeRO cuts them alike.
        """
        self._engine, self._optimizer, self._shares, self._rank = engine, optimizer, holdings, rank
        self._stage: int = engine.zero_optimization_stage()

    def layouts(self) -> tuple[Layout, ...]:
        """How the ranks of each tensor rank share the state."""
        return tuple(map(self._layout, range(len(self._shares))))

    def layout(self) -> Layout:
        """How the ranks of this rank's tensor rank share the state."""
        return self._layout(self._rank)

    def _layout(self, rank: int) -> Layout:
        shares = self._shares[rank]
        copies = [name for name, share in shares.items() if rank and share[0].is_whole]
        num_kinds = [1 + len(moments) for moments in self._moments()]
        if self._stage == 0:
            return replicated(list(shares.values()), copies, num_kinds)
        named = self._engine._get_zero_param_shapes()
        vectors = [[shares[name.removeprefix(PREFIX)] for name in group] for group in named]
        gaps = getattr(self._optimizer, "round_robin_bit16_padding", None) if self._stage < 3 else None
        return sharded(self._stage, self._engine.dp_world_size, vectors, self._lengths(), gaps, copies, num_kinds)

    def kinds_of(self, number: int) -> list[str]:
        """Kinds of state that a vector has; weights alone before the first step."""
        begun, moments = self._state_of(self._flat()[0]), self._moments()[number]
        return [WEIGHT, *(kind for kind in MOMENTS if kind in begun and kind in moments)]

    @contextlib.contextmanager
    def opened(self, number: int, *, changes: bool = True) -> Iterator[Mapping[str, torch.Tensor]]:
        """See `Opened`: the live vectors, or what NVMe holds of them, which is written back if it `changes`."""
        with self._in_memory(number, changes):
            vector = self._flat()[number]
            state = self._state_of(vector)
            kinds = self.kinds_of(number)
            yield {kind: (vector.detach() if kind == WEIGHT else state[kind]).view(-1) for kind in kinds}

    @contextlib.contextmanager
    def _in_memory(self, number: int, changes: bool) -> Iterator[None]:
        swapped = self._stage == 3 and self._optimizer._swappable_optimizer_subgroup(number)
        if swapped:
            self._optimizer._optimizer_states_and_gradient_swap_in(number)
        try:
            yield
        finally:
            if swapped and changes:
                self._optimizer._optimizer_states_and_gradient_swap_out(number)
            elif swapped:
                self._optimizer._release_swap_buffers(number)

    def replicated(self, parameters: list[Any]) -> Iterator[torch.Tensor]:
        """What every replica holds alike, given the parameters that the model computes with."""
        if self._stage == 0:
            for number in range(len(self._flat())):
                with self.opened(number, changes=False) as vectors:
                    yield from vectors.values()
        for parameter in parameters if self._stage else ():
            if self._stage < 3 or (parameter.ds_persist and parameter.numel() == parameter.ds_numel):
                yield parameter

    def holdings(self, parameters: list[Any]) -> Holdings:
        """Bytes of it, given the parameters that the model computes with."""
        whole = sum(parameter.numel() for parameter in parameters)
        width = parameters[0].element_size()
        weights = width * whole
        if self._stage == 3:
            kept = sum(parameter.ds_numel for parameter in parameters if parameter.ds_persist)
            weights = width * (kept + sum(parameter.ds_tensor.numel() for parameter in parameters))
        own = sum(self._lengths())
        moments = sum(length * len(each) for length, each in zip(self._lengths(), self._moments(), strict=True))
        return Holdings(
            optimizer=type(self._optimizer).__name__,
            weights=weights,
            gradients=FP32 * (own if self._stage > 1 else whole),
            master_weights=FP32 * own if self._stage else 0,
            moments=FP32 * moments,
        )

    @property
    def updates(self) -> int:
        """Steps that the optimizer has done."""
        return int(self._state_of(self._flat()[0]).get("step", 0))

    def make_moments(self, kinds: list[str], updates: int) -> None:
        """Sets the number of steps, and makes the moments that the optimizer would make at its first step."""
        group = self._inner.param_groups[0]
        pairs = zip(self._flat(), self._moments(), strict=True)
        for number, (vector, moments) in enumerate(pairs if kinds else ()):
            with self._in_memory(number, changes=True):
                state = self._inner.state[vector]
                if moments == MOMENTS:
                    device = vector.device if group["fused"] or group["capturable"] else "cpu"
                    state["step"] = torch.tensor(float(updates), dtype=torch.float32, device=device)
                for kind in moments:
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
                with self._in_memory(number, changes=False):
                    self._optimizer._reassign_or_swap_out_partitioned_parameters(number)
            self._optimizer.invalidate_secondary_tensor()  # copies inside a node (hpZ) would be those of before
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

    def _moments(self) -> list[tuple[str, ...]]:
        """What the optimizer keeps of each vector besides the weights."""
        groups = self._inner.param_groups
        if self._stage == 3:
            return [MOMENTS] * len(self._flat())
        return [group.get("moments", MOMENTS) for group in groups for _ in group["params"]]

    def _lengths(self) -> list[int]:
        """Elements of each vector, wherever it lies."""
        if self._stage == 3:
            return list(self._optimizer.fp16_partitioned_groups_flat_numel)
        return [vector.numel() for vector in self._flat()]

    def _state_of(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        return self._inner.state.get(vector, {})
