"""The edge to DeepSpeed: the one module that imports it. Everything else talks to `Engine`.

    RunConfig -> deepspeed_config -> deepspeed.initialize -> Engine(forward, backward, step, save, load)

Importing this module imports DeepSpeed (seconds); nothing at start-up of the command line does.
"""

import collections
import contextlib
import copy
import functools
import itertools
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import nn

from model.network.layers import divisions, first_values, hidden_matrices
from training.config import RunConfig
from training.deepspeed_config import accumulation_steps, deepspeed_config
from training.distributed import World
from training.first_weights import Fill, give_memory, put_weights
from training.hardware import give_back_freed_memory
from training.matrices import matrices_of
from training.mesh import Axis, Mesh
from training.muon import Muon
from training.offload import check_buffer_size, nvme_paths
from training.optimizer import build_optimizer
from training.state.boxes import Box
from training.state.index import Index, written_slices
from training.state.layout import Share
from training.state.loading import fill
from training.state.parts import Parts
from training.state.snapshot import HostCopies, Snapshot
from training.state.together import everywhere
from training.swap_folder import SwapFolder
from training.zero import PREFIX, Holdings, ZeroState
from training.zero_keys import WHERE

if not torch.cuda.is_available():
    os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
from deepspeed.git_version_info import installed_ops
from deepspeed.ops import __compatible_ops__
from deepspeed.ops.op_builder import AsyncIOBuilder
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.utils import is_model_parallel_parameter
from deepspeed.runtime.zero.config import ZERO_OPTIMIZATION, DeepSpeedZeroConfig
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import get_z3_leaf_modules, groups

from common.mistakes import Mistake, cut


class _Engine(DeepSpeedEngine):
    """DeepSpeed's engine with one ZeRO optimizer for stages 1 and 2, whatever the precision.

    For stage 1 in bf16 with gradients summed in fp32 DeepSpeed would take another, BF16_Optimizer, which reduces all
    gradients of a step at once behind the last backward pass and knows neither buckets nor overlap.
    """

    def _do_optimizer_sanity_check(self, basic_optimizer: torch.optim.Optimizer) -> Any:
        wrapper = super()._do_optimizer_sanity_check(basic_optimizer)
        return ZERO_OPTIMIZATION if self.zero_optimization() else wrapper

    def _broadcast_model(self) -> None:
        """Nothing: every rank puts its own weights in, so that rank 0 need not send all of its own at start."""


deepspeed.DeepSpeedEngine = _Engine  # what deepspeed.initialize makes

OPTIMIZERS: dict[int, type] = {
    1: DeepSpeedZeroOptimizer,
    2: DeepSpeedZeroOptimizer,
    3: DeepSpeedZeroOptimizer_Stage3,
}
"""What holds the state of training, by ZeRO stage: nothing else is proved to compute what a plain loop does. At stage
0 the optimizer itself does."""

HoldBack = Callable[[torch.Tensor], torch.Tensor]
"""(norm of the gradient) -> whether to leave the weights as they are, bool [] on any device."""

PRIVATE = "shardline-extensions-"
"""How folders begin that compiled extensions are put into and that go with their process."""

# The shared-memory communicator takes a minute to compile and serves inference only.
__compatible_ops__["deepspeed_shm_comm"] = False
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
# DeepSpeed calls torch by names that torch is about to give up; nothing a user could do about it.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")


def check_zero_section(zero: dict[str, Any]) -> None:
    """ValueError for keys or values of `zero_optimization` that DeepSpeed does not take."""
    try:
        DeepSpeedZeroConfig(**zero)
    except (ValidationError, ValueError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(["zero_optimization", *map(str, first["loc"])])
        raise Mistake(f"training.deepspeed.{where}: {first['msg']}, says DeepSpeed") from None


@contextlib.contextmanager
def private_extensions() -> Iterator[None]:
    """Has torch compile extensions, should DeepSpeed ask for one, in a folder of this process's own, removed behind it.

    In a shared one, a lock left by a killed process would hang every later start, and others could leave code there.
    """
    if "TORCH_EXTENSIONS_DIR" in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix=PRIVATE, ignore_cleanup_errors=True) as folder:
        os.environ["TORCH_EXTENSIONS_DIR"] = folder
        try:
            yield
        finally:
            del os.environ["TORCH_EXTENSIONS_DIR"]


class _Partition(deepspeed.zero.Init):
    """Cuts a model on the meta device into parts of empty memory, a parameter at a time."""

    def _convert_to_zero_parameters(self, param_list: Any) -> None:
        for parameter in param_list:
            give_memory(parameter, self.dtype, self.local_device)
            self._convert_to_deepspeed_param(parameter)
            parameter.partition()


class _Axes:
    """The axes under the names that DeepSpeed asks for them."""

    def __init__(self, mesh: Mesh):
        data, tensor = _group(mesh.replicas, mesh), _group(mesh.tensor, mesh)
        self.get_data_parallel_rank = lambda: mesh.replicas.rank
        self.get_data_parallel_world_size = lambda: mesh.replicas.size
        self.get_data_parallel_group = lambda: data
        self.get_model_parallel_rank = self.get_tensor_model_parallel_rank = lambda: mesh.tensor.rank
        self.get_model_parallel_world_size = self.get_tensor_model_parallel_world_size = lambda: mesh.tensor.size
        self.get_model_parallel_group = self.get_tensor_model_parallel_group = lambda: tensor
        self.get_tensor_model_parallel_src_rank = lambda: mesh.tensor.first


def _group(axis: Axis, mesh: Mesh) -> Any:
    """The process group of an axis, also of one that is the world or this rank alone."""
    if axis.size == mesh.size:
        return dist.group.WORLD
    return axis.group or dist.new_group([mesh.rank], use_local_synchronization=True)


class Engine:
    """A model under DeepSpeed ZeRO: forward, backward, step, save and load, the same for every stage."""

    def __init__(self, model: nn.Module, run: RunConfig, world: World):
        """Takes a model on the meta device over: partitions, casts and places it as stage, precision, device ask for.

        Its weights are memory that nothing has been written to until `put_weights` or `load` is called.
        """
        self.world = world
        self.stage = run.training.zero_stage
        self.num_micro_batches = accumulation_steps(run, world.mesh.data.size)
        self.clipping = run.optimizer.gradient_clipping
        config = deepspeed_config(run, world.mesh.data.size, world.device.type)
        check_zero_section(config["zero_optimization"])
        self._copies = HostCopies(pinned=world.device.type == "cuda")
        self._swapped = _swap_folders(run, config["zero_optimization"])
        optimizer = build_optimizer(model, run, world.device)
        holdings = [_held(model, optimizer, rank, world.mesh.tensor.size) for rank in range(world.mesh.tensor.size)]
        matrices = {name.removeprefix(PREFIX): division for name, division in hidden_matrices(model).items()}
        axes = _Axes(world.mesh) if world.mesh.tensor.size > 1 else None
        if self.stage == 3:
            largest = max(weight.numel() for weight in model.parameters())
            check_buffer_size(run, -(-largest // world.mesh.replicas.size))
            group = axes.get_data_parallel_group() if axes else None
            _Partition(module=model, data_parallel_group=group, config_dict_or_path=copy.deepcopy(config), mpu=axes)
        else:
            dtype = torch.bfloat16 if run.training.precision == "bf16" else torch.float32
            for parameter in model.parameters():
                give_memory(parameter, dtype, world.device)
        cut = divisions(model)
        for name, parameter in model.named_parameters():
            # the norm of those that all have counts on one rank only
            parameter.tensor_model_parallel = name in cut  # type: ignore[attr-defined]
        groups.mpu = axes  # DeepSpeed forgets none that it was given before
        self._engine, self._optimizer, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=config, mpu=axes
        )
        assert type(self._optimizer) is OPTIMIZERS.get(self.stage, type(optimizer)), (
            f"ZeRO {self.stage} made a {type(self._optimizer)}"
        )
        _check_granularity(model, config["zero_optimization"])
        if world.device.type == "cpu":
            give_back_freed_memory()  # parts were copied on their way, and what comes next is of other sizes
        if world.mesh.replicas.size == 1 and hasattr(self._optimizer, "buffered_reduce_fallback"):
            # The mean over one rank is the gradient itself; DeepSpeed would copy it out and back to find that out.
            self._optimizer.buffered_reduce_fallback = lambda *_, **__: None
        inner: Any = self._optimizer
        self._inner: torch.optim.Optimizer = inner if self.stage == 0 else inner.optimizer
        assert all(group.get("fused", True) for group in self._inner.param_groups), "others cannot be held back"
        self._inner.register_step_pre_hook(self._ask)
        self._hold_back: HoldBack | None = None
        self._norm_at_0 = torch.zeros(())
        self.module: nn.Module = self._engine.module
        self._state = ZeroState(self._engine, self._optimizer, holdings, world.mesh.tensor.rank)
        if isinstance(optimizer, Muon):
            optimizer.place(matrices_of(self._state.layouts(), matrices, world.mesh), world.mesh.rank)

    def holdings(self) -> Holdings:
        """What this rank holds of the training state, now that it is cut."""
        return self._state.holdings(list(self.module.parameters()))

    def replicated(self) -> Iterator[torch.Tensor]:
        """What all replicas of this rank hold alike, to the last bit."""
        return self._state.replicated(list(self.module.parameters()))

    def put_weights(self, write: Fill) -> None:
        """Gives the model its first weights, which `write` makes by name; every rank must call it."""
        self._state.before_filling()
        put_weights(self._state.layout(), self._state.opened, self.world, write)
        self._state.after_filling(0)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward pass. Its outputs must be a tensor or a plain tuple for ZeRO 3 to see them."""
        return self._engine(*args, **kwargs)

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of `loss` to those of the step; on the last micro-batch they are averaged over ranks."""
        self._engine.backward(loss, scale_wrt_gas=False)

    @contextlib.contextmanager
    def watching_gradients(self, note: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
        """Calls `note` with a parameter's name and the gradient that a pass of this rank adds to it, whole."""
        named = [(name.removeprefix(PREFIX), weight) for name, weight in self.module.named_parameters()]
        hooks = [weight.register_hook(functools.partial(note, name)) for name, weight in named if weight.requires_grad]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def step(self, lr: float, hold_back: HoldBack | None = None) -> torch.Tensor:
        """Clips the gradients, updates the weights at learning rate `lr` and returns the norm before clipping.

        Only the call after the last micro-batch does so; the ones before it return 0. `hold_back` is asked there, once,
        with the norm: where it answers true, weights, moments and the optimizer's count of steps stay as they are. It
        must for a norm that is not finite, at which DeepSpeed by itself passes over the update.
        """
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()
            return torch.zeros(())
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._hold_back, self._inner.found_inf = hold_back, None  # type: ignore[attr-defined]
        if self.stage == 0:
            self._norm_at_0 = self._clip()
        self._engine.step()
        if self._hold_back is not None:  # no update was begun
            self._hold_back(self._norm())
            if self.stage in (1, 2):  # with the optimizer offloaded DeepSpeed would add the next gradients to these
                self._optimizer.averaged_gradients = dict.fromkeys(self._optimizer.averaged_gradients)
        return self._norm()

    def _ask(self, inner: Any, *_: Any) -> None:
        """Comes before each update of a part of the weights: asks before the first of a step."""
        if self._hold_back is not None:
            held, self._hold_back = self._hold_back(self._norm()), None
            weight = next(weight for group in inner.param_groups for weight in group["params"])
            inner.found_inf = held.to(weight.device, torch.float32)

    def _norm(self) -> torch.Tensor:
        """Of the whole gradient of this step, before clipping."""
        return torch.as_tensor(self._norm_at_0 if self.stage == 0 else self._optimizer._global_grad_norm)

    def _clip(self) -> torch.Tensor:
        """What ZeRO does in its step and stage 0 does not."""
        axis, limit = self.world.mesh.tensor, self.clipping or float("inf")
        if axis.size == 1:
            return nn.utils.clip_grad_norm_(self.module.parameters(), limit)
        parameters = list(self.module.parameters())
        counted = [
            each.grad
            for each in parameters
            if each.grad is not None and (is_model_parallel_parameter(each) or axis.rank == 0)
        ]
        square = nn.utils.get_total_norm(counted).square()
        dist.all_reduce(square, group=axis.group)
        norm = square.sqrt()
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return norm

    def snapshot(self) -> Snapshot:
        """Copies of what this rank will write, on the host, in memory that the next snapshot takes again."""
        replicas = self.world.mesh.replicas
        slices = list(written_slices(self._state.layout(), replicas.rank, replicas.size))
        sizes = collections.Counter(dict.fromkeys(self._state.kinds_of(0), 0))
        for piece in slices:
            sizes.update(dict.fromkeys(self._state.kinds_of(piece.vector), piece.length))
        kinds, at = {kind: self._copies.of(kind, size) for kind, size in sizes.items()}, dict.fromkeys(sizes, 0)
        for number, pieces in itertools.groupby(slices, key=lambda piece: piece.vector):
            with self._state.opened(number, changes=False) as vectors:
                for piece, (kind, vector) in itertools.product(pieces, vectors.items()):
                    source = vector.narrow(0, piece.offset, piece.length)
                    kinds[kind].narrow(0, at[kind], piece.length).copy_(source, non_blocking=True)
                    at[kind] += piece.length
        if self.world.device.type == "cuda":
            torch.cuda.current_stream(self.world.device).synchronize()  # the next step changes what was copied
        return Snapshot(kinds, self._state.layouts(), self._state.updates)

    def load(self, folder: Path, index: Index) -> None:
        """Restores what ranks of any number and stage have saved, bit for bit; every rank must call it."""

        def read() -> None:
            self._state.before_filling()
            self._state.make_moments(list(index.kinds[1:]), index.updates)
            with Parts(folder, index) as parts:
                rank = self.world.mesh.replicas.rank if self.stage else 0
                fill(parts, self._state.layout(), rank, self._state.opened)

        everywhere(self.world, read)
        self._state.after_filling(index.updates)

    def close(self) -> None:
        """Removes DeepSpeed's hooks from the model and forgets its state."""
        self._engine.destroy()
        self.leave_disk()

    def leave_disk(self) -> None:
        """Removes what is offloaded to NVMe; nothing can be done with the engine after that."""
        for folder in self._swapped.values():
            folder.remove()


def _check_granularity(model: nn.Module, zero: dict[str, Any]) -> None:
    """Mistake for a threshold below which no module is, which DeepSpeed passes over; it has cut the model by then."""
    key = "stage3_module_granularity_threshold"
    if key in zero and zero[key] and not get_z3_leaf_modules(model):
        sizes = (getattr(module, "ds_model_granularity", sys.maxsize) for module in model.modules())
        raise Mistake(
            f"{WHERE}.{key}: no module has {zero[key]} weights or less for each module in it, so nothing is gathered "
            f"as a whole; set it to {min(sizes)} or more, or remove this key"
        )


def _swap_folders(run: RunConfig, zero: dict[str, Any]) -> dict[Path, SwapFolder]:
    """Folders of this process's own where the run swaps to, by their parents; `zero` is made to say them."""
    paths = nvme_paths(run)
    if paths:
        load_async_io()
    folders: dict[Path, SwapFolder] = {}
    for name, parent in paths.items():
        if parent not in folders:
            folders[parent] = SwapFolder(parent, f"{WHERE}.{name}.nvme_path")
        zero[name]["nvme_path"] = str(folders[parent].path)
    return folders


def load_async_io() -> None:
    """Loads what DeepSpeed reads and writes NVMe by. Mistake where it is neither built nor may be.

    It takes minutes to build, so that is not done in a folder that goes with the process.
    """
    is_built, folder = installed_ops.get("async_io", False), os.environ.get("TORCH_EXTENSIONS_DIR", "")
    remedy = (
        "install libaio's headers (Debian: libaio-dev), set TORCH_EXTENSIONS_DIR to a folder of your own, and run "
        "python -c 'import training.engine as e; e.load_async_io()' once on a node, or install DeepSpeed with "
        "DS_BUILD_AIO=1"
    )
    if not is_built and (not folder or Path(folder).name.startswith(PRIVATE)):
        raise Mistake(f"{WHERE}: device nvme needs DeepSpeed's async_io, which is not built here; {remedy}")
    try:
        AsyncIOBuilder().load(verbose=False)
    except (RuntimeError, OSError, ImportError) as error:
        why = cut(" ".join(str(error).split()), 300)
        raise Mistake(f"{WHERE}: DeepSpeed's async_io, which device nvme needs, fails ({why}); {remedy}") from None


def _held(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, size: int) -> Mapping[str, Share]:
    """What a tensor rank holds of every parameter, in the optimizer's order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    ordered = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    first, cut = first_values(model), divisions(model)
    held: dict[str, Share] = {}
    for name in ordered:
        bare, shape = name.removeprefix(PREFIX), first[name].shape
        whole = (Box.whole(bare, shape),)
        held[bare] = Box.of_rank(bare, shape, cut[name], rank, size) if name in cut and size > 1 else whole
    return held
