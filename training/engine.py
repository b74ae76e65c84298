"""The edge to DeepSpeed: the one module that imports it. Everything else talks to `Engine`.

    RunConfig -> deepspeed_config -> deepspeed.initialize -> Engine(forward, backward, step, save, load)

Importing this module imports DeepSpeed (seconds); nothing at start-up of the command line does.
"""

import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from common.files import HashingWriter
from training.config import RunConfig
from training.deepspeed_config import accumulation_steps, deepspeed_config
from training.distributed import World
from training.optimizer import build_optimizer
from training.reshard import KEYS, WEIGHT, Layout, Parameter, SavedState, gather, sharded, whole_parameters

if not torch.cuda.is_available():
    os.environ["DS_ACCELERATOR"] = "cpu"
# A folder of its own: a lock left in a shared one by a killed process would hang every later start.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", f"{tempfile.gettempdir()}/shardline-extensions-{os.getpid()}")

import deepspeed
from deepspeed.ops import __compatible_ops__
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from common.mistakes import Mistake

# The shared-memory communicator takes a minute to compile and serves inference only.
__compatible_ops__["deepspeed_shm_comm"] = False
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
# DeepSpeed calls torch by names that torch is about to give up; nothing a user could do about it.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")

SHARDS = "deepspeed"
"""Folder inside a checkpoint that holds DeepSpeed's files."""


def check_zero_section(zero: dict[str, Any]) -> None:
    """ValueError for keys or values of `zero_optimization` that DeepSpeed does not take."""
    try:
        DeepSpeedZeroConfig(**zero)
    except (ValidationError, ValueError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(["zero_optimization", *map(str, first["loc"])])
        raise Mistake(f"training.deepspeed.{where}: {first['msg']}, says DeepSpeed") from None


class _FileWriter(TorchCheckpointEngine):
    """Writes DeepSpeed's files checksummed and synced; an error is kept for all ranks to learn of, not raised.

    A rank that raised in the middle of DeepSpeed's save would leave the others waiting in its barriers.
    """

    def __init__(self, root: Path):
        super().__init__(None)
        self.root = root
        self.checksums: dict[str, str] = {}
        self.error: OSError | None = None

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        try:
            super().makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            self.error = self.error or error

    def save(self, state_dict: Any, path: str) -> None:
        try:
            with HashingWriter(Path(path)) as file:
                torch.save(state_dict, file)  # type: ignore[arg-type]
            self.checksums[str(Path(path).relative_to(self.root))] = file.digest
        except OSError as error:
            self.error = self.error or error


class Engine:
    """A model under DeepSpeed ZeRO: forward, backward, step, save and load, the same for every stage."""

    def __init__(self, model: nn.Module, run: RunConfig, world: World):
        """Takes the model over: partitions, casts and moves it as stage, precision and device ask for.

        The whole model comes in, on the host, the same on every rank: built so, its first weights depend on
        nothing but the seed. ZeRO 3 moves and splits it one parameter at a time, so no device ever holds it all.
        """
        self.world = world
        self.stage = run.training.zero_stage
        self.num_micro_batches = accumulation_steps(run, world.mesh.data.size)
        self.clipping = run.optimizer.gradient_clipping
        config = deepspeed_config(run, world.mesh.data.size, world.device.type)
        check_zero_section(config["zero_optimization"])
        optimizer = build_optimizer(model, run.optimizer, world.device)
        self._parameters = _in_optimizer_order(model, optimizer)
        self._settings = [{key: v for key, v in group.items() if key != "params"} for group in optimizer.param_groups]
        self._engine, self._optimizer, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        self._engine._copy_recovery_script = lambda folder: None  # it would lie unsummed in every checkpoint
        if world.size == 1 and hasattr(self._optimizer, "buffered_reduce_fallback"):
            # The mean over one rank is the gradient itself; DeepSpeed would copy it out and back to find that out.
            self._optimizer.buffered_reduce_fallback = lambda *_, **__: None
        self.module: nn.Module = self._engine.module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward pass. Its outputs must be a tensor or a plain tuple for ZeRO 3 to see them."""
        return self._engine(*args, **kwargs)

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of `loss` to those of the step; on the last micro-batch they are averaged over ranks."""
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, lr: float) -> float:
        """Clips the gradients, updates the weights at learning rate `lr` and returns the norm before clipping.

        Only the call after the last micro-batch does so; the ones before it return 0.
        """
        last = self._engine.is_gradient_accumulation_boundary()
        norm: Any = 0.0
        if last:
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            if self.stage == 0:
                norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.clipping or float("inf"))
        self._engine.step()
        if last and self.stage > 0:
            norm = self._engine.get_global_grad_norm()
        return float(norm)

    def save(self, folder: Path) -> tuple[dict[str, str], OSError | None]:
        """Writes this rank's part of the state under `folder`; every rank must call it.

        Returns the xxh3_128 of each file this rank wrote, by its path inside `folder`, and what went wrong if
        something did.
        """
        before = self._engine.checkpoint_engine
        writer = self._engine.checkpoint_engine = _FileWriter(folder)
        try:
            self._engine.save_checkpoint(str(folder), tag=SHARDS, save_latest=False)
        finally:
            self._engine.checkpoint_engine = before
        return writer.checksums, writer.error

    def load(self, folder: Path, stage: int, num_ranks: int) -> None:
        """Restores what `save` wrote at `stage` on `num_ranks` ranks; every rank must call it.

        Raises ValueError when stage or number of ranks are others now and the state cannot be cut anew (NVMe).
        """
        if not self._is_cut_alike(folder, stage, num_ranks):
            self.load_resharded(folder, stage, num_ranks)
            return
        path, _ = self._engine.load_checkpoint(str(folder), tag=SHARDS, load_lr_scheduler_states=False)
        assert path is not None, f"DeepSpeed found no checkpoint in {folder}"
        # The run's config decides, not what it was when the checkpoint was written.
        for group, settings in zip(self._optimizer.param_groups, self._settings, strict=True):
            group.update(settings)
        if self.stage > 0:
            self._optimizer.clip_grad = self.clipping

    def _is_cut_alike(self, folder: Path, stage: int, num_ranks: int) -> bool:
        if (stage, num_ranks) != (self.stage, self.world.size):
            return False
        # DeepSpeed keys such as round_robin_gradients move parameters about, which its own loading would not notice.
        if self._engine.zero_nvme_offload_optimizer() or self._engine.zero_elastic_checkpoint():
            return True  # forms that only DeepSpeed reads
        return SavedState(folder / SHARDS, stage, num_ranks, self._parameters).layout == self._layout()

    def load_resharded(self, folder: Path, stage: int, num_ranks: int) -> None:
        """`load` for any stage and number of ranks: each rank picks its part of weights and moments, bit for bit."""
        engine = self._engine
        if engine.zero_nvme_offload_optimizer():
            raise Mistake(
                f"{folder}: written at ZeRO {stage} by {num_ranks} ranks, which training.deepspeed.zero_optimization."
                "offload_optimizer to NVMe cannot take over; start the same ranks or leave that key out"
            )
        saved = SavedState(folder / SHARDS, stage, num_ranks, self._parameters)
        state = gather(saved, self._layout(), self.world.rank if self.stage else 0)
        self._put(state, saved.steps)
        for name in ("global_steps", "global_samples", "skipped_steps"):
            setattr(engine, name, saved.facts[name])

    def _layout(self) -> Layout:
        """How the live engine shares its state."""
        if self.stage == 0:
            return whole_parameters(self._parameters)
        shapes = self._engine._get_zero_param_shapes()
        if self.stage == 3:
            flat, gaps = self._optimizer.fp32_partitioned_groups_flat, None
        else:
            flat = [group["params"][0] for group in self._optimizer.optimizer.param_groups]
            gaps = getattr(self._optimizer, "round_robin_bit16_padding", None)
        return sharded(self.stage, self.world.size, shapes, [vector.numel() for vector in flat], gaps)

    def _put(self, vectors: dict[str, list[torch.Tensor]], steps: torch.Tensor) -> None:
        """Hands weights and moments to the optimizer, in the form that it saves them in itself."""
        weights = vectors.pop(WEIGHT)
        states: dict[int, dict[str, torch.Tensor]] = {}
        for number in range(len(weights)):
            states[number] = {"step": steps.clone(), **{kind: of[number] for kind, of in vectors.items()}}
        if self.stage == 0:
            self._put_whole(weights, states)
            return
        optimizer_key, weights_key = KEYS[self.stage]
        own = self._optimizer.state_dict()
        own[optimizer_key] = {"state": states, "param_groups": own[optimizer_key]["param_groups"]}
        own[weights_key] = weights
        if self.stage == 3:
            self._optimizer.checkpoint_event_prologue()
        of_ranks = [own if rank == self.world.rank else None for rank in range(self.world.size)]
        self._optimizer.load_state_dict(of_ranks, load_optimizer_states=True, load_from_fp32_weights=True)
        if self.stage == 3:
            self._optimizer.checkpoint_event_epilogue()
        else:
            self._optimizer.update_lp_params()  # what the model computes with is a copy

    @torch.no_grad()
    def _put_whole(self, weights: list[torch.Tensor], states: dict[int, dict[str, torch.Tensor]]) -> None:
        by_name = dict(self.module.named_parameters())
        for number, state in states.items():
            live = by_name[self._parameters[number].name]
            live.copy_(weights[number].view_as(live))
            states[number] = {kind: v if kind == "step" else v.view_as(live) for kind, v in state.items()}
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": states, "param_groups": groups})

    def close(self) -> None:
        """Removes DeepSpeed's hooks from the model and forgets its state."""
        self._engine.destroy()


def _in_optimizer_order(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Parameter]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [Parameter(names[id(parameter)], parameter.numel()) for parameter in ordered]
